"""One host, and several, resolve keys: who compiles, who reads, and what is read from where."""

from __future__ import annotations

import contextlib
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hotstart.cache.circuit import FAILURES_TO_OPEN
from hotstart.cache.config import CacheConfig
from hotstart.cache.directory import DirectoryStore
from hotstart.cache.entry import PENDING, entry_digest, entry_name, pending_name
from hotstart.cache.errors import StoreError
from hotstart.cache.leases import StoreLeases
from tests.support.host_lab import (
    KEY,
    FarStore,
    Gang,
    Host,
    Worker,
    all_get,
    entry,
    flipped,
    said,
    until,
)

pytestmark = pytest.mark.unit

DIGEST = entry_digest(entry())


class FullDisk(DirectoryStore):
    """A node directory that takes nothing."""

    def create(self, name: str, data: bytes) -> bool:
        raise StoreError("cannot create: no space left on device")


@pytest.fixture
def far() -> FarStore:
    return FarStore()


@pytest.fixture
def host(tmp_path: Path, far: FarStore) -> Iterator[Callable[..., Host]]:
    with contextlib.ExitStack() as stack:

        def make(**how: Any) -> Host:
            made = Host(tmp_path, how.pop("far", far), **how)
            stack.callback(made.close)
            return made

        yield make


@pytest.fixture
def gang(tmp_path: Path, far: FarStore) -> Iterator[Callable[..., Gang]]:
    with contextlib.ExitStack() as stack:

        def make(hosts: int = 2, workers: int = 1, **how: Any) -> Gang:
            made = Gang(tmp_path, far, hosts, workers, **how)
            stack.callback(made.close)
            return made

        yield make


# Compile once.


def test_host_cold_with_eight_workers_compiles_once(
    host: Callable[..., Host], far: FarStore
) -> None:
    h = host(workers=tuple(range(8)))
    assert all_get(list(h.workers.values())) == Counter(compiled=1, node=7)
    assert h.store.flush(20)
    assert (far.reads(), far.creates[entry_name(KEY)]) == (1, 1)


def test_gang_cold_with_two_by_four_workers_compiles_once(
    gang: Callable[..., Gang], far: FarStore
) -> None:
    g = gang(2, 4)
    assert all_get(g.workers) == Counter(compiled=1, node=7)
    assert all(h.store.flush(20) for h in g.hosts)
    assert (far.reads(), far.creates[entry_name(KEY)]) == (1, 1)
    assert sum(g.handed.values()) == 1
    assert g.hosts[0].holds() == g.hosts[1].holds() == far.get(entry_name(KEY))


def test_gang_warm_reads_the_store_once(gang: Callable[..., Gang], far: FarStore) -> None:
    far.create(entry_name(KEY), entry())
    g = gang(3, 2)
    assert all_get(g.workers) == Counter(node=6)
    assert (far.reads(), sum(g.handed.values())) == (1, 2)


def test_host_with_the_entry_in_its_node_directory_reads_no_store(
    host: Callable[..., Host], far: FarStore
) -> None:
    h = host(workers=(0, 1))
    h.put_near(entry())
    assert all_get(list(h.workers.values())) == Counter(node=2)
    assert far.reads() == 0


def test_gang_where_one_host_has_it_reads_no_store(
    gang: Callable[..., Gang], far: FarStore
) -> None:
    g = gang(2)
    g.hosts[0].put_near(entry())
    assert g.workers[0].resolved() == ("node", DIGEST)
    assert g.workers[1].resolved() == ("node", DIGEST)
    assert (far.reads(), g.hosts[1].holds()) == (0, entry())


def test_host_shared_directory_as_location_compiles_once(host: Callable[..., Host]) -> None:
    h = host(far=None, workers=(0, 1, 2))
    assert all_get(list(h.workers.values())) == Counter(compiled=1, node=2)


# What becomes of a lease.


