"""With a signing key, what is not signed is not there: for a process's cache and for an agent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hotstart.cache.config import CacheConfig
from hotstart.cache.counters import CacheStats, Counters
from hotstart.cache.directory import DirectoryStore
from hotstart.cache.entry import EntryMeta, decode, encode, entry_digest, entry_name
from hotstart.cache.errors import AccessDenied
from hotstart.cache.shared import SharedCache, Tiers
from hotstart.cache.signing import SIGNATURE_BYTES, UNSEALED, Key, Keyring, Seal
from hotstart.launcher.host_store import HostStats, HostStore
from tests.support.host_lab import PATIENCE_S, FarStore, Host
from tests.support.memory_store import MemoryStore

pytestmark = pytest.mark.unit

PLACE = "gs://bucket/cache"
KEY, OTHER_KEY = "jit_step-" + "ab" * 32, "jit_step-" + "cd" * 32
NAME = entry_name(KEY)
META = EntryMeta(writer="host/1")
SEAL = Seal(Keyring((Key(b"\x01" * 32),)), PLACE)
FOREIGN = Seal(Keyring((Key(b"\x02" * 32),)), PLACE)


def entry(seal: Seal = SEAL, payload: bytes = b"stored", key: str = KEY) -> bytes:
    return encode(key, payload, META, seal)


REFUSED: dict[str, tuple[bytes, dict[str, int]]] = {
    "unsigned": (entry(UNSEALED), {"unsigned": 1}),
    "stripped": (entry()[:-SIGNATURE_BYTES], {"unsigned": 1}),
    "foreign": (entry(FOREIGN), {"bad_signature": 1}),
    "of another key": (entry(key=OTHER_KEY), {"bad_signature": 1}),
    "cut short": (entry()[:-1], {"errors": 1}),
}
EACH = pytest.mark.parametrize(("data", "counted"), REFUSED.values(), ids=REFUSED)


class NotedStore(FarStore):
    """Notes what would change it, and lets nobody delete where told."""

    def __init__(self) -> None:
        super().__init__()
        self.changes: list[str] = []
        self.may_delete = True

    def create(self, name: str, data: bytes) -> bool:
        self.changes.append(f"create {name}")
        return super().create(name, data)

    def delete(self, name: str, generation: int) -> bool:
        self.changes.append(f"delete {name}")
        if not self.may_delete:
            raise AccessDenied("HTTP 403")
        return super().delete(name, generation)

    def fill(self, name: str, data: bytes) -> None:
        MemoryStore.create(self, name, data)


class Process:
    """The cache of one process on a store, without an agent."""

    def __init__(self, store: MemoryStore, *, seal: Seal = SEAL, **settings: Any) -> None:
        self.counters = Counters()
        self.node = MemoryStore("memory://node")
        self.cache = SharedCache(Tiers(store, self.node), self.counters, seal=seal, **settings)

    def get(self) -> bytes | None:
        found = self.cache.get(KEY)
        assert self.cache.flush(PATIENCE_S)
        return None if found is None else bytes(found.payload)

    def put(self) -> bool:
        self.cache.put(KEY, b"compiled here", META)
        return self.cache.flush(PATIENCE_S)


# One process's cache.


@EACH
def test_cache_refused_entry_is_a_miss_counted_apart_and_repaired_for_others(data, counted):
    store = NotedStore()
    store.fill(NAME, data)
    process = Process(store)

    assert process.get() is None
    assert process.counters.snapshot() == CacheStats(read_bytes=len(data), **counted)
    assert process.put() is True

    assert store.get(NAME) == entry(payload=b"compiled here")
    assert Process(store).get() == b"compiled here"


@EACH
def test_cache_refused_entry_of_the_node_directory_is_read_again_from_the_store(data, counted):
    store = NotedStore()
    store.fill(NAME, entry())
    process = Process(store)
    process.node.create(NAME, data)

    assert process.get() == b"stored"

    assert process.node.get(NAME) == entry()
    assert process.counters.snapshot() == CacheStats(read_bytes=len(entry()), **counted)


@EACH
def test_cache_that_is_read_only_leaves_a_refused_entry_alone(data, counted):
    store = NotedStore()
    store.fill(NAME, data)
    process = Process(store, writable=False)

    assert process.get() is None
    process.put()

    assert store.changes == []
    assert process.get() == b"compiled here"  # from its node directory


@EACH
def test_cache_of_a_role_that_may_not_delete_repairs_under_another_name(data, counted):
    store = NotedStore()
    store.fill(NAME, data)
    store.may_delete = False
    process = Process(store)

    assert process.get() is None
    assert process.put() is True

    assert store.get(NAME) == data
    assert store.get(f"{NAME}~1") == entry(payload=b"compiled here")
    assert Process(store).get() == b"compiled here"


def test_cache_without_a_key_reads_what_is_signed_and_writes_unsigned():
    store = NotedStore()
    store.fill(NAME, entry())
    process = Process(store, seal=UNSEALED)

    assert process.get() == b"stored"
    assert process.counters.snapshot() == CacheStats(read_bytes=len(entry()))

    other = NotedStore()
    assert Process(other, seal=UNSEALED).put() is True
    assert other.get(NAME) == entry(UNSEALED, b"compiled here")


# An agent.


@pytest.fixture
def far() -> NotedStore:
    return NotedStore()


@pytest.fixture
def host_store(tmp_path: Path, far: NotedStore) -> Iterator[Callable[..., HostStore]]:
    made: list[HostStore] = []

    def make(mode: str = "read-write", seal: Seal = SEAL) -> HostStore:
        near = DirectoryStore(tmp_path / f"near{len(made)}")
        config = CacheConfig(PLACE, mode=mode)  # type: ignore[arg-type]
        made.append(HostStore(config, near, far, seal=seal))
        return made[-1]

    yield make
    for store in made:
        store.close()


@EACH
def test_agent_refused_entry_is_counted_apart_and_the_next_upload_replaces_it(
    host_store, far, data, counted
):
    far.fill(NAME, data)
    store = host_store()

    assert store.read_far(KEY) is None
    assert store.stats() == HostStats(reads=1, read_bytes=len(data), **counted)
    store.near.create(NAME, entry(payload=b"compiled here"))
    store.upload(KEY)
    assert store.flush(PATIENCE_S)

    assert far.get(NAME) == entry(payload=b"compiled here")
    assert host_store().read_far(KEY)[1] == entry(payload=b"compiled here")


def test_agent_of_a_role_that_may_not_delete_uploads_under_another_name(host_store, far):
    far.fill(NAME, entry(UNSEALED))
    far.may_delete = False
    store = host_store()
    assert store.read_far(KEY) is None
    store.near.create(NAME, entry(payload=b"compiled here"))

    store.upload(KEY)

    assert store.flush(PATIENCE_S)
    assert far.get(f"{NAME}~1") == entry(payload=b"compiled here")
    assert list(store.near.list("pending/")) == []
    another = host_store()
    assert another.read_far(KEY)[1] == entry(payload=b"compiled here")
    assert another.stats().unsigned == 1


def test_agent_does_not_upload_what_an_agent_without_a_key_has_left(host_store, far):
    store = host_store()
    store.near.create(NAME, entry(UNSEALED))
    store.near.create(f"pending/{NAME}", KEY.encode())

    store.resume_uploads()

    assert store.flush(PATIENCE_S) is False
    assert far.changes == []
    assert list(store.near.list("pending/")) == []


@EACH
def test_agent_refuses_what_another_host_hands_over_as_it_does_the_stores(
    tmp_path, far, data, counted
):
    host = Host(tmp_path, far, seal=SEAL, peers=lambda host, key, digest: data)
    try:
        digest = entry_digest(entry())
        assert host.upstream._sources.fetch(1, KEY, digest) is None
        assert host.store.stats() == HostStats(**counted)
    finally:
        host.close()


@EACH
def test_agent_that_is_read_only_writes_nothing_whatever_it_finds(tmp_path, far, data, counted):
    far.fill(NAME, data)
    config = CacheConfig(PLACE, mode="read-only")
    host = Host(tmp_path, far, config=config, seal=SEAL)
    try:
        assert host.workers[0].get(KEY) == "compiled"
        host.begin(2, 0)
        host.cache.read_ahead(2, [KEY, OTHER_KEY])
        assert host.workers[0].get(OTHER_KEY) == "compiled"
        assert host.store.flush(PATIENCE_S)
        assert far.changes == []
    finally:
        host.close()


def test_agent_keeps_a_signed_entry_in_place_of_the_same_one_unsigned(host_store):
    store = host_store()
    store.near.create(NAME, entry(UNSEALED))

    assert store.keep(KEY, entry()) is True

    data = store.near.get(NAME)
    assert data == entry()
    assert bytes(decode(KEY, data, SEAL).payload) == b"stored"
