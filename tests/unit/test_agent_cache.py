from __future__ import annotations

import threading
from typing import Any

import pytest

from hotstart.launcher import agent_cache
from hotstart.launcher.agent_cache import AgentCache, Seat

pytestmark = pytest.mark.unit


def test_two_that_join_the_coordinator_at_once_make_one_link(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    links: list[Any] = []
    both_are_there = threading.Barrier(2)

    class Link:
        lost = False

        def __init__(self, *how: Any) -> None:
            threading.Event().wait(0.1)  # as the way there takes
            links.append(self)

    class Upstream:
        answered = lost = None

        def connect(self, link: Link) -> None:
            pass

    monkeypatch.setattr(agent_cache, "CoordinatorLink", Link)
    cache = AgentCache("10.0.0.1")
    cache._seat = Seat(0, ("10.0.0.1", 1, "token"))
    cache._upstream = Upstream()  # type: ignore[assignment]

    def join() -> None:
        both_are_there.wait(10)
        cache._connect()

    threads = [threading.Thread(target=join) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(links) == 1
