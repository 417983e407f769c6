"""One process's cache over its tiers: the order of reading, repair, and trouble."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator

import pytest

from hotstart.cache.counters import CacheStats, Counters
from hotstart.cache.entry import EntryMeta, decode, encode, entry_name, pending_name
from hotstart.cache.errors import (
    AccessDenied,
    CacheRequired,
    DeadlineExceeded,
    StoreError,
    TransientError,
)
from hotstart.cache.guarded import GuardedStore
from hotstart.cache.resolve import EachForItself
from hotstart.cache.shared import SharedCache, Tiers
from hotstart.cache.store import ObjectStat
from tests.support.memory_store import MemoryStore

pytestmark = pytest.mark.unit

KEY = "jit_step-" + "ab" * 32
NAME = entry_name(KEY)
META = EntryMeta(compile_s=2.5, jax="0.10.2", writer="host/1")
PATIENCE_S = 20.0


class SpyStore(MemoryStore):
    """A store in memory that notes each call and fails or waits when told."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.calls: list[str] = []
        self.errors: dict[str, StoreError] = {}
        self.open = threading.Event()
        self.open.set()

    def get(self, name: str) -> bytes | None:
        self._enter("get")
        return super().get(name)

    def create(self, name: str, data: bytes) -> bool:
        self._enter("create")
        assert self.open.wait(PATIENCE_S)
        return super().create(name, data)

    def delete(self, name: str, generation: int) -> bool:
        self._enter("delete")
        return super().delete(name, generation)

    def list(self, prefix: str) -> Iterator[ObjectStat]:
        self._enter("list")
        return super().list(prefix)

    def stat(self, name: str) -> ObjectStat | None:
        self._enter("stat")
        return super().stat(name)

    def bytes_of(self, name: str) -> bytes | None:
        """What is there, unnoted."""
        return super().get(name)

    def fill(self, name: str, data: bytes) -> None:
        """Put bytes there, over others if need be, unnoted."""
        found = super().stat(name)
        if found is not None:
            super().delete(name, found.generation)
        super().create(name, data)

    def _enter(self, operation: str) -> None:
        self.calls.append(operation)
        if operation in self.errors:
            raise self.errors[operation]


class Rig:
    """A cache over two stores."""

    def __init__(self, *, with_node: bool = True, **settings: bool) -> None:
        self.store = SpyStore("memory://store")
        self.node = SpyStore("memory://node")
        self.counters = Counters()
        tiers = Tiers(self.store, self.node if with_node else None)
        self.cache = SharedCache(tiers, self.counters, **settings)

    def get(self) -> tuple[str, bytes, EntryMeta] | None:
        """What `get` gives, once what it leaves for the background is done."""
        entry = self.cache.get(KEY)
        self.cache.flush(PATIENCE_S)
        return None if entry is None else (entry.key, bytes(entry.payload), entry.meta)

    def put(self, replaces: bytes | None = None) -> bool:
        """Put an entry and flush; what the flush says."""
        self.cache.put(KEY, b"compiled here", META, replaces)
        return self.cache.flush(PATIENCE_S)

    @property
    def stats(self) -> CacheStats:
        return self.counters.snapshot()


@pytest.fixture
def rig() -> Rig:
    return Rig()


def sound(payload: bytes = b"stored") -> bytes:
    return encode(KEY, payload, META)


def corrupt() -> bytes:
    data = bytearray(sound())
    data[-1] ^= 1
    return bytes(data)


# Reading


def test_get_of_nothing_is_none_and_asks_node_then_store_once(rig):
    assert rig.cache.get(KEY) is None

    assert (rig.node.calls, rig.store.calls) == (["get"], ["get"])
    assert rig.stats == CacheStats()


def test_get_pending_entry_asks_no_store(rig):
    rig.store.open.clear()
    rig.cache.put(KEY, b"compiled here", META)
    rig.node.fill(NAME, sound(b"of another"))

    entry = rig.cache.get(KEY)
    assert entry is not None
    assert (entry.payload, entry.meta) == (b"compiled here", META)
    assert "get" not in rig.node.calls + rig.store.calls

    rig.store.open.set()
    assert rig.cache.flush(PATIENCE_S)


