"""What a host does for a key that it does not have: ask the other hosts, the store, other clusters.

    resolve(key) -> coordinator: Found    -> a peer's copy, or the store's      -> Here
                                 Granted  -> the store: there                   -> Here
                                                        not there -> a lease
                                                        between clusters        -> MayCompile
                                 Unstored                                       -> Alone
                                 Absent                                         -> Nothing

A host that is alone in its gang has no coordinator and begins at the store. One that has lost it
goes on in the same way for the rest of the attempt: all hosts do where the coordinator is gone; one
does by itself where its own way there has been closed for longer than `RECONNECT_S`.

What waits for the coordinator holds no thread. What waits for another cluster holds one of
`_THREADS`, and ends with the attempt. Ending leases and publishing have threads of their own, so
who is waited for never waits for who waits.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

from hotstart.cache.errors import StoreError
from hotstart.cache.leases import StoreLeases
from hotstart.launcher.claims import STORE, Absent, Found, Granted, Held, Unstored
from hotstart.launcher.coordinator_wire import Published
from hotstart.launcher.gang_link import GangLink, Link
from hotstart.launcher.host_store import HostStore
from hotstart.launcher.resolved import (
    Alone,
    Here,
    MayCompile,
    Nothing,
    Resolved,
    Task,
    Unreadable,
    Wanted,
)
from hotstart.launcher.sources import Peers, Sources

logger = logging.getLogger(__name__)

_THREADS = 64  # most of them wait for the network, or for another cluster
_OTHER_THREADS = 4
_PEERS_TRIED = 2
_CLOSE_S = 2.0


class Upstream:
    """Resolves keys beyond this host. Does not block; outcomes come on threads of its own."""

    def __init__(
        self,
        store: HostStore,
        host: int = 0,
        peers: Peers = lambda host, key, digest: None,
        leases: StoreLeases | None = None,
        *,
        make_pool: Callable[[int, str], Executor] = ThreadPoolExecutor,
        on_compile: Callable[[], None] = lambda: None,
    ) -> None:
        """`peers` fetches an entry's bytes from another host, blocks, and may raise anything.

        `leases` are between clusters, ended by `close`; None where none are to be taken.
        `make_pool` takes the number of threads and a name. `on_compile` is called before a worker
        is told to compile.
        """
        self._store = store
        self._host = host
        self._leases = leases
        self._sources = Sources(store, peers, leases)
        self._on_compile = on_compile
        self._gang = GangLink()
        self._pool = make_pool(_THREADS, "hotstart-resolve")
        self._settling = make_pool(_OTHER_THREADS, "hotstart-settle")
        self._ending = make_pool(_OTHER_THREADS, "hotstart-lease-end")  # slow in an outage

    def connect(self, link: Link) -> None:
        """Resolve together with the hosts of the gang from now on."""
        self._gang.connect(link)

    @property
    def was_alone(self) -> bool:
        """Whether this host was without its present coordinator in the attempt begun last."""
        return self._gang.was_alone

    def begin(self, attempt: int) -> None:
        """A new attempt: what was asked or leased before is void; its outcomes never come."""
        self._gang.begin(attempt)

    def resolve(self, wanted: Wanted, then: Callable[[Resolved], bool]) -> None:
        """Find out about a key; `then` gets the outcome, unless a new attempt begins before.

        It says whether somebody still wants that; a lease that nobody wants is let go.
        """
        failed = frozenset() if wanted.replaces is None else frozenset({self._host})
        task = Task(wanted, then, self._gang.term, failed, wanted.replaces)
        self._run(task, self._start)

    def publish(
        self, key: str, digest: bytes, size_bytes: int, *, in_node: bool,
        then: Callable[[bytes], None],
    ) -> None:  # fmt: skip
        """A worker's entry is on this host; `then` gets the digest that counts in the gang.

        It comes exactly once, also where the coordinator is lost or a new attempt begins.
        """
        in_store = not in_node or self._store.far is None

        def answered(answer: Any) -> None:
            counts = answer.digest if isinstance(answer, Published) else digest
            self._submit(self._settling, functools.partial(then, counts))

        def send(link: Link, number: int) -> None:
            link.publish(number, key, digest, size_bytes, in_node=in_node, in_store=in_store)

        if not self._gang.ask(self._gang.term, send, answered, outlives=True):
            then(digest)

    def stored(self, key: str, digest: bytes) -> None:
        """A worker's entry is in the store."""
        self._gang.tell(self._gang.term, lambda link: link.stored(key, digest))
        self.let_go(key)

    def unstored(self, key: str) -> None:
        """A worker that had the lease stored nothing."""
        self._gang.tell(self._gang.term, lambda link: link.unstored(key))
        self.let_go(key)

    def release(self, key: str) -> None:
        """A worker that had the lease has ended."""
        self._gang.tell(self._gang.term, lambda link: link.release(key))
        self.let_go(key)

    def let_go(self, key: str) -> None:
        """End the lease between clusters, where one is held."""
        if self._leases is not None:
            self._submit(self._ending, functools.partial(self._leases.release, key))

    def answered(self, number: int, answer: Any) -> None:
        """The coordinator's answer to a claim or a publication; called on the link's thread."""
        self._gang.answered(number, answer)

    def lost(self) -> None:
        """The coordinator is lost: this host goes on without it."""
        if self._gang.lost():
            logger.warning("the coordinator is lost; this host resolves on its own")

    def close(self) -> None:
        """Resolve nothing any more; blocks for 2 s at most, to end leases between clusters."""
        self._gang.begin(None)
        for pool in (self._pool, self._settling, self._ending):
            pool.shutdown(wait=False, cancel_futures=True)
        if self._leases is not None:
            ending = threading.Thread(
                target=self._leases.close, name="hotstart-end-leases", daemon=True
            )
            ending.start()
            ending.join(_CLOSE_S)

    def _submit(self, pool: Executor, run: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # closed
            pool.submit(run)

    def _run(self, task: Task, step: Callable[..., Resolved | None], *args: Any) -> None:
        """Take a step; one without an outcome has seen to it that another follows."""

        def run() -> None:
            if self._is_void(task):
                return
            try:
                outcome = step(task, *args)
            except Exception:  # a defect here must not make workers wait for ever
                logger.exception("resolving the key %s failed", task.key)
                self._release(task, store_lease=True)
                outcome = Alone()
            if outcome is None:
                return
            if isinstance(outcome, MayCompile | Alone) and not self._is_void(task):
                self._on_compile()
            wanted = not self._is_void(task) and task.then(outcome)
            if not wanted and isinstance(outcome, MayCompile):
                self._release(task, store_lease=outcome.store_lease)

        self._submit(self._pool, run)

    def _is_void(self, task: Task) -> bool:
        return task.term != self._gang.term

    def _release(self, task: Task, *, store_lease: bool) -> None:
        self._gang.tell(task.term, lambda link: link.release(task.key))
        if store_lease:
            self.let_go(task.key)

    def _start(self, task: Task) -> Resolved | None:
        wanted = task.wanted
        here = self._store.digest_here(wanted.key)
        if here is not None and here == wanted.replaces:
            if not wanted.distrusted and self._store.verifies(wanted.key):
                return self._unread(wanted, here)
            self._store.discard(wanted.key)
            here = None
        return self._claim(task, here)

    def _unread(self, wanted: Wanted, here: bytes) -> Resolved:
        """A worker could not read the node directory's sound entry."""
        if not wanted.node_failed:
            return Here(here, 0, in_node=True, in_store=False)  # repaired meanwhile
        if not wanted.store_failed:
            return Here(here, 0, in_node=False, in_store=True)
        return Alone()  # without a lease, so that nothing is replaced

    def _claim(self, task: Task, here: bytes | None) -> Resolved | None:
        wanted = task.wanted

        def send(link: Link, number: int) -> None:
            link.claim(
                number, task.key,
                have=None if here is None else Held(here, 0),
                failed=task.failed, failed_digest=task.failed_digest,
                may_compile=wanted.may_compile,
            )  # fmt: skip

        if self._gang.ask(task.term, send, lambda answer: self._run(task, self._go_on, answer)):
            return None
        if here is not None:
            return Here(here, 0, in_node=True, in_store=False)
        return self._read(task, absent=wanted.absent or STORE in task.failed)

    def _go_on(self, task: Task, answer: Any) -> Resolved | None:
        match answer:
            case Found() as found:
                return self._bring(task, found)
            case Granted(absent=absent):
                known = absent or task.wanted.absent or STORE in task.failed
                return self._read(task, absent=known)
            case Unstored():
                return Alone()
            case Absent():
                return Nothing(absent=True)
        return self._start(task)  # the coordinator is lost

    def _bring(self, task: Task, found: Found) -> Resolved | None:
        """Get the entry that others have into the node directory."""
        key, digest, in_store = task.key, found.digest, found.in_store
        everywhere = {self._host, *found.sources, *({STORE} if in_store else ())}
        if task.wanted.refuses(digest):
            return self._claim(task.without(everywhere, digest), None)
        here = Here(digest, found.size_bytes, in_node=True, in_store=in_store)
        unread = self._host in task.failed and task.failed_digest == digest
        if not unread and self._store.digest_here(key) == digest:
            return self._share(task, here)
        tried = {self._host}
        for source in [s for s in found.sources if s != self._host][:_PEERS_TRIED]:
            data = self._sources.fetch(source, key, digest)
            if data is not None:
                if self._store.keep(key, data):
                    return self._share(task, here)
                return self._out_of_node(task, here)
            tried.add(source)
        if in_store:
            try:
                read = self._sources.read_store(task.wanted)
            except StoreError:  # counted; a peer may have it
                read = None
            if read is not None and read.digest == digest:
                return self._share(task, read)
            tried.add(STORE)
        # Others have it or are making it: ask them again rather than compile alone.
        return self._claim(task.without(tried, digest), None)

    def _out_of_node(self, task: Task, here: Here) -> Resolved:
        """The entry has come, but the node directory does not take it."""
        if here.in_store and not task.wanted.store_failed:
            return dataclasses.replace(here, in_node=False)
        return Alone() if task.wanted.may_compile else Nothing(absent=False)

    def _share(self, task: Task, here: Here) -> Here:
        """Other hosts may fetch it from this one; ends the lease."""
        where = {"in_node": here.in_node, "in_store": here.in_store}
        self._gang.tell(
            task.term,
            lambda link: link.publish(0, task.key, here.digest, here.size_bytes, **where),
        )
        return here

    def _read(self, task: Task, *, absent: bool) -> Resolved | None:
        """The lease is this host's: look into the store, then between clusters."""
        if task.store_is_lost:
            return MayCompile(absent=False)
        leased, certain = False, task.failed_digest is None
        here: Here | None = None
        try:
            here = None if absent else self._sources.read_store(task.wanted)
            if here is None and task.wanted.may_compile:
                here, leased = self._sources.read_after_clusters(
                    task.wanted, lambda: self._is_void(task)
                )
                if here is not None and leased:
                    self.let_go(task.key)
        except StoreError as error:
            if self._store.strict:
                self._release(task, store_lease=False)
                return Unreadable(f"the cache is required and cannot be used: {error}")
            if task.wanted.may_compile and task.failed_digest is None:
                # Who waits for this host may reach the store, and is asked first.
                self._release(task, store_lease=False)
                return self._claim(task.without_store(), None)
            certain = False
        if here is not None:
            return self._share(task, here)
        if certain:
            self._gang.tell(task.term, lambda link: link.absent(task.key))
        if task.wanted.may_compile:
            return MayCompile(absent=certain, store_lease=leased)
        if not certain:
            self._release(task, store_lease=False)
        return Nothing(absent=certain)
