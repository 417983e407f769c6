"""All links to the coordinator are cut again and again while a gang resolves its programs."""

from __future__ import annotations

import contextlib
import random
import threading
from collections import Counter
from pathlib import Path

import pytest

from hotstart.launcher.coordinator import Coordinator
from tests.support.host_lab import FarStore, Gang, all_get, until
from tests.support.tcp_proxy import TcpProxy, tcp_proxy

pytestmark = pytest.mark.chaos

KEYS = [f"jit_{number}-" + "0" * 64 for number in range(40)]


def test_links_cut_at_any_time_each_program_is_compiled_once(tmp_path: Path) -> None:
    rng, over = random.Random(1), threading.Event()
    cuts: list[int] = []
    with contextlib.ExitStack() as stack:
        ways: list[TcpProxy] = []

        def way(coordinator: Coordinator) -> tuple[str, int]:
            if not ways:
                url = f"http://127.0.0.1:{coordinator.address[1]}"
                ways.append(stack.enter_context(tcp_proxy(url)))
            return "127.0.0.1", ways[0].port

        def cut() -> None:
            # Long enough for a line: five connections in a row that carry nothing end a session.
            while not over.wait(rng.uniform(0.1, 0.3)):
                if until(lambda: ways[0].connections == len(gang.hosts)):
                    cuts.append(ways[0].cut())

        gang = Gang(tmp_path, FarStore(), 3, 2, way=way)
        stack.callback(gang.close)
        cutting = threading.Thread(target=cut)
        cutting.start()
        try:
            for key in KEYS:
                assert all_get(gang.workers, key) == Counter(compiled=1, node=5), key
        finally:
            over.set()
            cutting.join()
        assert [worker.unknown for worker in gang.workers] == [[]] * 6
        assert [host.link is not None and host.link.lost for host in gang.hosts] == [False] * 3
        for key in KEYS:
            assert len({host.holds(key) for host in gang.hosts}) == 1
    assert cuts == [3] * len(cuts)
    assert len(cuts) > 2
