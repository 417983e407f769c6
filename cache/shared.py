"""The cache of one process: an entry is looked for in memory, node directory and store.

Reading: what this process has just put, then where the resolver says (resolve.py): the node
directory, shared by all workers of the host, or the store, in one request whose answer is left
in the node directory. Every byte is verified before JAX sees it; what does not verify is taken
out of the node directory at once, asked for again, and replaced in the store by the next `put`
of its key.

Writing: `put` returns at once; the background writer puts the entry into the node directory,
publishes it and, where no agent does, creates it in the store. `create` never overwrites, so of
all writers of a key exactly one makes the object and the others carry on.

Cache trouble never fails a job: it is counted and warned of once. Strict mode raises.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace

from hotstart.cache.counters import Counters
from hotstart.cache.entry import (
    Entry,
    EntryMeta,
    decode,
    encode,
    entry_digest,
    entry_name,
    pending_name,
)
from hotstart.cache.errors import CacheRequired, EntryError, StoreError
from hotstart.cache.guarded import insisting
from hotstart.cache.last_use import LastUses
from hotstart.cache.repair import Look, discard_bad, find_entry, make_room, tell_bad
from hotstart.cache.resolve import (
    Answer,
    Compile,
    EachForItself,
    Failed,
    InNode,
    Resolver,
    Unloadable,
)
from hotstart.cache.signing import UNSEALED, Seal, tally
from hotstart.cache.store import Store
from hotstart.cache.uploads import Pending, Uploads

logger = logging.getLogger(__name__)

_MAX_ROUNDS = 32  # a resolver ends a request itself; this bounds one that does not


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
        resolver: Resolver | None = None,
        *,
        writable: bool = True,
        strict: bool = False,
        seal: Seal = UNSEALED,
        upload_threads: int = 4,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = tiers.store
        self._node = tiers.node
        self._counters = counters
        self._parents_resolver = resolver or EachForItself()
        self._pid = os.getpid()
        self._writable = writable
        self._strict = strict
        self._seal = seal
        self._uses = LastUses(tiers.store)
        self._uploads = Uploads(self._write, threads=upload_threads, clock=clock)
        self._clock = clock
        self._lock = threading.Lock()
        self._bad: set[str] = set()  # keys whose entry in the store did not verify
        self._counted: set[str] = set()  # names of such entries
        self._unloadable: dict[str, set[bytes]] = {}  # verified, but JAX could not load them
        self._leased: set[str] = set()
        self._warned = False
        self._required: CacheRequired | None = None

    @property
    def url(self) -> str:
        """The shared store's location."""
        return self._store.url

    def get(self, key: str) -> Entry | None:
        """The verified entry of `key`, or None: JAX compiles it, under a lease where there is one.

        Blocks while somebody else resolves the key; `done` must follow. Raises `CacheRequired`
        in strict mode only.
        """
        return self._look(key, self._resolver.resolve)

    def probe(self, key: str) -> Entry | None:
        """As `get`, but takes no lease and waits for nobody."""
        return self._look(key, self._resolver.probe)

    def ahead(self, key: str) -> Entry | None:
        """As `probe`, but waits for who reads the entry just now."""
        return self._look(key, self._resolver.ahead)

    def put(
        self,
        key: str,
        payload: bytes,
        meta: EntryMeta,
        replaces: bytes | None = None,
        pack: Callable[[bytes | memoryview], bytes] | None = None,
        parts: Future[str] | None = None,
    ) -> bool:
        """Take an entry that JAX has compiled; it is stored in the background.

        `pack` is called there on the payload, and `parts`, what the key was made of, waited for.
        `replaces` is the digest of the entry that JAX was given and could not load. True where
        the gang runs another executable already, which is to be loaded in place of this one: only
        where it was compiled without a lease, and then this blocks on the node directory.
        """
        with self._lock:
            leased = key in self._leased
            self._leased.discard(key)
            unloadable = self._unloadable.pop(key, set())
        replaces = replaces or next(iter(unloadable), None)
        pending = Pending(key, payload, meta, replaces, pack=pack, parts=parts)
        if self._resolver.has_agent and not leased:
            digest, canonical, _ = self._publish(pending, leased=False)
            return canonical is not None and digest != canonical
        self._uploads.submit(pending)
        return False

    def failed(self, key: str, entry: Entry) -> None:
        """JAX could not load this entry of `key`: the next `get` looks for another."""
        with self._lock:
            self._unloadable.setdefault(key, set()).add(entry.digest)
        if self._node is not None:
            try:
                discard_bad(self._node, key, self._seal, entry.digest)
            except StoreError as error:
                self._trouble("repair", self._node, entry_name(key), error)

    def done(self, key: str) -> None:
        """The request for `key` is over: let go of a lease that no `put` has used."""
        with self._lock:
            held = key in self._leased
            self._leased.discard(key)
        if held:
            self._resolver.release(key)

    def flush(self, timeout_s: float) -> bool:
        """Block until every `put` is in the store; False at the timeout or where one failed."""
        deadline = self._clock() + timeout_s
        written = self._uploads.flush(timeout_s)
        return self._resolver.flush(max(0.0, deadline - self._clock())) and written

    def close(self) -> None:
        """Let go of every lease: nobody need wait for this process any more."""
        self._resolver.close()

    def forget_locks(self) -> None:
        """For a forked child: a thread of the parent may have held the lock."""
        self._lock = threading.Lock()

    @property
    def _resolver(self) -> Resolver:
        # A forked child has none of the threads that answers and renewals need.
        return self._parents_resolver if os.getpid() == self._pid else EachForItself()

    def _look(self, key: str, ask: Callable[[str, tuple[Failed, ...]], Answer]) -> Entry | None:
        if self._required is not None:
            raise self._required
        unloadable = self._unloadable.get(key, set())
        pending = self._uploads.find(key)
        if pending is not None and pending.digest not in unloadable:
            return Entry(key, pending.packed(), pending.meta, pending.digest)
        failed: list[Failed] = [Unloadable(digest) for digest in unloadable]
        for _ in range(_MAX_ROUNDS):
            answer = ask(key, tuple(failed))
            if isinstance(answer, Compile):
                if answer.leased:
                    with self._lock:
                        self._leased.add(key)
                return None
            found = self._get_from_node if isinstance(answer, InNode) else self._get_from_store
            entry = found(key)
            wanted = entry is not None and answer.digest in (None, entry.digest)
            if entry is not None and wanted and entry.digest not in unloadable:
                return entry
            failed.append(answer)
        return None

    def _get_from_node(self, key: str) -> Entry | None:
        if self._node is None:
            return None
        name = entry_name(key)
        try:
            data = self._node.get(name)
            if data is None:
                return None
            if self._node is self._store:
                self._counters.add(read_bytes=len(data))
            elif not self._resolver.has_agent:  # which notes it for all its workers
                self._uses.note(name)
            try:
                return decode(key, data, self._seal)
            except EntryError as error:
                self._counters.add(**tally(error))
                logger.warning("%s in %s: %s; reading it again", name, self._node.url, error)
                discard_bad(self._node, key, self._seal)
        except StoreError as error:
            self._trouble("read", self._node, name, error)
        return None

    def _get_from_store(self, key: str) -> Entry | None:
        name = entry_name(key)
        unloadable = self._unloadable.get(key, set())
        try:
            look = find_entry(self._store, key, self._seal, unloadable.__contains__)
        except StoreError as error:
            self._trouble("read", self._store, name, error)
            if self._required is not None:
                raise self._required from error
            return None
        self._counters.add(read_bytes=look.read_bytes)
        self._note_bad(key, look)
        entry = look.entry
        if entry is None:
            return None
        if self._node is not None:
            payload, meta, digest = entry.payload, entry.meta, entry.digest
            self._uploads.submit(Pending(key, payload, meta, node_copy=look.data, digest=digest))
        return entry

    def _note_bad(self, key: str, look: Look) -> None:
        """Count what did not verify, once; the next `put` of the key replaces it."""
        for name, error in look.bad:
            with self._lock:
                self._bad.add(key)
                known = name in self._counted
                self._counted.add(name)
            if not known:
                self._counters.add(**tally(error))
                tell_bad(self._store, name, error, look)

    def _write(self, pending: Pending) -> bool:
        """On a thread of the background writer: bring an entry where it belongs."""
        if pending.node_copy is not None:
            return self._write_to(self._node, pending, pending.node_copy, repair=False) is not None
        try:
            digest, canonical, is_placed = self._publish(pending)
        except BaseException:
            self._resolver.release(pending.key)  # nobody must wait for what is not coming
            raise
        if canonical is not None and canonical != digest:
            logger.warning(
                "the gang has another executable of %s than this process runs; where it hangs in "
                "a collective, restart it",
                pending.key,
            )
        return is_placed

    def _publish(
        self, pending: Pending, *, leased: bool = True
    ) -> tuple[bytes, bytes | None, bool]:
        """Write an entry and say where it is.

        Returns its digest, the one that counts (None where nobody was told), and whether an entry
        is where it belongs now.
        """
        resolver, key = self._resolver, pending.key
        meta = pending.described(wait=leased)  # without a lease, on the thread that compiles
        data = encode(key, pending.packed(), meta, self._seal)
        digest = entry_digest(data)
        with self._lock:
            bad = key in self._bad
            self._bad.discard(key)
        repair = bad or pending.replaces is not None
        self._mark(key)
        created = self._write_to(self._node, pending, data, repair) if self._node else None
        there = digest
        if created is False and resolver.has_agent:
            found = self._digest_in(self._node, key)
            if found is None or (found != digest and leased):
                # A bad one, or of another gang on this host; this one runs ours.
                other = replace(pending, replaces=found)
                created = self._write_to(self._node, other, data, repair=True)
            else:
                there = found
        if created is not None and resolver.has_agent:
            return digest, resolver.publish(key, there, len(data), in_node=True), True
        in_node = self._node is None or created is not None
        stored = self._write_to(self._store, pending, data, repair) if self._writable else None
        if stored is None:
            resolver.release(key)
            return digest, None, in_node and not self._writable
        there = digest if stored else self._digest_in(self._store, key) or digest
        canonical = resolver.publish(key, there, len(data), in_node=False)
        return digest, canonical, in_node

    def _mark(self, key: str) -> None:
        """Have the agent upload the entry also where this process dies before it has said so."""
        node = self._node
        if node is None or node is self._store:
            return
        if self._resolver.has_agent and self._writable:
            with contextlib.suppress(StoreError):
                node.create(pending_name(key), key.encode())

    def _digest_in(self, tier: Store | None, key: str) -> bytes | None:
        """Which sound entry is there: another writer was the first. Only a gang has to know."""
        if tier is None or not self._resolver.has_agent:
            return None
        try:
            data = tier.get(entry_name(key))
            return None if data is None else decode(key, data, self._seal).digest
        except (StoreError, EntryError):
            return None

    def _write_to(
        self, tier: Store | None, pending: Pending, data: bytes, repair: bool
    ) -> bool | None:
        """Whether this call created the entry; None where it could not be written."""
        if tier is None:
            return None
        name = entry_name(pending.key)
        try:
            if repair and tier is self._node:
                discard_bad(tier, pending.key, self._seal, pending.replaces)
            elif repair:
                name = make_room(insisting(tier), pending.key, self._seal, pending.replaces)
                with self._lock:
                    self._counted.discard(name)
            created = insisting(tier).create(name, data)
        except StoreError as error:
            self._trouble("write", tier, name, error)
            return None
        if created and tier is self._store:
            self._counters.add(written_bytes=len(data))
        return created

    def _trouble(self, verb: str, store: Store, name: str, error: StoreError) -> None:
        self._counters.add(errors=1)
        if self._strict and store is self._store:
            text = f"the cache is required and cannot be used: {error}"
            self._required = self._required or CacheRequired(text)
        with self._lock:
            first, self._warned = not self._warned, True
        level = logging.WARNING if first else logging.DEBUG
        logger.log(level, "cannot %s %s in %s, going on without: %s", verb, name, store.url, error)
