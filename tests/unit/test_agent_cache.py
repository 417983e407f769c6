from __future__ import annotations

import contextlib
import functools
import queue
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hotstart.cache.config import CacheConfig
from hotstart.launcher import agent_cache
from hotstart.launcher.agent_cache import AgentCache, Seat
from hotstart.launcher.coordinator import Coordinator
from hotstart.launcher.coordinator_link import CoordinatorLink
from tests.support.host_lab import KEY, until
from tests.support.tcp_proxy import TcpProxy, tcp_proxy

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


class Cut:
    """A host whose way to the coordinator can be cut; it gives up after 0.1 s."""

    def __init__(self, location: Path, stack: contextlib.ExitStack) -> None:
        coordinator = Coordinator("127.0.0.1")
        stack.callback(coordinator.close)
        url = f"http://127.0.0.1:{coordinator.address[1]}"
        self.proxy: TcpProxy = stack.enter_context(tcp_proxy(url))
        self.on_its_own: list[int] = []
        self.answers: queue.Queue[dict[str, Any]] = queue.Queue()
        self.cache = AgentCache("127.0.0.1", self.on_its_own.append)
        stack.callback(self.cache.close)
        seat = Seat(1, ("127.0.0.1", self.proxy.port, coordinator.token))
        self.cache.open(CacheConfig(str(location)), seat, lambda host, key, digest: None)
        self.cache.begin(1, {0: self.answers.put})

    def compiles(self, key: str = KEY) -> None:
        self.cache.heard(0, {"request": 1, "ask": "resolve", "key": key, "failed": []})
        assert self.answers.get(timeout=20)["answer"] == "compile"

    def cut(self, *, refuses: bool = False) -> None:
        assert until(lambda: self.proxy.connections == 1)
        self.proxy.refuses = refuses
        assert self.proxy.cut() == 1

    def lose(self) -> None:
        self.cut(refuses=True)
        assert until(lambda: self.cache._link is not None and self.cache._link.lost)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cut]:
    quick = functools.partial(CoordinatorLink, reconnect_s=0.1)
    monkeypatch.setattr(agent_cache, "CoordinatorLink", quick)
    with contextlib.ExitStack() as stack:
        yield Cut(tmp_path, stack)


def test_host_that_has_lost_the_coordinator_tells_that_it_compiles(host: Cut) -> None:
    host.compiles()
    host.cache.heard(0, {"ask": "release", "key": KEY})
    host.lose()
    assert host.on_its_own == []
    host.compiles("jit_other-" + "0" * 64)
    assert host.on_its_own == [1]


def test_host_that_loses_the_coordinator_while_it_compiles_tells_it(host: Cut) -> None:
    host.compiles()
    host.lose()
    assert until(lambda: host.on_its_own == [1])


def test_host_whose_link_was_cut_and_is_back_is_not_on_its_own(host: Cut) -> None:
    host.cut()
    host.compiles()
    assert host.on_its_own == []


def test_host_that_has_no_coordinator_from_the_start_of_an_attempt_is_as_the_others(
    host: Cut,
) -> None:
    host.lose()
    host.cache.begin(2, {0: host.answers.put})
    host.compiles()
    assert host.on_its_own == []