@pytest.mark.parametrize("spread", [(1, 4), (4, 1)])
def test_holder_that_stores_nothing_lets_all_others_compile_at_once(
    gang: Callable[..., Gang], spread: tuple[int, int]
) -> None:
    g = gang(*spread)
    first, *others = g.workers
    assert first.resolved() == ("compile", True)
    waiting = [worker.resolve() for worker in others]
    first.release()
    assert [said(future) for future in waiting] == [("compile", False)] * 3
    assert first.resolved() == ("compile", False)


@pytest.mark.parametrize("ahead", [False, True])
def test_holder_that_stores_nothing_in_a_later_attempt_lets_all_others_compile(
    host: Callable[..., Host], ahead: bool
) -> None:
    h = host(workers=(0, 1, 2))
    if ahead:
        h.cache.read_ahead(2, [])
    a, b, c = h.begin(2, 0, 1, 2)
    assert a.resolved() == ("compile", True)
    waiting = [b.resolve(), c.resolve()]
    a.release()
    assert [said(future) for future in waiting] == [("compile", False)] * 2


@pytest.mark.parametrize("spread", [(1, 3), (3, 1)])
def test_holder_that_dies_gives_the_lease_to_one_waiter(
    gang: Callable[..., Gang], spread: tuple[int, int]
) -> None:
    g = gang(*spread)
    first, *others = g.workers
    assert first.resolved() == ("compile", True)
    waiting = [worker.resolve() for worker in others]
    first.host.cache.gone(first.index)
    assert until(lambda: any(future.done() for future in waiting))
    done = [i for i, future in enumerate(waiting) if future.done()]
    assert [said(waiting[i]) for i in done] == [("compile", True)]
    others[done[0]].publish().result(20)
    assert said(waiting[1 - done[0]]) == ("node", DIGEST)


def test_worker_that_dies_while_the_store_is_read_leaves_no_lease(
    gang: Callable[..., Gang], far: FarStore
) -> None:
    g = gang(2)
    far.open.clear()
    first, second = g.workers
    first.resolve()
    assert far.reading.wait(20)
    first.host.cache.gone(first.index)
    far.open.set()
    assert second.resolved() == ("compile", True)


def test_holder_whose_host_is_lost_gives_the_lease_to_another_host(
    gang: Callable[..., Gang],
) -> None:
    g = gang(2)
    first, second = g.workers
    assert first.resolved() == ("compile", True)
    waiting = second.resolve()
    assert g.hosts[0].link is not None
    g.hosts[0].link.close()
    assert said(waiting) == ("compile", True)


def test_unleased_compilation_is_superseded_by_the_first_published(
    gang: Callable[..., Gang], far: FarStore
) -> None:
    g = gang(2)
    a, b = g.workers
    assert a.resolved() == ("compile", True)
    waiting = b.resolve()
    a.release()
    assert said(waiting) == ("compile", False)
    first = a.publish(payload=b"of a").result(20)["digest"]
    assert b.publish(payload=b"of b").result(20)["digest"] == first
    assert b.resolved() == ("node", bytes.fromhex(first))
    assert g.hosts[1].holds() == entry(payload=b"of a")
    assert all(h.store.flush(20) for h in g.hosts)
    assert far.get(entry_name(KEY)) == entry(payload=b"of a")


def test_superseded_entry_is_replaced_in_the_node_directory_unasked(
    gang: Callable[..., Gang],
) -> None:
    g = gang(2)
    a, b = g.workers
    assert a.resolved() == ("compile", True)
    waiting = b.resolve()
    a.release()
    assert said(waiting) == ("compile", False)
    a.publish(payload=b"of a").result(20)
    b.publish(payload=b"of b").result(20)
    assert until(lambda: g.hosts[1].holds() == entry(payload=b"of a"))


def test_worker_that_dies_after_publishing_has_its_entry_uploaded(
    gang: Callable[..., Gang], far: FarStore
) -> None:
    g = gang(2)
    a, b = g.workers
    assert a.resolved() == ("compile", True)
    a.publish()
    a.host.cache.gone(a.index)
    g.hosts[0].begin(2, 0)
    assert b.resolved() == ("node", DIGEST)
    assert until(lambda: far.get(entry_name(KEY)) == entry())


