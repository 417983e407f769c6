"""The entries of one host, as its agent handles them: node directory, store, counters.

Workers read and write the node directory themselves. The agent does what only one process of a
host should do: it reads from the store, hands entries to other hosts, and brings what workers
have left in the node directory to the store (`host_uploads.py`).
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

from hotstart.cache.config import CacheConfig
from hotstart.cache.directory import DirectoryStore
from hotstart.cache.entry import HEAD_BYTES, Entry, decode, entry_digest, entry_name
from hotstart.cache.errors import EntryError, StoreError
from hotstart.cache.guarded import insisting
from hotstart.cache.last_use import LastUses
from hotstart.cache.repair import find_entry, tell_bad
from hotstart.cache.signing import UNSEALED, Seal, tally
from hotstart.cache.store import Store
from hotstart.launcher.host_uploads import HostUploads

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class HostStats:
    """What a host's agent has done for its workers' cache since it started.

    reads, read_bytes: entries read from the store. from_peers, from_peers_bytes: entries that
    other hosts handed over. uploads, written_bytes: entries created in the store. errors: what
    did not verify or failed for good. unsigned, bad_signature: entries and manifests refused for
    want of a signature, or for a wrong one; not among the errors. retries: store requests that
    were sent again. retry_s: seconds that failed tries and the waits after them took. outages:
    times that the store was left alone for a while.
    """

    reads: int = 0
    read_bytes: int = 0
    from_peers: int = 0
    from_peers_bytes: int = 0
    uploads: int = 0
    written_bytes: int = 0
    errors: int = 0
    unsigned: int = 0
    bad_signature: int = 0
    retries: int = 0
    retry_s: float = 0.0
    outages: int = 0


class HostStore:
    """Node directory and store of one host. Safe among threads; all calls but `upload` block."""

    def __init__(
        self,
        config: CacheConfig,
        near: DirectoryStore,
        far: Store | None,
        *,
        seal: Seal = UNSEALED,
        threads: int = 4,
    ) -> None:
        """`near` is the directory that the workers share; `far` the store behind it.

        None where the location itself is that directory: then nothing is uploaded.
        """
        self.near = near
        self.far = far
        self.strict = config.strict
        self.uses = LastUses(far)
        self._seal = seal
        self._lock = threading.Lock()
        self._stats = HostStats()
        self._bad: set[str] = set()
        self._warned = False
        self.required: str | None = None  # strict mode: what workers are to be told from now on
        self._uploads: HostUploads | None = None
        if far is not None and config.mode == "read-write":
            self._uploads = HostUploads(
                near, insisting(far), self._note_upload, self.trouble, seal=seal, threads=threads
            )

    def digest_here(self, key: str) -> bytes | None:
        """The digest that the entry in the node directory carries, unverified."""
        try:
            head = self.near.read_head(entry_name(key), HEAD_BYTES)
            return None if head is None else entry_digest(head)
        except (StoreError, EntryError):
            return None

    def verifies(self, key: str) -> bool:
        """Whether the entry in the node directory is what it should be; reads all of it."""
        try:
            data = self.near.get(entry_name(key))
            return data is not None and bool(self.decode(key, data).digest)
        except (StoreError, EntryError):
            return False

    def decode(self, key: str, data: bytes) -> Entry:
        """Verify bytes as the entry of `key`; raises `EntryError`."""
        return decode(key, data, self._seal)

    def read_far(
        self, key: str, is_useless: Callable[[bytes], bool] = lambda digest: False
    ) -> tuple[Entry, bytes] | None:
        """The verified entry of the store and its bytes; None where it has none that verifies.

        Nor one whose digest is useless. Raises `StoreError` where the store can't be read.
        """
        if self.far is None:
            return None
        name = entry_name(key)
        try:
            look = find_entry(self.far, key, self._seal, is_useless)
        except StoreError as error:
            self.trouble("read", self.far, name, error)
            raise
        for bad_name, problem in look.bad:
            self.count(**tally(problem))
            tell_bad(self.far, bad_name, problem, look)
        if look.read_bytes:
            self.count(reads=1, read_bytes=look.read_bytes)
        if look.entry is None:
            if look.bad:
                with self._lock:
                    self._bad.add(key)
            return None
        return look.entry, look.data

    def keep(self, key: str, data: bytes) -> bool:
        """Put a verified entry into the node directory in place of any other; False if it can't."""
        name = entry_name(key)
        try:
            for _ in range(3):  # another process may write in between
                if self.near.create(name, data) or self.near.get(name) == data:
                    return True
                self.discard(key)
        except StoreError as error:
            self.trouble("write", self.near, name, error)
        return False

    def discard(self, key: str) -> None:
        """Take what is there of this key out of the node directory."""
        name = entry_name(key)
        with contextlib.suppress(StoreError):
            found = self.near.stat(name)
            if found is not None:
                self.near.delete(name, found.generation)

    def hand_out(self, key: str, digest: bytes) -> bytes | None:
        """The bytes of an entry for another host, or None where it is not here any more."""
        try:
            data = self.near.get(entry_name(key))
            return data if data is not None and entry_digest(data) == digest else None
        except (StoreError, EntryError):
            return None

    def upload(
        self,
        key: str,
        then: Callable[[bool], None] = lambda in_store: None,
        replaces: bytes | None = None,
    ) -> None:
        """Bring an entry from the node directory to the store; `then` is told how it went.

        `replaces` is the digest of a stored entry that workers could not load. Blocks for no
        more than a mark in the node directory.
        """
        if self._uploads is None:
            then(self.far is None)
            return
        with self._lock:
            repair = replaces is not None or key in self._bad
            self._bad.discard(key)
        self._uploads.upload(key, then, repair=repair, replaces=replaces)

    def upload_left(self, key: str, replaces: bytes | None = None) -> None:
        """As `upload`, for a worker that has ended: what it had marked and could not publish.

        Nothing where it came to neither. Blocks for some looks into the node directory.
        """
        uploads = self._uploads
        if uploads is not None and uploads.is_left(key) and self.digest_here(key) != replaces:
            self.upload(key, replaces=replaces)

    def resume_uploads(self) -> None:
        """Upload what processes before this one have left marked."""
        if self._uploads is not None:
            self._uploads.resume()

    def flush(self, timeout_s: float) -> bool:
        """Block until all uploads are done; False at the timeout, or where any has failed."""
        return self._uploads is None or self._uploads.flush(timeout_s)

    def stats(self) -> HostStats:
        """The counters now."""
        with self._lock:
            return self._stats

    def count(self, **amounts: int | float) -> None:
        """Add to counters by name."""
        with self._lock:
            new = {name: getattr(self._stats, name) + n for name, n in amounts.items()}
            self._stats = replace(self._stats, **new)

    def trouble(self, verb: str, store: Store, name: str, error: Exception) -> None:
        """Count a failed operation; the first one is a warning."""
        self.count(errors=1)
        with self._lock:
            if self.strict and store is not self.near and verb in ("read", "write"):
                self.required = f"the cache is required and cannot be used: {error}"
            first, self._warned = not self._warned, True
        level = logging.WARNING if first else logging.DEBUG
        logger.log(level, "cannot %s %s in %s, going on without: %s", verb, name, store.url, error)

    def close(self) -> None:
        """Give up what is not uploaded yet; its marks stay. Does not block."""
        if self._uploads is not None:
            self._uploads.close()

    def _note_upload(self, size_bytes: int) -> None:
        self.count(uploads=1, written_bytes=size_bytes)