def test_get_from_the_node_does_not_ask_the_store_or_count_bytes(rig):
    rig.node.fill(NAME, sound(b"in node"))
    rig.store.fill(NAME, sound(b"in store"))

    assert rig.get() == (KEY, b"in node", META)

    assert rig.store.calls == []
    assert rig.stats == CacheStats()


def test_get_from_the_store_is_one_request_and_fills_the_node(rig):
    rig.store.fill(NAME, sound())

    assert rig.get() == (KEY, b"stored", META)

    assert rig.store.calls == ["get"]
    assert rig.node.bytes_of(NAME) == sound()
    assert rig.stats == CacheStats(read_bytes=len(sound()))
    assert rig.get() == (KEY, b"stored", META)
    assert rig.store.calls == ["get"]


def test_get_from_the_store_does_not_wait_for_a_slow_node(rig):
    rig.store.fill(NAME, sound())
    rig.node.open.clear()

    assert [rig.cache.get(KEY).payload for _ in range(2)] == [b"stored", b"stored"]

    assert rig.store.calls == ["get"]
    rig.node.open.set()
    assert rig.cache.flush(PATIENCE_S) is True
    assert rig.node.bytes_of(NAME) == sound()
    assert rig.store.calls == ["get"]


def test_get_without_a_node_reads_the_store_each_time():
    rig = Rig(with_node=False)
    rig.store.fill(NAME, sound())

    assert [rig.cache.get(KEY).payload for _ in range(2)] == [b"stored", b"stored"]
    assert rig.store.calls == ["get", "get"]


# Writing


def test_put_returns_while_the_store_is_slow_and_flush_says_so(rig):
    rig.store.open.clear()

    rig.cache.put(KEY, b"compiled here", META)

    assert rig.cache.flush(0.05) is False
    rig.store.open.set()
    assert rig.cache.flush(PATIENCE_S) is True
    assert rig.store.bytes_of(NAME) == sound(b"compiled here")


def test_put_makes_one_create_a_tier_and_counts_the_stores_bytes(rig):
    rig.put()

    assert (rig.node.calls, rig.store.calls) == (["create"], ["create"])
    assert rig.store.bytes_of(NAME) == sound(b"compiled here")
    assert rig.node.bytes_of(NAME) == rig.store.bytes_of(NAME)
    assert rig.stats == CacheStats(written_bytes=len(sound(b"compiled here")))