def test_worker_that_dies_before_publishing_has_its_entry_uploaded(
    gang: Callable[..., Gang], far: FarStore
) -> None:
    g = gang(2)
    a, b = g.workers
    assert a.resolved() == ("compile", True)
    a.host.store.near.create(pending_name(KEY), KEY.encode())
    a.host.put_near(entry())
    a.host.cache.gone(a.index)
    g.hosts[0].begin(2, 0)
    g.hosts[1].begin(2, 1)
    assert g.hosts[0].workers[0].resolved() == ("node", DIGEST)
    assert until(lambda: far.get(entry_name(KEY)) == entry())
    assert until(lambda: not list(g.hosts[0].store.near.list(PENDING)))


def test_worker_that_dies_before_storing_leaves_nothing_to_upload(
    host: Callable[..., Host], far: FarStore
) -> None:
    h = host()
    assert h.workers[0].resolved() == ("compile", True)
    h.store.near.create(pending_name(KEY), KEY.encode())
    h.cache.gone(0)
    assert list(h.store.near.list(PENDING)) == []
    assert (h.store.flush(20), far.creates[entry_name(KEY)], h.store.stats().errors) == (True, 0, 0)


def test_worker_that_dies_before_replacing_a_useless_entry_uploads_nothing(
    host: Callable[..., Host], far: FarStore
) -> None:
    far.create(entry_name(KEY), entry())
    h = host()
    assert h.workers[0].resolved() == ("node", DIGEST)
    useless = [["unloadable", DIGEST.hex()]]
    assert h.workers[0].resolved(failed=useless) == ("compile", True)
    h.store.near.create(pending_name(KEY), KEY.encode())
    h.put_near(entry())
    h.cache.gone(0)
    assert (h.store.flush(20), far.creates[entry_name(KEY)]) == (True, 1)


# Bad bytes.


def test_flipped_byte_in_the_node_directory_is_repaired_by_one_read(
    host: Callable[..., Host], far: FarStore
) -> None:
    far.create(entry_name(KEY), entry())
    h = host(workers=(0, 1, 2, 3))
    h.put_near(flipped(entry()))
    workers = list(h.workers.values())
    assert [w.resolved() for w in workers] == [("node", DIGEST)] * 4
    again = [w.resolve(failed=[["node", DIGEST.hex()]]) for w in workers]
    assert [said(future) for future in again] == [("node", DIGEST)] * 4
    assert (h.holds(), far.reads()) == (entry(), 1)


def test_flipped_byte_on_one_host_is_repaired_by_a_peer(
    gang: Callable[..., Gang], far: FarStore
) -> None:
    g = gang(2)
    g.hosts[0].put_near(entry())
    g.hosts[1].put_near(flipped(entry()))
    a, b = g.workers
    assert (a.resolved(), b.resolved()) == (("node", DIGEST), ("node", DIGEST))
    assert b.resolved(failed=[["node", DIGEST.hex()]]) == ("node", DIGEST)
    assert (g.hosts[1].holds(), far.reads(), g.handed[0, KEY]) == (entry(), 0, 1)


@pytest.mark.parametrize("spread", [(1, 4), (2, 2)])
def test_bad_bytes_in_the_store_are_compiled_once_and_replaced(
    gang: Callable[..., Gang], far: FarStore, spread: tuple[int, int]
) -> None:
    far.create(entry_name(KEY), flipped(entry()))
    g = gang(*spread)
    assert all_get(g.workers, same=True) == Counter(compiled=1, node=3)
    assert all(h.store.flush(20) for h in g.hosts)
    assert far.get(entry_name(KEY)) == entry()
    assert sum(h.store.stats().errors for h in g.hosts) == 1


