"""Hosts with their agents' caches, and workers that speak to them, without processes."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from hotstart.cache.config import CacheConfig
from hotstart.cache.directory import DirectoryStore
from hotstart.cache.entry import EntryMeta, encode, entry_digest, entry_name
from hotstart.cache.errors import StoreError, TransientError
from hotstart.cache.guarded import GuardedStore
from hotstart.cache.leases import StoreLeases
from hotstart.launcher.coordinator import Coordinator
from hotstart.launcher.coordinator_link import CoordinatorLink
from hotstart.launcher.coordinator_session import RECONNECT_S
from hotstart.launcher.host_cache import HostCache
from hotstart.launcher.host_store import HostStore
from hotstart.launcher.upstream import Upstream
from tests.support.memory_store import MemoryStore

PATIENCE_S = 20.0
KEY = "jit_step-" + "0123456789abcdef" * 4


def entry(key: str = KEY, payload: bytes = b"executable") -> bytes:
    """The bytes of a sound entry."""
    return encode(key, payload, EntryMeta())


def flipped(data: bytes) -> bytes:
    """The same with one bit of its payload flipped."""
    return data[:-1] + bytes([data[-1] ^ 1])


class FarStore(MemoryStore):
    """Counts what is asked of entries; `error` fails everything, `open` holds reads back."""

    def __init__(self) -> None:
        super().__init__("memory://far")
        self.gets: Counter[str] = Counter()
        self.creates: Counter[str] = Counter()
        self.error: StoreError | None = None
        self.open = threading.Event()
        self.open.set()
        self.reading = threading.Event()

    def get(self, name: str) -> bytes | None:
        if name.startswith("entries/"):
            self.gets[name] += 1
            self.reading.set()
            assert self.open.wait(PATIENCE_S)
        self._check()
        return super().get(name)

    def create(self, name: str, data: bytes) -> bool:
        if name.startswith("entries/"):
            self.creates[name] += 1
        self._check()
        return super().create(name, data)

    def fail(self) -> None:
        self.error = TransientError("503 from the far store")

    def reads(self, key: str = KEY) -> int:
        return self.gets[entry_name(key)]

    def _check(self) -> None:
        if self.error is not None:
            raise self.error


class Worker:
    """What a worker says to its agent; each answer is a future's result."""

    def __init__(self, host: Host, index: int) -> None:
        self.host = host
        self.index = index
        self.compiled: list[str] = []
        self.unknown: list[dict[str, Any]] = []  # answers to what this worker never asked
        self._numbers = itertools.count(1)
        self._open: dict[int, Future[dict[str, Any]]] = {}

    def send(self, message: dict[str, Any]) -> None:
        future = self._open.pop(message["request"], None)
        if future is None:
            self.unknown.append(message)
        else:
            future.set_result(message)

    def ask(self, ask: str, key: str = KEY, **fields: Any) -> Future[dict[str, Any]]:
        number = next(self._numbers)
        self._open[number] = future = Future()
        message = {"request": number, "ask": ask, "key": key, **fields}
        self.host.cache.ask(self.index, message)
        return future

    def resolve(self, key: str = KEY, failed: list[Any] | None = None) -> Future[dict[str, Any]]:
        return self.ask("resolve", key, failed=failed or [])

    def resolved(self, key: str = KEY, failed: list[Any] | None = None) -> tuple[Any, ...]:
        """The answer, without what is only for counters."""
        return said(self.resolve(key, failed))

    def publish(
        self, key: str = KEY, payload: bytes = b"executable", in_node: bool = True
    ) -> Future[dict[str, Any]]:
        """Leave an entry in the node directory, or in the store, and say so."""
        data = entry(key, payload)
        store = self.host.store.near if in_node else self.host.far
        assert store is not None
        store.create(entry_name(key), data)
        fields = {"digest": entry_digest(data).hex(), "size_bytes": len(data), "in_node": in_node}
        return self.ask("publish", key, **fields)

    def release(self, key: str = KEY) -> None:
        self.host.cache.ask(self.index, {"ask": "release", "key": key})

    def get(self, key: str = KEY, payload: bytes = b"executable") -> str:
        """As JAX does: read it where that is possible, else compile and publish it."""
        failed: list[Any] = []
        for _ in range(32):
            answer = self.resolve(key, failed).result(PATIENCE_S)
            if answer["answer"] == "compile":
                self.compiled.append(key)
                self.publish(key, payload).result(PATIENCE_S)
                return "compiled"
            tier = self.host.store.near if answer["answer"] == "node" else self.host.far
            assert tier is not None
            data = tier.get(entry_name(key))
            if data is not None and entry_digest(data).hex() == answer["digest"]:
                return str(answer["answer"])
            failed.append([answer["answer"], answer["digest"]])
        raise AssertionError("the request does not end")


