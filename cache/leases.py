"""Leases in a store: of several processes, or clusters, one compiles a key and the others wait.

    leases/v1/<entry>@<epoch>                the claim: who holds it (`Holder` in JSON)
    leases/v1/<entry>@<epoch>.<beat>.<id>    empty; the holder lived when it made this
    leases/v1/<entry>@<epoch>.done           empty; released by a role that may not delete

<entry> is the key's entry name without its folder. The claim of epoch 1 is the *gate*: whoever
creates it has the lease, and it goes last, so while it stands nobody comes in but by a takeover.

Taking over. An observer that has seen nothing move in the highest epoch for `ttl_s` on its own
monotonic clock creates the claim of the next epoch, lists once more, and backs out if the holder
has moved or released after all. It need not wait where it sees that the holder was a process of
its own host, and is gone, nor where it has waited for another lease of the same owner in vain
(`LostOwners`): a dead cluster costs `ttl_s` once. Create-only names give each epoch one believer.
There is one believer in all unless a live holder was taken over (suspended, or cut off for
`ttl_s`); that costs a compilation, never a wrong result. Deletions take generations learned while
the lease was certainly the holder's own, so no release removes a successor's lease.

Requests. Without contention 3: a create to claim, a list and a delete to release. The list is
what tells the generation to delete and whether there is a successor; it is not on the way to the
first step. Each beat, every `ttl_s / 4`: a create, a list and a delete. Waiting: a get for each
holder, and one list a poll. A role that may not delete leaves the claims of what it has leased.

What bounds each wait, so that a request ends:
    a holder that ends its work     its compilation and its upload (the store's deadline)
    a holder that dies              `ttl_s` (0 on the same host), a poll and 3 requests; then
                                    exactly one takes over
    a holder that hangs but beats   `renew_for_s`, then it counts as dead
    a store that fails              the store's deadline; then no leases for a minute
A request waits once: who finds nothing where a holder has released compiles without a lease, as
the program is one that JAX does not store, or whose compilation raises.

Why no cycle of waiting can form: a thread takes one lease, as the last thing before it compiles,
and asks for no other key before that compilation has ended. The lease is then gone or the
background writer's. Neither compiling nor writing waits for a lease. So who is waited for waits
for nobody.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable
from typing import Literal

from hotstart.cache.entry import entry_name
from hotstart.cache.errors import AccessDenied, StoreError
from hotstart.cache.lease_holder import Holder, LostOwners
from hotstart.cache.lease_view import Lease, View, lease_name, removable
from hotstart.cache.store import Store

logger = logging.getLogger(__name__)

TTL_S = 30.0
RENEW_FOR_S = 2 * 3600.0
LONGEST_POLL_S = 2.0
OUTAGE_PAUSE_S = 60.0
_FIRST_LOG_S = 10.0
_NEXT_LOG_S = 60.0

Verdict = Literal["mine", "released", "unusable"]


def poll_interval_s(waited_s: float, first_s: float) -> float:
    """How long to wait for the next look: an eighth of the wait so far, within bounds."""
    return min(max(first_s, waited_s / 8), max(first_s, LONGEST_POLL_S))


class StoreLeases:
    """The leases of one process in a store; safe among threads, and in a forked child.

    No call raises `StoreError`: errors go to `on_error`, and the caller goes on as without a
    lease. One daemon thread renews what is held, as long as something is.
    """

    def __init__(
        self,
        store: Store,
        *,
        ttl_s: float = TTL_S,
        renew_for_s: float = RENEW_FOR_S,
        first_poll_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        renew_in_background: bool = True,
        on_error: Callable[[StoreError], None] = lambda error: None,
    ) -> None:
        """`first_poll_s` is 0.1 for a bucket and 0.02 for a directory where it is None.

        Without `renew_in_background` the owner calls `renew`, often enough.
        """
        if first_poll_s is None:
            first_poll_s = 0.1 if store.url.startswith("gs://") else 0.02
        self._store = store
        self._ttl_s = ttl_s
        self._renew_for_s = renew_for_s
        self._first_poll_s = first_poll_s
        self._clock = clock
        self._sleep = sleep
        self._renew_in_background = renew_in_background
        self._on_error = on_error
        self._is_closed = False
        self._lost = LostOwners()
        self._keeper: threading.Thread | None = None
        self._start_anew()

    def claim(self, key: str) -> bool:
        """Take the lease if nobody has it, by one create; does not wait for a holder."""
        self._check_process()
        if self._is_unusable():
            return False
        try:
            return self._claim(key)
        except StoreError as error:
            self._note(error)
            return False

    def await_or_claim(
        self,
        key: str,
        is_over: Callable[[], bool] = lambda: False,
        on_wait: Callable[[], None] = lambda: None,
    ) -> Verdict:
        """Take the lease, or block while another live holder has it, until it lets go.

        "mine": the lease is this process's, at once or because the holder died. "released": the
        holder has published or gave up, or `is_over`, asked before each poll, said so. "unusable":
        the store failed. `on_wait` is called once where this blocks.
        """
        self._check_process()
        if self._is_unusable():
            return "unusable"
        try:
            return "mine" if self._claim(key) else self._wait(key, is_over, on_wait)
        except StoreError as error:
            self._note(error)
            return "unusable"

    def is_published(self, key: str) -> bool:
        """Whether the store has an entry of `key`; False where it fails. One request."""
        try:
            return self._store.stat(entry_name(key)) is not None
        except StoreError as error:
            self._note(error)
            return False

    def release(self, key: str) -> None:
        """Let go of a lease, whichever thread took it; nothing where none is held.

        Blocks for a list and a delete.
        """
        self._check_process()
        with self._changed:
            lease = self._held.pop(key, None)
            if lease is None:
                return
            lease.is_over = True
            self._changed.notify_all()
        self._let_go(lease)

    def renew(self) -> None:
        """Beat for each lease that is due. The background thread calls this."""
        self._check_process()
        now_s = self._clock()
        with self._changed:
            due = [lease for lease in self._held.values() if lease.due_s <= now_s]
        for lease in due:
            if lease.is_over:
                continue
            try:
                self._beat(lease)
            except StoreError as error:
                self._note(error)
            if lease.is_over:  # its release may have looked before the beat came
                self._let_go(lease)

    def close(self) -> None:
        """Let go of everything and give no more leases. Blocks as `release` for each one held.

        Leases of a store that fails are left to go stale.
        """
        self._check_process()
        self._is_closed = True
        with self._changed:
            keys, keeper = list(self._held), self._keeper
            self._paused_until_s = float("-inf")
        for key in keys:
            if not self._is_paused():
                self.release(key)
        with self._changed:
            self._held.clear()
            self._changed.notify_all()
        if keeper is not None and keeper is not threading.current_thread():
            keeper.join(timeout=1.0)

    def _claim(self, key: str) -> bool:
        lease = self._new_lease(key, 1)
        if not self._store.create(lease_name(key, 1), lease.claim):
            return False
        self._hold(lease)
        return True

    def _wait(self, key: str, is_over: Callable[[], bool], on_wait: Callable[[], None]) -> Verdict:
        started_s = self._clock()
        log_s = started_s + _FIRST_LOG_S
        view = self._look(key)
        if view.gate is not None and view.done == view.epoch:  # nobody has it
            if self._take_over(key, view):
                return "mine"
            view = self._look(key)
        seen_s = self._clock()
        gate, epoch = view.gate, view.epoch
        holder: Holder | None = None
        if gate is not None and view.done < epoch:
            on_wait()
        while view.gate is not None and view.gate == gate and view.done < epoch:
            if is_over() or self._is_closed:
                break
            if holder is None or epoch != view.epoch:
                epoch = view.epoch
                holder = Holder.read(self._store.get(lease_name(key, epoch)))
            if self._is_dead(holder, view) and self._take_over(key, view):
                return "mine"
            now_s = self._clock()
            if now_s >= log_s:
                logger.info(
                    "%s: waiting for %s, which has its lease in %s, for %.0f s so far",
                    key, holder.holder, self._store.url, now_s - started_s,
                )  # fmt: skip
                log_s = now_s + _NEXT_LOG_S
            self._sleep(poll_interval_s(now_s - started_s, self._first_poll_s))
            asked_s = self._clock()
            before, view = view, self._look(key)
            if not view.is_same_as(before):
                seen_s = self._clock()
            elif asked_s - seen_s >= self._ttl_s and self._take_over(key, view):
                self._lost.note(holder, view.last_sign_s(epoch))
                return "mine"
        return "released"

    def _is_dead(self, holder: Holder, view: View) -> bool:
        last_sign_s = view.last_sign_s(view.epoch)
        lost = self._lost.has(holder, last_sign_s, self._ttl_s / 2)
        return lost or holder.is_certainly_dead()

    def _take_over(self, key: str, stale: View) -> bool:
        lease = self._new_lease(key, stale.epoch + 1)
        name = lease_name(key, lease.epoch)
        if not self._store.create(name, lease.claim):
            return False
        view = self._look(key)
        claim = view.claim(lease.epoch)
        if claim is None:
            return False
        signs = view.signs(stale.epoch)
        if view.gate != stale.gate or signs != stale.signs(stale.epoch):  # it lives, or let go
            with contextlib.suppress(AccessDenied):  # then it stays, and goes stale
                self._store.delete(name, claim.generation)
            return False
        lease.generation, lease.gate = claim.generation, stale.gate
        self._hold(lease)
        if stale.done < stale.epoch:
            logger.info("%s: its lease is taken over from a process that gives no sign", key)
        return True

    def _beat(self, lease: Lease) -> None:
        now_s = self._clock()
        lease.due_s = now_s + self._ttl_s / 4
        if now_s - lease.since_s > self._renew_for_s:
            return
        lease.beat += 1  # before the call: a beat whose fate is unknown is not sent again
        newest = lease_name(lease.key, lease.epoch, f".{lease.beat:06}.{lease.id}")
        self._store.create(newest, b"")
        view = self._look(lease.key)
        is_ours = self._is_ours(lease, view)
        with contextlib.suppress(AccessDenied):
            for mark in view.marks:
                if mark.beat_of == lease.id and not (is_ours and mark.stat.name == newest):
                    self._store.delete(mark.stat.name, mark.stat.generation)
        if not is_ours and not lease.is_over:
            logger.info("%s: its lease was lost to another process", lease.key)
            with self._changed:
                if self._held.get(lease.key) is lease:
                    del self._held[lease.key]

    def _let_go(self, lease: Lease) -> None:
        try:
            view = self._look(lease.key)
            is_ours = self._is_ours(lease, view)
            try:
                for stat in removable(lease, view, is_ours=is_ours):
                    self._store.delete(stat.name, stat.generation)
            except AccessDenied:
                if is_ours:
                    self._store.create(lease_name(lease.key, lease.epoch, ".done"), b"")
        except StoreError as error:
            self._note(error)

    def _is_ours(self, lease: Lease, view: View) -> bool:
        """Whether the claim in `view` is this lease's; learns its generation where unknown.

        Nobody can have taken over, released and claimed anew in less than `ttl_s`; later the
        bytes tell.
        """
        found = view.claim(lease.epoch)
        if found is None:
            return False
        if lease.generation is None:
            is_young = self._clock() - lease.since_s < self._ttl_s
            if not is_young and self._store.get(found.name) != lease.claim:
                return False
            lease.generation = lease.gate = found.generation  # of epoch 1: others know theirs
        return found.generation == lease.generation

    def _look(self, key: str) -> View:
        return View.of(self._store.list(lease_name(key)))

    def _new_lease(self, key: str, epoch: int) -> Lease:
        now_s = self._clock()
        return Lease(key, epoch, now_s, now_s + self._ttl_s / 4, self._owner)

    def _hold(self, lease: Lease) -> None:
        with self._changed:
            self._held[lease.key] = lease
            if self._keeper is None and self._renew_in_background:
                keeper = threading.Thread(target=self._keep, name="hotstart-lease", daemon=True)
                with contextlib.suppress(RuntimeError):  # the interpreter is ending
                    keeper.start()
                    self._keeper = keeper

    def _keep(self) -> None:
        changed = self._changed
        while True:
            with changed:
                if not self._held:
                    self._keeper = None
                    return
                wait_s = min(lease.due_s for lease in self._held.values()) - self._clock()
                if wait_s > 0:
                    changed.wait(wait_s)
                    continue
            try:
                self.renew()
            except Exception:  # a thread that dies here would cost all the leases
                logger.exception("renewing leases in %s failed", self._store.url)

    def _note(self, error: StoreError) -> None:
        self._paused_until_s = self._clock() + OUTAGE_PAUSE_S
        self._on_error(error)

    def _is_paused(self) -> bool:
        return self._clock() < self._paused_until_s

    def _is_unusable(self) -> bool:
        return self._is_closed or self._is_paused()

    def _start_anew(self) -> None:
        self._pid = os.getpid()
        self._owner = uuid.uuid4().hex
        self._changed = threading.Condition()
        self._held: dict[str, Lease] = {}
        self._keeper = None
        self._paused_until_s = float("-inf")

    def _check_process(self) -> None:
        # A forked child has neither the parent's threads nor its leases, and one of those threads
        # may have had the lock.
        if os.getpid() != self._pid:
            self._start_anew()