@pytest.mark.parametrize("spread", [(1, 1), (2, 1)])
def test_entry_that_does_not_load_is_compiled_and_replaced(
    gang: Callable[..., Gang], far: FarStore, spread: tuple[int, int]
) -> None:
    far.create(entry_name(KEY), entry())
    g = gang(*spread)
    a = g.workers[0]
    assert a.resolved() == ("node", DIGEST)
    assert a.resolved(failed=[["unloadable", DIGEST.hex()]]) == ("compile", True)
    a.publish(payload=b"another").result(20)
    assert g.hosts[0].store.flush(20)
    assert far.get(entry_name(KEY)) == entry(payload=b"another")


@pytest.mark.parametrize("spread", [(1, 1), (2, 1)])
def test_sound_entry_that_one_worker_cannot_read_is_not_replaced(
    gang: Callable[..., Gang], far: FarStore, spread: tuple[int, int]
) -> None:
    far.create(entry_name(KEY), entry())
    g = gang(*spread)
    a = g.workers[0]
    node, store = ["node", DIGEST.hex()], ["store", DIGEST.hex()]
    assert a.resolved() == ("node", DIGEST)
    assert a.resolved(failed=[node]) == ("node", DIGEST)
    assert a.resolved(failed=[node, node]) == ("store", DIGEST)
    assert a.resolved(failed=[node, node, store]) == ("compile", False)
    canonical = a.publish(payload=b"another").result(20)["digest"]
    assert g.hosts[0].store.flush(20)
    assert (bytes.fromhex(canonical), far.get(entry_name(KEY))) == (DIGEST, entry())


# Peers.


@pytest.mark.parametrize("kind", ["raises", "wrong", "none"])
def test_peer_that_fails_is_replaced_by_another(
    gang: Callable[..., Gang], far: FarStore, kind: str
) -> None:
    g = gang(3)
    far.create(entry_name(KEY), entry())
    a, b, c = g.workers
    assert a.resolved() == b.resolved() == ("node", DIGEST)
    other = "jit_other-" + "0" * 64
    assert b.resolved(other) == ("compile", True)  # so it is known that b has the entry too
    asked: list[int] = []

    def spoil(source: int, data: bytes | None) -> bytes | None:
        asked.append(source)
        if source == 1 and kind == "raises":
            raise RuntimeError("the object's owner has died")
        return {"wrong": entry(payload=b"x"), "none": None}.get(kind) if source == 1 else data

    g.spoil = spoil
    assert c.resolved() == ("node", DIGEST)
    assert (asked, far.reads(), g.hosts[2].holds()) == ([1, 0], 1, entry())
    assert (g.hosts[2].store.stats().errors, g.hosts[2].store.stats().from_peers) == (1, 1)


def test_peers_that_all_fail_are_replaced_by_the_store(
    gang: Callable[..., Gang], far: FarStore
) -> None:
    g = gang(2)
    far.create(entry_name(KEY), entry())
    a, b = g.workers
    assert a.resolved() == ("node", DIGEST)
    g.spoil = lambda source, data: None
    assert b.resolved() == ("node", DIGEST)
    assert (far.reads(), g.hosts[1].store.stats().errors) == (2, 1)


def test_peers_that_all_fail_before_the_upload_let_one_compile(
    gang: Callable[..., Gang], far: FarStore
) -> None:
    g = gang(2, config=CacheConfig("memory://far", mode="read-only"))
    a, b = g.workers
    assert a.resolved() == ("compile", True)
    waiting = b.resolve()
    g.spoil = lambda source, data: None
    a.publish().result(20)
    assert said(waiting) == ("compile", True)


# A node directory that can't be written.


def test_full_disk_sends_workers_to_the_store(
    host: Callable[..., Host], far: FarStore, tmp_path: Path
) -> None:
    far.create(entry_name(KEY), entry())
    h = host(workers=(0, 1), near=FullDisk(tmp_path / "full"))
    a, b = h.workers.values()
    assert (a.resolved(), b.resolved()) == (("store", DIGEST), ("store", DIGEST))
    assert far.reads() == 1


