"""The cache of one process: an entry is looked for in memory, node directory and store.

Reading: what this process has just put, then the node directory (shared by all workers of the
host), then one request to the store, whose answer is left in the node directory. Every byte is
verified before JAX sees it; what does not verify is a counted miss, is taken out of the node
directory at once and replaced in the store by the next `put` of its key. A store that can't be
reached is left alone for a minute, so that not every program waits for the deadline.

Writing: `put` returns at once; the background writer puts the entry into the node directory and
creates it in the store. `create` never overwrites, so of all writers of a key exactly one makes
the object and the others carry on: that is the single-writer rule, and it needs no leader.

Cache trouble never fails a job: it is counted and warned of once. Strict mode raises.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from hotstart.cache.counters import Counters
from hotstart.cache.entry import Entry, EntryMeta, decode, encode, entry_name
from hotstart.cache.errors import CacheRequired, EntryError, StoreError, TransientError
from hotstart.cache.store import Store
from hotstart.cache.uploads import Pending, Uploads

logger = logging.getLogger(__name__)

_OUTAGE_PAUSE_S = 60.0


@dataclass(frozen=True)
class Tiers:
    """Where entries are: the shared store, and this host's directory in front of it."""

    store: Store
    node: Store | None = None


class SharedCache:
    """`get` and `put` for JAX, safe among threads; `get` blocks on I/O, `put` does not."""

    def __init__(
        self,
        tiers: Tiers,
        counters: Counters,
        *,
        writable: bool = True,
        strict: bool = False,
        upload_threads: int = 4,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = tiers.store
        self._node = tiers.node
        self._counters = counters
        self._writable = writable
        self._strict = strict
        self._uploads = Uploads(self._write, threads=upload_threads)
        self._clock = clock
        self._lock = threading.Lock()
        self._bad: set[str] = set()  # did not verify
        self._warned = False
        self._outage_until = float("-inf")
        self._required: CacheRequired | None = None

    @property
    def url(self) -> str:
        """The shared store's location."""
        return self._store.url

    def get(self, key: str) -> Entry | None:
        """The verified entry of `key`, or None. Raises `CacheRequired` in strict mode only."""
        if self._required is not None:
            raise self._required
        pending = self._uploads.find(key)
        if pending is not None:
            return Entry(key, pending.payload, pending.meta)
        return self._get_from_node(key) or self._get_from_store(key)

    def put(self, key: str, payload: bytes, meta: EntryMeta, replaces: bytes | None = None) -> None:
        """Take an entry that JAX has compiled; it is stored in the background.

        `replaces` is the digest of the entry that JAX was given and could not load.
        """
        self._uploads.submit(Pending(key, payload, meta, replaces))

    def flush(self, timeout_s: float) -> bool:
        """Block until every `put` is in the store; False at the timeout or where one failed."""
        return self._uploads.flush(timeout_s)

    def forget_locks(self) -> None:
        """For a forked child: a thread of the parent may have held the lock."""
        self._lock = threading.Lock()

    def _get_from_node(self, key: str) -> Entry | None:
        if self._node is None:
            return None
        name = entry_name(key)
        try:
            data = self._node.get(name)
            if data is None:
                return None
            try:
                return decode(key, data)
            except EntryError as error:
                self._counters.add(errors=1)
                logger.warning("%s in %s: %s; reading it again", name, self._node.url, error)
                _discard_bad(self._node, key)
        except StoreError as error:
            self._trouble("read", self._node, name, error)
        return None

    def _get_from_store(self, key: str) -> Entry | None:
        name = entry_name(key)
        if self._clock() < self._outage_until:
            self._counters.add(errors=1)
            return None
        try:
            data = self._store.get(name)
        except StoreError as error:
            if isinstance(error, TransientError):
                self._outage_until = self._clock() + _OUTAGE_PAUSE_S
            self._trouble("read", self._store, name, error)
            if self._required is not None:
                raise self._required from error
            return None
        if data is None:
            return None
        self._counters.add(read_bytes=len(data))
        try:
            entry = decode(key, data)
        except EntryError as error:
            self._counters.add(errors=1)
            logger.warning("%s in %s: %s; it will be replaced", name, self._store.url, error)
            with self._lock:
                self._bad.add(key)
            return None
        if self._node is not None:
            self._uploads.submit(Pending(key, entry.payload, entry.meta, node_copy=data))
        return entry

    def _write(self, pending: Pending) -> bool:
        name = entry_name(pending.key)
        if pending.node_copy is not None:
            return self._write_to(self._node, name, pending, pending.node_copy, repair=False)
        data = encode(pending.key, pending.payload, pending.meta)
        with self._lock:
            bad = pending.key in self._bad
            self._bad.discard(pending.key)
        repair = bad or pending.replaces is not None
        in_node = self._write_to(self._node, name, pending, data, repair)
        if not self._writable:
            return in_node
        return self._write_to(self._store, name, pending, data, repair) and in_node

    def _write_to(
        self, tier: Store | None, name: str, pending: Pending, data: bytes, repair: bool
    ) -> bool:
        if tier is None:
            return True
        try:
            if repair:
                _discard_bad(tier, pending.key, pending.replaces)
            if tier.create(name, data) and tier is self._store:
                self._counters.add(written_bytes=len(data))
        except StoreError as error:
            self._trouble("write", tier, name, error)
            return False
        return True

    def _trouble(self, verb: str, store: Store, name: str, error: StoreError) -> None:
        self._counters.add(errors=1)
        if self._strict and store is self._store:
            text = f"the cache is required and cannot be used: {error}"
            self._required = self._required or CacheRequired(text)
        with self._lock:
            first, self._warned = not self._warned, True
        level = logging.WARNING if first else logging.DEBUG
        logger.log(level, "cannot %s %s in %s, going on without: %s", verb, name, store.url, error)


def _discard_bad(store: Store, key: str, unloadable: bytes | None = None) -> None:
    """Remove the entry of `key` if it does not verify or has the digest `unloadable`.

    What a peer has put there meanwhile stays: the generation is older than the bytes looked at.
    """
    name = entry_name(key)
    found = store.stat(name)
    data = None if found is None else store.get(name)
    if found is None or data is None:
        return
    try:
        bad = decode(key, data).digest == unloadable
    except EntryError:
        bad = True
    if bad:
        store.delete(name, found.generation)
