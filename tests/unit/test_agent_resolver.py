"""Workers' caches on their agents' host caches, over real channels."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from hotstart.cache.config import CacheConfig
from hotstart.cache.counters import Counters
from hotstart.cache.directory import DirectoryStore
from hotstart.cache.entry import EntryMeta, entry_digest, entry_name
from hotstart.cache.errors import CacheRequired, StoreError
from hotstart.cache.resolve import Compile, InNode, InStore
from hotstart.cache.shared import SharedCache, Tiers
from hotstart.launcher.agent_resolver import AgentResolver
from hotstart.launcher.channel import Channel
from tests.support.host_lab import KEY, FarStore, Gang, Host, entry, flipped, until
from tests.support.memory_store import MemoryStore

pytestmark = pytest.mark.unit

DIGEST = entry_digest(entry())
PATIENCE_S = 20.0


class FullDisk(DirectoryStore):
    """A node directory that takes nothing more."""

    def create(self, name: str, data: bytes) -> bool:
        raise StoreError("cannot create: no space left on device")


class Process:
    """One worker: a cache whose agent is at the other end of a channel."""

    def __init__(self, host: Host, index: int) -> None:
        ours, theirs = socket.socketpair()
        self.agents_end, self._workers_end = Channel(ours), Channel(theirs)
        self.index = index
        self.waits = 0
        self.compiled = 0
        self.resolver = AgentResolver(self._workers_end, self._note_wait)
        self.counters = Counters()
        assert host.far is not None
        self.cache = SharedCache(Tiers(host.far, host.store.near), self.counters, self.resolver)
        self._threads = [
            threading.Thread(target=self._hear, daemon=True),
            threading.Thread(target=self._serve, args=(host,), daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def get(self, key: str = KEY, *, stores: bool = True) -> bytes:
        """The executable that JAX would run in the end, as `Serving` sees to it."""
        try:
            found = self.cache.get(key)
            if found is not None:
                return bytes(found.payload)
            self.compiled += 1
            own = b"executable of %d" % self.index
            if stores and self.cache.put(key, own, EntryMeta()):
                superseding = self.cache.get(key)
                assert superseding is not None
                return bytes(superseding.payload)
            return own
        finally:
            self.cache.done(key)

    def close(self) -> None:
        self._workers_end.close()
        self.agents_end.close()
        for thread in self._threads:
            thread.join(PATIENCE_S)

    def _note_wait(self) -> None:
        self.waits += 1

    def _hear(self) -> None:
        for message in self._workers_end:
            self.resolver.answered(message)

    def _serve(self, host: Host) -> None:
        for message in self.agents_end:
            host.cache.ask(self.index, message)


@pytest.fixture
def far() -> FarStore:
    return FarStore()


Start = Callable[..., list[Process]]


@pytest.fixture
def start(tmp_path: Path, far: FarStore) -> Iterator[Start]:
    """Start a gang's processes: hosts times workers."""
    with contextlib.ExitStack() as stack:

        def make(hosts: int = 1, workers: int = 1, **how: Any) -> list[Process]:
            gang = Gang(tmp_path, far, hosts, workers, **how)
            stack.callback(gang.close)
            processes = []
            for host in gang.hosts:
                of_host = [Process(host, index) for index in host.workers]
                processes += of_host
                host.cache.begin(2, {p.index: p.agents_end.send for p in of_host})
            for process in processes:
                stack.callback(process.close)
            return processes

        yield make


def together(processes: list[Process], run: Callable[[Process], Any]) -> list[Any]:
    with ThreadPoolExecutor(len(processes)) as pool:
        return [f.result(PATIENCE_S) for f in [pool.submit(run, p) for p in processes]]


@pytest.mark.parametrize("spread", [(1, 6), (2, 3)])
def test_gang_cold_runs_one_executable_that_one_process_compiled(
    start: Start, far: FarStore, spread: tuple[int, int]
) -> None:
    processes = start(*spread)
    keys = [f"jit_{i}-" + "0" * 64 for i in range(10)]
    for key in keys:
        assert len(set(together(processes, lambda p, key=key: p.get(key)))) == 1  # type: ignore[misc]
    assert sum(p.compiled for p in processes) == 10
    assert together(processes, lambda p: p.cache.flush(PATIENCE_S)) == [True] * 6
    assert Counter(far.creates.values()) == Counter({1: 10})
    assert [far.reads(key) for key in keys] == [1] * 10
    assert sum(p.counters.snapshot().errors for p in processes) == 0


