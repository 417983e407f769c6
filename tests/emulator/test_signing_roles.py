"""Roles of a bucket that may create or read only, with entries in it that a key refuses."""

from __future__ import annotations

import pytest

from hotstart.cache.counters import CacheStats, Counters
from hotstart.cache.entry import EntryMeta, encode, entry_name
from hotstart.cache.errors import AccessDenied
from hotstart.cache.gcs import GcsStore
from hotstart.cache.shared import SharedCache, Tiers
from hotstart.cache.signing import UNSEALED, Key, Keyring, Seal
from tests.support.gcs_proxy import Fault, GcsProxy, requests_of_entries
from tests.support.memory_store import MemoryStore

pytestmark = pytest.mark.emulator

KEY = "jit_step-" + "ab" * 32
NAME = entry_name(KEY)
PATIENCE_S = 20.0


@pytest.fixture
def seal(bucket: str) -> Seal:
    return Seal(Keyring((Key(b"\x01" * 32),)), f"{bucket}/cache")


class Role:
    """A process's cache on the bucket; `get` and `put` wait for what they leave to threads."""

    def __init__(self, url: str, seal: Seal, *, writable: bool = True) -> None:
        self.counters = Counters()
        tiers = Tiers(GcsStore(url, deadline_s=5.0), MemoryStore("memory://node"))
        self.cache = SharedCache(tiers, self.counters, seal=seal, writable=writable)

    def get(self) -> bytes | None:
        found = self.cache.get(KEY)
        assert self.cache.flush(PATIENCE_S)
        return None if found is None else bytes(found.payload)

    def put(self, payload: bytes) -> bool:
        self.cache.put(KEY, payload, EntryMeta())
        return self.cache.flush(PATIENCE_S)


def test_create_only_role_repairs_under_another_name_and_all_read_that(
    proxy: GcsProxy, bucket: str, seal: Seal
) -> None:
    store = GcsStore(f"{bucket}/cache")
    unsigned = encode(KEY, b"unsigned", EntryMeta())
    store.create(NAME, unsigned)
    proxy.reset()
    proxy.inject(Fault("status", method="DELETE", status=403, times=9))
    role = Role(f"{bucket}/cache", seal)

    assert role.get() is None
    assert role.put(b"compiled here") is True

    assert (store.get(NAME), store.get(f"{NAME}~1")) == (
        unsigned,
        encode(KEY, b"compiled here", EntryMeta(), seal),
    )
    proxy.reset()
    reader = Role(f"{bucket}/cache", seal, writable=False)
    assert reader.get() == b"compiled here"
    assert requests_of_entries(proxy) == {
        ("GET", "jit_step", 200): 1,
        ("GET", "jit_step~1", 200): 1,
    }
    stats = reader.counters.snapshot()
    assert (stats.unsigned, stats.bad_signature, stats.errors) == (1, 0, 0)


def test_create_of_a_taken_name_by_a_role_that_may_not_delete_is_no_error(
    proxy: GcsProxy, bucket: str
) -> None:
    store = GcsStore(f"{bucket}/cache", deadline_s=5.0)
    store.create("taken", b"there")
    proxy.inject(Fault("status", method="POST", status=403, times=2))

    assert store.create("taken", b"again") is False
    with pytest.raises(AccessDenied):
        store.create("free", b"new")


def test_read_only_role_sends_nothing_but_reads_whatever_it_finds(
    proxy: GcsProxy, bucket: str, seal: Seal
) -> None:
    GcsStore(f"{bucket}/cache").create(NAME, encode(KEY, b"unsigned", EntryMeta()))
    proxy.reset()
    role = Role(f"{bucket}/cache", seal, writable=False)

    assert role.get() is None
    role.put(b"compiled here")

    assert {request.method for request in proxy.requests()} == {"GET"}
    assert role.get() == b"compiled here"


def test_entry_of_another_prefix_is_refused_and_replaced(
    proxy: GcsProxy, bucket: str, seal: Seal
) -> None:
    theirs = Seal(seal.keyring, f"{bucket}/other-team")
    assert Role(f"{bucket}/other-team", theirs).put(b"theirs") is True
    copied = GcsStore(f"{bucket}/other-team").get(NAME)
    store = GcsStore(f"{bucket}/cache")
    store.create(NAME, copied)
    role = Role(f"{bucket}/cache", seal)

    assert role.get() is None
    assert role.counters.snapshot() == CacheStats(bad_signature=1, read_bytes=len(copied))
    assert role.put(b"ours") is True
    assert Role(f"{bucket}/cache", seal).get() == b"ours"
    assert Role(f"{bucket}/other-team", UNSEALED).get() == b"theirs"