def test_full_disk_and_a_worker_that_cannot_read_the_store_compiles(
    host: Callable[..., Host], far: FarStore, tmp_path: Path
) -> None:
    far.create(entry_name(KEY), entry())
    h = host(workers=(0, 1), near=FullDisk(tmp_path / "full"))
    a = h.workers[0]
    assert a.resolved() == ("store", DIGEST)
    assert a.resolved(failed=[["store", DIGEST.hex()]]) == ("compile", True)


# A store that can't be reached.


@pytest.mark.parametrize("spread", [(1, 3), (3, 1)])
def test_store_that_is_down_is_asked_twice_a_host_and_each_program_compiled_once(
    gang: Callable[..., Gang], far: FarStore, spread: tuple[int, int]
) -> None:
    far.fail()
    g = gang(*spread)
    keys = [f"jit_{i}-" + "0" * 64 for i in range(3)]
    for key in keys:
        assert all_get(g.workers, key) == Counter(compiled=1, node=2)
    assert sum(far.gets.values()) <= FAILURES_TO_OPEN * len(g.hosts)


def test_store_that_is_down_is_not_taken_for_one_without_the_entry(
    host: Callable[..., Host], far: FarStore
) -> None:
    h = host()
    far.create(entry_name(KEY), entry())
    far.fail()
    assert h.workers[0].resolved() == ("compile", True)
    far.error = None
    (worker,) = h.begin(2, 0)
    assert worker.resolved() == ("node", DIGEST)


def test_store_that_is_down_leases_nothing_in_it(host: Callable[..., Host], far: FarStore) -> None:
    far.fail()
    errors: list[StoreError] = []
    h = host(leases=StoreLeases(far, on_error=errors.append))
    assert (h.workers[0].resolved(), errors) == (("compile", True), [])


def test_strict_store_that_is_down_is_required_of_every_worker(
    gang: Callable[..., Gang], far: FarStore
) -> None:
    far.fail()
    g = gang(2, 2, config=CacheConfig("memory://far", strict=True))
    futures = [worker.resolve() for worker in g.workers]
    assert [said(future) for future in futures] == [("required",)] * 4
    assert said(g.workers[0].ask("probe", failed=[])) == ("required",)


# Uploads.


def test_read_only_uploads_nothing_and_compiles_once(
    host: Callable[..., Host], far: FarStore
) -> None:
    h = host(workers=(0, 1), config=CacheConfig("memory://far", mode="read-only"))
    assert all_get(list(h.workers.values())) == Counter(compiled=1, node=1)
    assert h.workers[0].ask("flush", timeout_s=20.0).result(20)["flushed"] is True
    assert sum(far.creates.values()) == 0


def test_flush_right_after_a_publication_waits_for_its_upload(
    host: Callable[..., Host], far: FarStore
) -> None:
    h = host()
    (worker,) = h.workers.values()
    for i in range(50):
        key = f"jit_{i}-" + "0" * 64
        assert worker.resolved(key) == ("compile", True)
        worker.publish(key).result(20)
        assert worker.ask("flush", timeout_s=20.0).result(20)["flushed"] is True
        assert far.stat(entry_name(key)) is not None


def test_flush_with_a_failed_upload_is_false_for_every_worker(
    host: Callable[..., Host], far: FarStore
) -> None:
    h = host(workers=(0, 1))
    a, b = h.workers.values()
    assert a.resolved() == ("compile", True)
    far.fail()
    a.publish().result(20)
    flushed = [w.ask("flush", timeout_s=20.0).result(20)["flushed"] for w in (a, b)]
    assert flushed == [False, False]


# Reading ahead.


def test_read_ahead_brings_entries_before_they_are_asked_for(
    gang: Callable[..., Gang], far: FarStore
) -> None:
    keys = [f"jit_{i}-" + "0" * 64 for i in range(20)]
    for key in keys:
        far.create(entry_name(key), entry(key))
    g = gang(2)
    for h in g.hosts:
        h.cache.read_ahead(1, keys)
    assert until(lambda: all(h.holds(key) is not None for h in g.hosts for key in keys))
    assert all_get(g.workers, keys[0]) == Counter(node=2)
    assert [far.reads(key) for key in keys] == [1] * 20