@pytest.mark.parametrize("spread", [(1, 6), (3, 2)])
def test_gang_warm_reads_each_entry_once_and_compiles_nothing(
    start: Start, far: FarStore, spread: tuple[int, int]
) -> None:
    keys = [f"jit_{i}-" + "0" * 64 for i in range(10)]
    for key in keys:
        far.create(entry_name(key), entry(key))
    processes = start(*spread)
    for key in keys:
        assert together(processes, lambda p, key=key: p.get(key)) == [b"executable"] * 6  # type: ignore[misc]
    assert [far.reads(key) for key in keys] == [1] * 10
    assert sum(p.compiled for p in processes) == 0


@pytest.mark.parametrize("spread", [(1, 4), (2, 2)])
def test_program_that_is_not_stored_is_compiled_by_all_without_waiting_in_turn(
    start: Start, spread: tuple[int, int]
) -> None:
    processes = start(*spread)
    together(processes, lambda p: p.get(stores=False))
    assert [p.compiled for p in processes] == [1] * 4


def test_unleased_compilations_run_the_first_published_executable(start: Start) -> None:
    processes = start(2, 2)
    first, *others = processes
    assert first.cache.get(KEY) is None
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(p.cache.get, KEY) for p in others]
        first.cache.done(KEY)
        assert [f.result(PATIENCE_S) for f in waiting] == [None] * 3
    executables = []
    for process in others:
        own = b"executable of %d" % process.index
        superseded = process.cache.put(KEY, own, EntryMeta())
        found = process.cache.get(KEY) if superseded else None
        executables.append(own if found is None else bytes(found.payload))
        process.cache.done(KEY)
    assert executables == [b"executable of 1"] * 3
    assert first.get() == b"executable of 1"


def test_unleased_compilation_without_room_in_the_node_directory_runs_the_gangs_executable(
    start: Start, far: FarStore, tmp_path: Path
) -> None:
    first, second, third = start(1, 3)
    assert first.cache.get(KEY) is None
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(p.cache.get, KEY) for p in (second, third)]
        first.cache.done(KEY)
        assert [f.result(PATIENCE_S) for f in waiting] == [None] * 2
    assert second.cache.put(KEY, b"executable of 1", EntryMeta()) is False
    assert second.cache.flush(PATIENCE_S)
    third.cache = SharedCache(
        Tiers(far, FullDisk(tmp_path / "near0")), third.counters, third.resolver
    )
    assert third.cache.put(KEY, b"executable of 2", EntryMeta()) is True
    found = third.cache.get(KEY)
    assert found is not None
    assert bytes(found.payload) == b"executable of 1"


def test_torn_entry_in_the_node_directory_is_replaced_by_what_is_compiled(
    start: Start, far: FarStore, tmp_path: Path
) -> None:
    (process,) = start(1, 1)
    path = tmp_path / "near0" / entry_name(KEY)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(entry()[:20])
    assert process.get() == b"executable of 0"
    assert process.cache.flush(PATIENCE_S)
    assert far.get(entry_name(KEY)) == path.read_bytes() == entry(KEY, b"executable of 0")


def test_flipped_byte_in_the_node_directory_is_repaired_for_all(
    start: Start, far: FarStore, tmp_path: Path
) -> None:
    far.create(entry_name(KEY), entry())
    processes = start(1, 4)
    folder = tmp_path / "near0" / entry_name(KEY)
    folder.parent.mkdir(parents=True)
    folder.write_bytes(flipped(entry()))
    assert together(processes, lambda p: p.get()) == [b"executable"] * 4
    assert (far.reads(), folder.read_bytes()) == (1, entry())


def test_worker_that_cannot_read_its_node_directory_reads_the_store(
    start: Start, far: FarStore
) -> None:
    far.create(entry_name(KEY), entry())
    a, b = start(1, 2)
    a.cache._node = MemoryStore()  # never has what the agent has put into its own
    assert (a.get(), b.get()) == (b"executable", b"executable")
    assert (a.compiled, b.compiled, far.get(entry_name(KEY))) == (0, 0, entry())