class Naming(SpyStore):
    """Notes the names of what is created."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.created: list[str] = []

    def create(self, name: str, data: bytes) -> bool:
        self.created.append(name)
        return super().create(name, data)


class WithAgent(EachForItself):
    """Publishes for nobody; an agent would upload it."""

    has_agent = True


@pytest.mark.parametrize("writable,marks", [(True, [pending_name(KEY)]), (False, [])])
def test_put_with_an_agent_marks_the_entry_before_it_is_there(writable, marks):
    node, store = Naming("memory://node"), SpyStore("memory://store")
    cache = SharedCache(Tiers(store, node), Counters(), WithAgent(), writable=writable)

    cache.put(KEY, b"compiled here", META)

    assert cache.flush(PATIENCE_S)
    assert (node.created, store.calls) == ([*marks, NAME], [])
    assert [node.bytes_of(name) for name in marks] == [KEY.encode()] * len(marks)


def test_put_with_an_agent_into_a_directory_that_is_the_location_marks_nothing():
    store = Naming("memory://store")
    cache = SharedCache(Tiers(store, store), Counters(), WithAgent())

    cache.put(KEY, b"compiled here", META)

    assert cache.flush(PATIENCE_S)
    assert store.created == [NAME]


def test_put_after_another_writer_keeps_theirs_and_counts_no_bytes(rig):
    rig.store.fill(NAME, sound(b"theirs"))

    rig.put()

    assert rig.store.bytes_of(NAME) == sound(b"theirs")
    assert rig.store.calls == ["create"]
    assert rig.stats == CacheStats()


def test_read_only_put_fills_the_node_and_sends_the_store_nothing():
    rig = Rig(writable=False)

    rig.put()

    assert rig.store.calls == []
    assert decode(KEY, rig.node.bytes_of(NAME)).payload == b"compiled here"


def test_read_only_get_fills_the_node():
    rig = Rig(writable=False)
    rig.store.fill(NAME, sound())

    assert rig.get() == (KEY, b"stored", META)

    assert rig.node.bytes_of(NAME) == sound()
    assert rig.store.calls == ["get"]


def test_read_only_bad_entry_of_the_store_is_left_there_and_shadowed_by_the_node():
    rig = Rig(writable=False)
    rig.store.fill(NAME, corrupt())
    assert rig.cache.get(KEY) is None

    rig.put()

    assert rig.store.calls == ["get", "get"]  # where it belongs, and where a replacement would be
    assert rig.store.bytes_of(NAME) == corrupt()
    assert rig.cache.get(KEY).payload == b"compiled here"


# Repair

BAD = {
    "corrupt": corrupt(),
    "truncated": sound()[:-3],
    "empty": b"",
    "garbage": b"garbage" * 20,
    "of another key": encode("jit_other-" + "cd" * 32, b"other", META),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_bad_node_entry_is_dropped_and_read_again_from_the_store(rig, caplog, bad):
    rig.node.fill(NAME, bad)
    rig.store.fill(NAME, sound())

    assert rig.get() == (KEY, b"stored", META)

    assert rig.node.bytes_of(NAME) == sound()
    assert rig.stats == CacheStats(errors=1, read_bytes=len(sound()))
    (message,) = caplog.messages
    assert message.startswith(f"{NAME} in memory://node: entry of {KEY}: ")


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_bad_store_entry_is_a_counted_miss_and_the_next_put_replaces_it(rig, caplog, bad):
    rig.store.fill(NAME, bad)

    assert rig.cache.get(KEY) is None
    assert rig.stats == CacheStats(errors=1, read_bytes=len(bad))
    (message,) = caplog.messages
    assert message.startswith(f"{NAME} in memory://store: entry of {KEY}: ")
    assert rig.node.bytes_of(NAME) is None

    rig.put()

    assert rig.store.bytes_of(NAME) == sound(b"compiled here")
    assert rig.stats.written_bytes == len(sound(b"compiled here"))
    assert rig.cache.get(KEY).payload == b"compiled here"


def test_bad_store_entry_that_a_peer_has_replaced_is_left_to_the_peer(rig):
    rig.store.fill(NAME, corrupt())
    assert rig.cache.get(KEY) is None
    rig.store.fill(NAME, sound(b"of the peer"))
    rig.store.calls.clear()

    rig.put()

    assert rig.store.bytes_of(NAME) == sound(b"of the peer")
    assert "delete" not in rig.store.calls
    assert rig.stats.written_bytes == 0


def test_bad_store_entry_that_a_peer_replaces_while_it_is_looked_at_is_left_to_the_peer(rig):
    rig.store.fill(NAME, corrupt())
    assert rig.cache.get(KEY) is None

    def get_then_peer_writes(name: str) -> bytes | None:
        data = SpyStore.get(rig.store, name)
        rig.store.fill(NAME, sound(b"of the peer"))
        return data

    rig.store.get = get_then_peer_writes
    rig.put()

    assert rig.store.bytes_of(NAME) == sound(b"of the peer")


def test_bad_store_entry_is_replaced_once_and_the_next_put_deletes_nothing(rig):
    rig.store.fill(NAME, corrupt())
    assert rig.cache.get(KEY) is None
    rig.put()
    rig.store.calls.clear()

    rig.put()

    assert rig.store.calls == ["create"]


@pytest.mark.parametrize("tier", ["node", "store"])
def test_put_of_a_key_whose_entry_did_not_load_replaces_it_in_both_tiers(rig, tier):
    getattr(rig, tier).fill(NAME, sound(b"verifies, does not load"))
    entry = rig.cache.get(KEY)
    assert entry.payload == b"verifies, does not load"

    assert rig.put(replaces=entry.digest) is True

    assert rig.node.bytes_of(NAME) == sound(b"compiled here")
    assert rig.store.bytes_of(NAME) == sound(b"compiled here")


def test_entry_that_did_not_load_and_that_a_peer_has_replaced_is_left_to_the_peer(rig):
    rig.store.fill(NAME, sound(b"verifies, does not load"))
    entry = rig.cache.get(KEY)
    rig.store.fill(NAME, sound(b"of the peer"))

    rig.put(replaces=entry.digest)

    assert rig.store.bytes_of(NAME) == sound(b"of the peer")


def test_put_of_a_key_that_is_there_deletes_nothing(rig):
    rig.node.fill(NAME, sound())
    rig.store.fill(NAME, sound())

    rig.put()

    assert (rig.node.calls, rig.store.calls) == (["create"], ["create"])


# Trouble

DENIED = AccessDenied("cannot read memory://store: HTTP 403")


def test_store_errors_are_each_counted_and_warned_of_once(rig, caplog):
    caplog.set_level(logging.DEBUG, logger="hotstart")  # which the command line sets, too
    rig.store.errors = {"get": DENIED, "create": DENIED}

    assert [rig.get() for _ in range(2)] == [None, None]
    assert rig.put() is False

    assert rig.stats == CacheStats(errors=3)
    told = [r for r in caplog.records if r.name == "hotstart.cache.shared"]
    assert [r.message for r in told if r.levelno == logging.WARNING] == [
        f"cannot read {NAME} in memory://store, going on without: "
        "cannot read memory://store: HTTP 403"
    ]
    assert len(told) == 3
    assert rig.get() == (KEY, b"compiled here", META)  # by the node


def test_store_that_is_out_is_a_counted_miss_each_time_and_a_put_still_tries_it():
    bucket, counters = SpyStore("memory://store"), Counters()
    guarded = GuardedStore(bucket, count=counters.add)
    cache = SharedCache(Tiers(guarded, SpyStore("memory://node")), counters)
    bucket.errors = {"get": DeadlineExceeded("no answer")}

    assert [cache.get(KEY) for _ in range(5)] == [None] * 5
    assert bucket.calls == ["get", "get"]
    assert counters.snapshot() == CacheStats(errors=5, outages=1)

    cache.put(KEY, b"compiled here", META)
    assert cache.flush(PATIENCE_S) is True
    assert decode(KEY, bucket.bytes_of(NAME) or b"").payload == b"compiled here"


def test_node_errors_do_not_hide_the_store(rig):
    rig.node.errors = dict.fromkeys(("get", "create", "stat"), TransientError("disk"))
    rig.store.fill(NAME, sound())

    assert rig.get() == (KEY, b"stored", META)
    assert rig.put() is False

    assert rig.stats.errors == 3


def test_bad_node_entry_that_cannot_be_dropped_is_still_not_served(rig):
    rig.node.fill(NAME, corrupt())
    rig.node.errors = {"delete": DENIED}
    rig.store.fill(NAME, sound())

    assert rig.get() == (KEY, b"stored", META)


def test_bad_store_entry_that_may_not_be_deleted_stays_and_is_replaced_under_another_name():
    rig = Rig(with_node=False)
    rig.store.fill(NAME, corrupt())
    assert rig.cache.get(KEY) is None
    rig.store.errors = {"delete": DENIED}

    assert rig.put() is True

    assert rig.store.bytes_of(NAME) == corrupt()
    assert rig.store.bytes_of(f"{NAME}~1") == sound(b"compiled here")
    assert rig.cache.get(KEY).payload == b"compiled here"
    assert rig.stats == CacheStats(
        errors=1,
        read_bytes=2 * len(corrupt()) + len(sound(b"compiled here")),
        written_bytes=len(sound(b"compiled here")),
    )


def test_entry_that_does_not_load_and_may_not_be_deleted_is_passed_over_for_its_replacement():
    rig = Rig(with_node=False)
    rig.store.fill(NAME, sound())
    entry = rig.cache.get(KEY)
    rig.cache.failed(KEY, entry)
    rig.store.errors = {"delete": DENIED}

    assert rig.put(replaces=entry.digest) is True

    assert rig.store.bytes_of(f"{NAME}~1") == sound(b"compiled here")
    again = Rig(with_node=False)
    again.store = rig.store
    other = SharedCache(Tiers(rig.store), again.counters)
    first = other.get(KEY)
    assert first.payload == b"stored"
    other.failed(KEY, first)
    assert other.get(KEY).payload == b"compiled here"


def test_entry_that_does_not_load_is_not_given_again_from_its_way_to_the_node(rig: Rig):
    rig.store.fill(NAME, sound())
    rig.node.open.clear()  # the copy for the node directory is still on its way
    entry = rig.cache.get(KEY)
    rig.cache.failed(KEY, entry)
    assert rig.cache.get(KEY) is None
    rig.cache.put(KEY, b"compiled here", META, entry.digest)
    rig.node.open.set()
    assert rig.cache.flush(PATIENCE_S) is True
    for store in (rig.store, rig.node):
        assert store.bytes_of(NAME) == sound(b"compiled here")


def test_bad_store_entry_whose_replacements_may_not_be_deleted_either_is_counted():
    rig = Rig(with_node=False)
    for suffix in ("", "~1", "~2", "~3"):
        rig.store.fill(f"{NAME}{suffix}", corrupt())
    assert rig.cache.get(KEY) is None
    rig.store.errors = {"delete": DENIED}

    assert rig.put() is False

    assert rig.stats.errors == 5  # four entries and the write


def test_strict_get_after_a_failed_write_raises_cache_required():
    rig = Rig(strict=True)
    rig.store.errors = {"create": DENIED}
    rig.cache.put(KEY, b"compiled here", META)
    assert rig.cache.flush(PATIENCE_S) is False

    with pytest.raises(CacheRequired, match="HTTP 403"):
        rig.cache.get(KEY)


def test_strict_get_with_an_unreadable_store_raises_cache_required():
    rig = Rig(strict=True)
    rig.store.errors = {"get": DENIED}

    with pytest.raises(CacheRequired, match="HTTP 403") as raised:
        rig.cache.get(KEY)

    assert raised.value.__cause__ is DENIED
    assert rig.stats == CacheStats(errors=1)


def test_strict_get_that_the_node_answers_needs_no_store():
    rig = Rig(strict=True)
    rig.node.fill(NAME, sound())
    rig.store.errors = {"get": DENIED}

    assert rig.cache.get(KEY).payload == b"stored"


def test_strict_miss_and_bad_entry_are_misses():
    rig = Rig(strict=True)
    assert rig.cache.get(KEY) is None
    rig.store.fill(NAME, corrupt())

    assert rig.cache.get(KEY) is None


def test_get_and_put_from_many_threads_lose_nothing(rig):
    keys = [f"jit_f{index}-{index:064x}" for index in range(40)]

    def work(own: list[str]) -> None:
        for key in own:
            assert rig.cache.get(key) is None
            rig.cache.put(key, key.encode(), META)
            assert rig.cache.get(key).payload == key.encode()

    threads = [threading.Thread(target=work, args=(keys[i::4],)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert rig.cache.flush(PATIENCE_S)

    stored = {found.name for found in rig.store.list("entries/")}
    assert stored == {entry_name(key) for key in keys}
    assert rig.stats.errors == 0
    assert rig.stats.written_bytes == sum(len(encode(key, key.encode(), META)) for key in keys)
