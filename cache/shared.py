"""The cache of one process: an entry is looked for in memory, node directory and store.

Reading: what this process has just put, then the node directory (shared by all workers of the
host), then one request to the store, whose answer is left in the node directory. Every byte is
verified before JAX sees it; what does not verify is a counted miss, is taken out of the node
directory at once and replaced in the store by the next `put` of its key.

Writing: `put` returns at once; the background writer puts the entry into the node directory and
creates it in the store. `create` never overwrites, so of all writers of a key exactly one makes
the object and the others carry on: that is the single-writer rule, and it needs no leader.

Cache trouble never fails a job: it is counted and warned of once. Strict mode raises.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass

from hotstart.cache.counters import Counters
from hotstart.cache.entry import Entry, EntryMeta, decode, encode, entry_name
from hotstart.cache.errors import CacheRequired, EntryError, StoreError
from hotstart.cache.store import Store
from hotstart.cache.uploads import Pending, Uploads

logger = logging.getLogger(__name__)


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
    ) -> None:
        self._store = tiers.store
        self._node = tiers.node
        self._counters = counters
        self._writable = writable
        self._strict = strict
        self._uploads = Uploads(self._write, threads=upload_threads)
        self._lock = threading.Lock()
        self._served: set[str] = set()  # handed to JAX
        self._bad: set[str] = set()  # did not verify
        self._unloadable: set[str] = set()  # verified, and JAX compiled all the same
        self._warned = False

    @property
    def url(self) -> str:
        """The shared store's location."""
        return self._store.url

    def get(self, key: str) -> Entry | None:
        """The verified entry of `key`, or None. Raises `CacheRequired` in strict mode only."""
        pending = self._uploads.find(key)
        if pending is not None:
            entry: Entry | None = Entry(key, pending.payload, pending.meta)
        else:
            entry = self._get_from_node(key) or self._get_from_store(key)
        if entry is not None:
            with self._lock:
                self._served.add(key)
        return entry

    def put(self, key: str, payload: bytes, meta: EntryMeta) -> None:
        """Take an entry that JAX has compiled; it is stored in the background.

        JAX puts a key that it was served only when it could not load what it got, so such an
        entry is replaced.
        """
        with self._lock:
            if key in self._served:
                self._served.discard(key)
                self._unloadable.add(key)
        self._uploads.submit(Pending(key, payload, meta))

    def flush(self, timeout_s: float) -> bool:
        """Block until every `put` is in the store; False at the timeout."""
        return self._uploads.flush(timeout_s)

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
                _discard(self._node, name)
        except StoreError as error:
            self._trouble("read", self._node, name, error)
        return None

    def _get_from_store(self, key: str) -> Entry | None:
        name = entry_name(key)
        try:
            data = self._store.get(name)
        except StoreError as error:
            self._trouble("read", self._store, name, error, required=True)
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
            try:
                self._node.create(name, data)
            except StoreError as error:
                self._trouble("write", self._node, name, error)
        return entry

    def _write(self, pending: Pending) -> None:
        name = entry_name(pending.key)
        data = encode(pending.key, pending.payload, pending.meta)
        with self._lock:
            unloadable, bad = pending.key in self._unloadable, pending.key in self._bad
            self._unloadable.discard(pending.key)
            self._bad.discard(pending.key)
        for tier in (self._node, self._store):
            if tier is None or (tier is self._store and not self._writable):
                continue
            try:
                if unloadable:
                    _discard(tier, name)
                elif bad:
                    _discard_unless_sound(tier, pending.key)
                if tier.create(name, data) and tier is self._store:
                    self._counters.add(written_bytes=len(data))
            except StoreError as error:
                self._trouble("write", tier, name, error)

    def _trouble(
        self, verb: str, store: Store, name: str, error: StoreError, required: bool = False
    ) -> None:
        self._counters.add(errors=1)
        if required and self._strict:
            raise CacheRequired(f"the cache is required and cannot be used: {error}") from error
        with self._lock:
            first, self._warned = not self._warned, True
        level = logging.WARNING if first else logging.DEBUG
        logger.log(level, "cannot %s %s in %s, going on without: %s", verb, name, store.url, error)


def _discard(store: Store, name: str) -> None:
    """Remove an object."""
    found = store.stat(name)
    if found is not None:
        store.delete(name, found.generation)


def _discard_unless_sound(store: Store, key: str) -> None:
    """Remove the bad entry of `key`, unless a peer has replaced it already."""
    name = entry_name(key)
    found = store.stat(name)  # before the bytes: what they show is true of this or a later one
    data = None if found is None else store.get(name)
    if found is None or data is None:
        return
    try:
        decode(key, data)
    except EntryError:
        store.delete(name, found.generation)