def test_worker_waits_for_reading_ahead_of_its_key(
    host: Callable[..., Host], far: FarStore
) -> None:
    far.create(entry_name(KEY), entry())
    far.open.clear()
    h = host(begin=False)
    h.cache.read_ahead(1, [KEY])
    (worker,) = h.begin(1, 0)
    assert far.reading.wait(20)
    asked = worker.resolve()
    far.open.set()
    assert said(asked) == ("node", DIGEST)
    assert asked.result()["waited"] is True
    assert far.reads() == 1


@pytest.mark.parametrize("hosts", [1, 2])
def test_entry_absent_when_read_ahead_is_compiled_without_a_second_read(
    gang: Callable[..., Gang], far: FarStore, hosts: int
) -> None:
    far.open.clear()
    g = gang(hosts)
    for h in g.hosts:
        h.cache.read_ahead(1, [KEY])
    assert far.reading.wait(20)
    waiting = g.workers[0].resolve()
    far.open.set()
    assert said(waiting) == ("compile", True)
    assert far.reads() == 1


def test_ahead_ask_is_answered_while_another_compiles(
    gang: Callable[..., Gang], far: FarStore
) -> None:
    g = gang(2, 2)
    assert g.workers[0].resolved() == ("compile", True)
    assert said(g.workers[1].ask("ahead", failed=[])) == ("compile", False)
    assert said(g.workers[2].ask("ahead", failed=[])) == ("compile", False)


def test_ahead_ask_reads_what_the_store_has(host: Callable[..., Host], far: FarStore) -> None:
    far.create(entry_name(KEY), entry())
    h = host(workers=(0, 1))
    futures = [worker.ask("ahead", failed=[]) for worker in h.workers.values()]
    assert [said(future) for future in futures] == [("node", DIGEST)] * 2
    assert far.reads() == 1


# Probes.


def test_probe_takes_no_lease_and_waits_for_none(host: Callable[..., Host]) -> None:
    h = host(workers=(0, 1))
    a, b = h.workers.values()
    assert said(a.ask("probe", failed=[])) == ("compile", False)
    assert b.resolved() == ("compile", True)
    assert said(a.ask("probe", failed=[])) == ("compile", False)


def test_probe_by_all_workers_reads_the_store_once(
    host: Callable[..., Host], far: FarStore
) -> None:
    far.create(entry_name(KEY), entry())
    far.open.clear()
    h = host(workers=(0, 1, 2))
    futures = [worker.ask("probe", failed=[]) for worker in h.workers.values()]
    far.open.set()
    assert [said(future) for future in futures] == [("node", DIGEST)] * 3
    assert far.reads() == 1


def test_probe_after_a_failure_says_that_nothing_is_there(host: Callable[..., Host]) -> None:
    h = host()
    answer = h.workers[0].ask("probe", failed=[["node", DIGEST.hex()]])
    assert said(answer) == ("compile", False)


# A lost coordinator.


@pytest.mark.parametrize("hosts", [2, 4])
def test_lost_coordinator_lets_each_host_compile_once(
    gang: Callable[..., Gang], hosts: int
) -> None:
    g = gang(hosts, 2)
    first, *others = g.workers
    assert first.resolved() == ("compile", True)
    waiting = [worker.resolve() for worker in others]
    g.coordinator.close()
    leased = [
        future
        for future, worker in zip(waiting, others, strict=True)
        if worker.host is not first.host and worker.index % 2 == 0
    ]
    assert [said(future) for future in leased] == [("compile", True)] * (hosts - 1)
    for worker in g.workers[::2]:
        worker.publish().result(20)
    assert sorted(said(future)[0] for future in waiting) == (
        ["compile"] * (hosts - 1) + ["node"] * hosts
    )


def test_publication_while_the_coordinator_is_lost_is_answered(
    gang: Callable[..., Gang], far: FarStore
) -> None:
    g = gang(2)
    a = g.workers[0]
    assert a.resolved() == ("compile", True)
    g.coordinator.close()
    assert a.publish().result(20)["digest"] == DIGEST.hex()
    assert g.hosts[0].store.flush(20)
    assert far.get(entry_name(KEY)) == entry()