def test_entry_that_jax_cannot_load_is_compiled_anew_and_replaced(
    start: Start, far: FarStore
) -> None:
    far.create(entry_name(KEY), entry())
    (process,) = start()
    found = process.cache.get(KEY)
    assert found is not None
    process.cache.failed(KEY, found)
    assert process.get() == b"executable of 0"
    assert process.cache.flush(PATIENCE_S)
    stored = far.get(entry_name(KEY))
    assert stored is not None
    assert stored.endswith(b"executable of 0")


def test_waiting_is_noted_only_where_somebody_else_resolves(start: Start, far: FarStore) -> None:
    a, b = start(1, 2)
    assert a.cache.get(KEY) is None
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(b.get)
        assert until(lambda: bool(b.resolver._open))
        a.cache.put(KEY, b"executable of 0", EntryMeta())
        assert waiting.result(PATIENCE_S) == b"executable of 0"
    assert a.waits == 0


def test_probe_and_ahead_say_where_an_entry_is(start: Start, far: FarStore) -> None:
    (process,) = start()
    absent = "jit_absent-" + "0" * 64
    assert process.resolver.probe(absent) == Compile(False)
    assert process.resolver.ahead(absent) == Compile(False)
    far.create(entry_name(KEY), entry())
    assert process.resolver.probe(KEY) == InNode(DIGEST)
    assert process.resolver.ahead(KEY) == InNode(DIGEST)
    assert process.resolver.probe(KEY, (InNode(DIGEST),)) == Compile(False)
    assert process.resolver.ahead(KEY, (InNode(DIGEST),)) == Compile(False)


def test_probe_of_the_cache_takes_no_lease(start: Start) -> None:
    a, b = start(1, 2)
    assert a.cache.probe(KEY) is None
    assert b.get() == b"executable of 1"


def test_store_that_is_down_is_required_in_strict_mode(start: Start, far: FarStore) -> None:
    far.fail()
    (process,) = start(config=CacheConfig("memory://far", strict=True))
    with pytest.raises(CacheRequired, match="503 from the far store"):
        process.cache.get(KEY)
    with pytest.raises(CacheRequired, match="503 from the far store"):
        process.resolver.probe(KEY)


def test_flush_without_an_answer_ends_at_its_timeout() -> None:
    ours, theirs = socket.socketpair()
    resolver = AgentResolver(Channel(theirs), flush_slack_s=0.0)
    assert resolver.flush(0.05) is False
    ours.close()
    theirs.close()


def test_answer_to_no_open_question_is_dropped(start: Start) -> None:
    (process,) = start()
    process.resolver.answered({"request": 99, "answer": "node", "digest": "00"})
    assert process.resolver.probe(KEY) == Compile(False)


def test_planned_is_what_the_agent_sends() -> None:
    ours, theirs = socket.socketpair()
    agents_end, resolver = Channel(ours), AgentResolver(Channel(theirs))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(resolver.planned)
        message = next(iter(agents_end))
        assert message == {"request": 1, "ask": "planned"}
        resolver.answered({"request": 1, "planned": [{"key": KEY}]})
        assert waiting.result(PATIENCE_S) == [{"key": KEY}]
    ours.close()
    theirs.close()


def test_store_answer_names_the_digest(start: Start) -> None:
    ours, theirs = socket.socketpair()
    agents_end, resolver = Channel(ours), AgentResolver(Channel(theirs))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(resolver.resolve, KEY, (InNode(DIGEST), InStore(None)))
        message = next(iter(agents_end))
        assert message["failed"] == [["node", DIGEST.hex()], ["store", None]]
        resolver.answered({"request": 1, "answer": "store", "digest": DIGEST.hex()})
        assert waiting.result(PATIENCE_S) == InStore(DIGEST)
    ours.close()
    theirs.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_forked_child_goes_its_own_way(start: Start, far: FarStore) -> None:
    far.create(entry_name(KEY), entry())
    (process,) = start()
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            process.cache.forget_locks()
            found = process.cache.get(KEY)
            os.write(write, bytes(found.payload) if found else b"nothing")
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(read, 100) == b"executable"
    os.close(read)
    os.close(write)
    assert process.get() == b"executable"