def said(future: Future[dict[str, Any]]) -> tuple[Any, ...]:
    """("node", digest), ("store", digest), ("compile", leased) or ("required",)."""
    answer = future.result(PATIENCE_S)
    match answer["answer"]:
        case "compile":
            return "compile", answer["leased"]
        case "required":
            return ("required",)
    return answer["answer"], bytes.fromhex(answer["digest"])


class Host:
    """One host's agent, and its workers."""

    def __init__(
        self,
        folder: Path,
        far: FarStore | None,
        index: int = 0,
        *,
        workers: tuple[int, ...] = (0,),
        config: CacheConfig | None = None,
        coordinator: Coordinator | None = None,
        peers: Callable[[int, str, bytes], bytes | None] = lambda host, key, digest: None,
        leases: StoreLeases | None = None,
        near: DirectoryStore | None = None,
        begin: bool = True,
        way: Callable[[Coordinator], tuple[str, int]] = lambda coordinator: coordinator.address,
        reconnect_s: float = RECONNECT_S,
        **store: Any,
    ) -> None:
        self._way = way
        self._reconnect_s = reconnect_s
        self.far = far
        self.index = index
        near = near or DirectoryStore(folder / f"near{index}")
        guarded = None if far is None else GuardedStore(far)
        self.store = HostStore(config or CacheConfig("memory://far"), near, guarded, **store)
        self.upstream = Upstream(self.store, index, peers, leases)
        self.cache = HostCache(self.store, self.upstream)
        self.link: CoordinatorLink | None = None
        if coordinator is not None:
            self.connect(coordinator)
        self.workers: dict[int, Worker] = {}
        if begin:
            self.begin(1, *workers)

    def connect(self, coordinator: Coordinator) -> None:
        """Resolve with the other hosts of this coordinator, by the way there is to it."""
        answered, lost = self.upstream.answered, self.upstream.lost
        self.link = CoordinatorLink(
            self._way(coordinator), coordinator.token, self.index, answered, lost,
            reconnect_s=self._reconnect_s,
        )  # fmt: skip
        self.upstream.connect(self.link)

    def begin(self, attempt: int, *workers: int) -> list[Worker]:
        """A new attempt with these workers."""
        self.workers = {index: Worker(self, index) for index in workers}
        senders = {index: worker.send for index, worker in self.workers.items()}
        self.cache.begin(attempt, senders)
        return list(self.workers.values())

    def holds(self, key: str = KEY) -> bytes | None:
        return self.store.near.get(entry_name(key))

    def put_near(self, data: bytes, key: str = KEY) -> None:
        self.store.near.create(entry_name(key), data)

    def close(self) -> None:
        self.cache.close()
        if self.link is not None:
            self.link.close()


class Gang:
    """Hosts on one coordinator that hand entries to each other; `handed` counts what they fetch.

    `spoil` may replace what comes from a host, or raise.
    """

    def __init__(
        self,
        folder: Path,
        far: FarStore | None,
        hosts: int,
        workers: int = 1,
        make_leases: Callable[[], StoreLeases | None] = lambda: None,
        **host: Any,
    ) -> None:
        self.coordinator = Coordinator("127.0.0.1")
        self.handed: Counter[tuple[int, str]] = Counter()
        self.spoil: Callable[[int, bytes | None], bytes | None] = lambda host, data: data
        self.hosts = [
            Host(
                folder,
                far,
                index,
                workers=tuple(range(index * workers, (index + 1) * workers)),
                coordinator=self.coordinator,
                peers=self._fetch,
                leases=make_leases(),
                **host,
            )
            for index in range(hosts)
        ]

    @property
    def workers(self) -> list[Worker]:
        return [worker for host in self.hosts for worker in host.workers.values()]

    def reconnect(self) -> None:
        """Another coordinator in place of one that was lost."""
        self.coordinator = Coordinator("127.0.0.1")
        for host in self.hosts:
            host.connect(self.coordinator)

    def close(self) -> None:
        for host in self.hosts:
            host.close()
        self.coordinator.close()

    def _fetch(self, source: int, key: str, digest: bytes) -> bytes | None:
        self.handed[source, key] += 1
        return self.spoil(source, self.hosts[source].store.hand_out(key, digest))


def all_get(workers: list[Worker], key: str = KEY, same: bool = False) -> Counter[str]:
    """All at once; what each payload is differs by worker unless `same`."""
    results: Counter[str] = Counter()
    lock = threading.Lock()
    start = threading.Barrier(len(workers))

    def run(worker: Worker) -> None:
        start.wait(PATIENCE_S)
        payload = b"executable" if same else b"executable of %d" % worker.index
        result = worker.get(key, payload)
        with lock:
            results[result] += 1

    threads = [threading.Thread(target=run, args=(worker,)) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    return results


def until(condition: Callable[[], bool]) -> bool:
    """Whether it comes true within the patience of a test."""
    pause = threading.Event()
    for _ in range(int(PATIENCE_S / 0.005)):
        if condition():
            return True
        pause.wait(0.005)
    return condition()