def test_hosts_that_went_alone_run_one_executable_in_the_next_attempt(
    gang: Callable[..., Gang],
) -> None:
    g = gang(2)
    g.coordinator.close()
    assert until(lambda: all(h.link is not None and h.link.lost for h in g.hosts))
    assert [worker.resolved() for worker in g.workers] == [("compile", True)] * 2
    for worker, payload in zip(g.workers, (b"one", b"another"), strict=True):
        worker.publish(payload=payload).result(20)
    assert g.hosts[0].holds() != g.hosts[1].holds()
    g.reconnect()
    for host in g.hosts:
        host.begin(2, host.index)
    assert len({worker.resolved() for worker in g.workers}) == 1
    assert g.hosts[0].holds() == g.hosts[1].holds()


# Attempts.


def test_old_question_is_never_answered_to_the_new_worker(
    host: Callable[..., Host], far: FarStore
) -> None:
    far.open.clear()
    h = host(workers=(0, 1))
    old = list(h.workers.values())
    asked = [worker.resolve() for worker in old]
    assert far.reading.wait(20)
    a, b = h.begin(2, 0, 1)
    far.open.set()
    assert a.resolved() == ("compile", True)
    waiting = b.resolve()
    a.publish().result(20)
    assert said(waiting) == ("node", DIGEST)
    assert ([f.done() for f in asked], a.unknown, b.unknown) == ([False, False], [], [])


def test_late_read_of_an_old_attempt_does_not_let_go_of_the_new_lease(
    gang: Callable[..., Gang], far: FarStore
) -> None:
    g = gang(2)
    far.open.clear()
    g.workers[0].resolve()
    assert far.reading.wait(20)
    far.reading.clear()
    (a,) = g.hosts[0].begin(2, 0)
    (b,) = g.hosts[1].begin(2, 1)
    asked = a.resolve()
    assert far.reading.wait(20)
    far.open.set()
    assert said(asked) == ("compile", True)
    waiting = b.resolve()
    a.publish().result(20)
    assert said(waiting) == ("node", DIGEST)


def test_end_of_an_old_worker_does_not_touch_the_new_one(host: Callable[..., Host]) -> None:
    h = host()
    a, b = h.begin(2, 0, 1)
    assert a.resolved() == ("compile", True)
    waiting = b.resolve()
    h.cache.gone(0, attempt=1)
    a.publish().result(20)
    assert said(waiting) == ("node", DIGEST)


def test_late_word_of_an_old_attempt_changes_nothing(
    host: Callable[..., Host], far: FarStore
) -> None:
    h = host()
    a, b = h.begin(3, 0, 1)
    assert a.resolved() == ("compile", True)
    waiting = b.resolve()
    h.cache.read_ahead(2, ["jit_old-" + "0" * 64])
    h.cache.begin(2, {})
    a.publish().result(20)
    assert said(waiting) == ("node", DIGEST)
    assert far.reads("jit_old-" + "0" * 64) == 0


def test_question_before_the_attempt_names_its_workers_holds_nothing_afterwards(
    host: Callable[..., Host],
) -> None:
    h = host()
    old = h.workers[0]
    h.cache.read_ahead(2, [])
    assert old.resolved() == ("compile", True)
    (new,) = h.begin(2, 0)
    assert new.resolved() == ("compile", True)


