"""Hosts whose links to the coordinator end while their workers resolve a key."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hotstart.cache.entry import entry_digest
from hotstart.launcher.coordinator import Coordinator
from tests.support.host_lab import KEY, FarStore, Gang, all_get, entry, said, until
from tests.support.tcp_proxy import TcpProxy, tcp_proxy

pytestmark = pytest.mark.unit

DIGEST = entry_digest(entry())
Make = Callable[..., tuple[Gang, TcpProxy]]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """A gang, and the proxy through which all of it reaches the coordinator."""
    with contextlib.ExitStack() as stack:

        def make(hosts: int = 2, workers: int = 1, **how: Any) -> tuple[Gang, TcpProxy]:
            ways: dict[Coordinator, TcpProxy] = {}

            def way(coordinator: Coordinator) -> tuple[str, int]:
                if coordinator not in ways:
                    url = f"http://127.0.0.1:{coordinator.address[1]}"
                    ways[coordinator] = stack.enter_context(tcp_proxy(url))
                return "127.0.0.1", ways[coordinator].port

            gang = Gang(tmp_path, FarStore(), hosts, workers, way=way, **how)
            stack.callback(gang.close)
            [proxy] = ways.values()
            return gang, proxy

        yield make


def cut_all(gang: Gang, proxy: TcpProxy, *, refuses: bool = False) -> None:
    assert until(lambda: proxy.connections == len(gang.hosts))
    proxy.refuses = refuses
    assert proxy.cut() == len(gang.hosts)


def test_gang_cut_while_one_compiles_nobody_else_does(make: Make) -> None:
    gang, proxy = make()
    first, second = gang.workers
    assert first.resolved() == ("compile", True)
    waits = second.resolve()
    cut_all(gang, proxy)
    first.publish()
    assert said(waits) == ("node", DIGEST)
    assert [host.link is not None and host.link.lost for host in gang.hosts] == [False, False]
    cut_all(gang, proxy)
    assert second.resolved("jit_other-" + "0" * 64) == ("compile", True)


def test_gang_cut_while_a_worker_asks_and_publishes_each_is_answered_once(make: Make) -> None:
    gang, proxy = make()
    first, second = gang.workers
    cut_all(gang, proxy, refuses=True)
    asks = first.resolve(), second.resolve()
    proxy.refuses = False
    assert until(lambda: any(ask.done() for ask in asks))
    holder, waiter = (first, second) if asks[0].done() else (second, first)
    cut_all(gang, proxy, refuses=True)
    published = holder.publish()
    proxy.refuses = False
    assert bytes.fromhex(published.result(20)["digest"]) == DIGEST
    assert said(asks[waiter is second]) == ("node", DIGEST)
    assert [worker.unknown for worker in gang.workers] == [[], []]


def test_gang_cut_during_a_fetch_the_entry_comes_and_nobody_compiles(make: Make) -> None:
    gang, proxy = make()
    first, second = gang.workers
    assert first.get() == "compiled"

    def spoil(host: int, data: bytes | None) -> bytes | None:
        cut_all(gang, proxy)
        return data

    gang.spoil = spoil
    assert second.get() == "node"
    assert gang.handed == Counter({(0, KEY): 1})


def test_gang_cut_during_a_fetch_that_fails_it_is_asked_again(make: Make) -> None:
    gang, proxy = make(3)
    first, second, third = gang.workers
    assert [first.get(), second.get()] == ["compiled", "node"]

    def spoil(host: int, data: bytes | None) -> bytes | None:
        cut_all(gang, proxy)
        return None if host == 1 else data

    gang.spoil = spoil
    assert third.get() == "node"
    assert third.compiled == []


def test_gang_without_a_way_back_each_host_compiles_for_itself(make: Make) -> None:
    gang, proxy = make(reconnect_s=0.2)
    first, second = gang.workers
    assert first.resolved() == ("compile", True)
    waits = second.resolve()
    cut_all(gang, proxy, refuses=True)
    assert said(waits) == ("compile", True)
    first.publish().result(20)
    second.publish().result(20)
    assert [worker.unknown for worker in gang.workers] == [[], []]


def test_gang_without_a_way_back_is_together_again_in_the_next_attempt(make: Make) -> None:
    gang, proxy = make(reconnect_s=0.1)
    cut_all(gang, proxy, refuses=True)
    assert until(lambda: all(host.link is not None and host.link.lost for host in gang.hosts))
    proxy.refuses = False
    for host in gang.hosts:
        host.connect(gang.coordinator)
        host.begin(2, host.index)
    assert all_get(gang.workers) == Counter(compiled=1, node=1)