@pytest.mark.parametrize("seed", range(30))
def test_gang_disturbed_at_random_resolves_everything_in_the_next_attempt(
    gang: Callable[..., Gang], far: FarStore, seed: int
) -> None:
    draw = random.Random(seed)
    g = gang(2, 3)
    keys = [f"jit_{i}-" + "0" * 64 for i in range(4)]
    far.create(entry_name(keys[0]), entry(keys[0]))
    for attempt in range(2, 5):
        for worker in g.workers:
            for key in draw.sample(keys, 2):
                worker.resolve(key)
        for h in draw.sample(g.hosts, len(g.hosts)):
            for index in draw.sample(list(h.workers), draw.randrange(3)):
                h.cache.gone(index, attempt - 1)
            if draw.random() < 0.5:
                h.cache.read_ahead(attempt, keys)
        old = g.workers
        for h in draw.sample(g.hosts, len(g.hosts)):
            h.begin(attempt, *h.workers)
            if draw.random() < 0.5:
                h.cache.read_ahead(attempt, keys)
    for key in keys:
        results = all_get(g.workers, key)
        assert (results["compiled"], results["node"]) == ((0, 6) if key == keys[0] else (1, 5))
    assert [worker.unknown for worker in [*old, *g.workers]] == [[]] * 12


# Two clusters.


def test_two_clusters_on_one_store_compile_once(tmp_path: Path, far: FarStore) -> None:
    hosts = [
        Host(
            tmp_path / str(i),
            far,
            workers=(0, 1),
            leases=StoreLeases(far, ttl_s=5.0, first_poll_s=0.01),
        )
        for i in range(2)
    ]
    try:
        workers = [worker for h in hosts for worker in h.workers.values()]
        assert all_get(workers) == Counter(compiled=1, node=3)
        assert all(h.store.flush(20) for h in hosts)
        assert until(lambda: not list(far.list("leases/")))
    finally:
        for h in hosts:
            h.close()


def test_two_clusters_of_two_hosts_on_one_store_compile_once(tmp_path: Path, far: FarStore) -> None:
    gangs = [
        Gang(
            tmp_path / str(i),
            far,
            2,
            2,
            make_leases=lambda: StoreLeases(far, ttl_s=5.0, first_poll_s=0.01),
        )
        for i in range(2)
    ]
    try:
        assert all_get([w for g in gangs for w in g.workers]) == Counter(compiled=1, node=7)
        assert all(h.store.flush(20) for g in gangs for h in g.hosts)
        assert (far.creates[entry_name(KEY)], sum(g.handed.total() for g in gangs)) == (1, 2)
        assert until(lambda: not list(far.list("leases/")))
    finally:
        for g in gangs:
            g.close()


def test_worker_of_one_cluster_that_dies_lets_the_other_compile(
    tmp_path: Path, far: FarStore
) -> None:
    a, b = (
        Host(tmp_path / str(i), far, leases=StoreLeases(far, ttl_s=30.0, first_poll_s=0.01))
        for i in range(2)
    )
    try:
        assert a.workers[0].resolved() == ("compile", True)
        waiting = b.workers[0].resolve()
        a.cache.gone(0)
        assert said(waiting) == ("compile", True)
    finally:
        a.close()
        b.close()


def test_wait_for_another_cluster_ends_with_the_attempt(tmp_path: Path, far: FarStore) -> None:
    a, b = (
        Host(tmp_path / str(i), far, leases=StoreLeases(far, ttl_s=30.0, first_poll_s=0.01))
        for i in range(2)
    )
    before = _threads("hotstart-resolve")
    try:
        assert a.workers[0].resolved() == ("compile", True)
        b.workers[0].resolve()
        assert until(lambda: far.reads() == 2)
        b.close()
        assert until(lambda: _threads("hotstart-resolve") <= before + 1)
    finally:
        a.close()


# Hygiene.


def test_closed_gang_leaves_no_thread_behind(gang: Callable[..., Gang]) -> None:
    before = set(threading.enumerate())
    g = gang(2, 2)
    all_get(g.workers)
    g.workers[0].ask("flush", timeout_s=60.0)
    g.close()
    assert until(lambda: not {t for t in threading.enumerate() if t not in before})


def test_question_that_is_no_message_is_answered_all_the_same(host: Callable[..., Host]) -> None:
    worker: Worker = host().workers[0]
    assert said(worker.ask("resolve")) == ("compile", False)  # without "failed"


def _threads(prefix: str) -> int:
    return sum(t.name.startswith(prefix) for t in threading.enumerate())
