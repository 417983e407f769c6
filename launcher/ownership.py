"""Who may start workers for a run: claims, beats, and taking over.

The claim of an epoch is create-only, so exactly one of several contenders gets it. An owner
lives while its beat changes; how long it has not is measured on the observer's own clock.

An owner whose beat was not written for `SURE_S` can't know any more whether another has taken the
run, and stops its workers until it can. That is before anybody may take it (`OWNER_TTL_S` after
the last beat that was seen), so no two attempts write one checkpoint directory.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from hotstart.cache.errors import AccessDenied, StoreError
from hotstart.launcher.errors import RunOwned, UsageError, first_line
from hotstart.launcher.facts import Owner, state_of
from hotstart.launcher.identity import OwnerIdentity
from hotstart.launcher.owner_watch import SURE_S
from hotstart.launcher.record import RunRecord

logger = logging.getLogger(__name__)

OWNER_TTL_S = 30.0
BEAT_INTERVAL_S = 5.0
FIRST_EPOCH = 1
_LOOK_S = 1.0


class Ownership:
    """The right to start workers for a run, kept by beats. Made by `take_ownership`.

    Safe to use from one thread beside the one that `keep` starts.
    """

    def __init__(
        self,
        record: RunRecord,
        epoch: int,
        *,
        claimed_at: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Ownership of an epoch whose claim the caller has created, no sooner than `claimed_at`.

        That is a time of `clock`; None is now.
        """
        self.epoch = epoch
        self._record = record
        self._beat = 0
        self._clock = clock
        self._beat_at = clock() if claimed_at is None else claimed_at
        self._problem = ""
        self._superseded = False
        self._may_delete = True
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def superseded(self) -> bool:
        """Whether the last beat found that another driver has taken the run."""
        return self._superseded

    def beat_age_s(self) -> float:
        """Seconds since the latest beat that is known to be written was begun."""
        return self._clock() - self._beat_at

    def doubt(self) -> str | None:
        """Why this owner can't be sure of the run now, or None where it is."""
        if self._superseded:
            return "another driver has taken the run"
        age_s = self.beat_age_s()
        if age_s < SURE_S:
            return None
        why = f": {self._problem}" if self._problem else ""
        return f"the owner's beat was not written for {age_s:.0f} s{why}"

    def beat(
        self,
        says: Mapping[str, Any] | None = None,
        on_stop: Callable[[], None] = lambda: None,
    ) -> bool:
        """Say that this owner lives; False once another owns the run, and then nothing is written.

        `says` is kept with the beat. `on_stop` is called if somebody has asked to stop the run.
        Blocks on the store (a list, a create, a delete); raises `StoreError`.
        """
        begun_at = self._clock()
        # Where old beats stay, all of them would be listed anew with each.
        owner = self._record.owner() if self._may_delete else None
        if owner is not None:
            self._superseded, stop_asked = owner.epoch != self.epoch, owner.stop_asked
        elif self._may_delete:  # the record was removed
            self._superseded, stop_asked = True, False
        else:
            self._superseded, stop_asked = self._record.signs_for(self.epoch)
        if self._superseded:
            return False
        self._beat += 1  # before the call: a beat whose fate is unknown is not sent again
        self._record.create_fact(f"owner/{self.epoch:08d}/{self._beat:08d}", says or {})
        self._beat_at, self._problem = begun_at, ""
        if stop_asked:
            on_stop()
        if owner is not None:
            self._delete_older(owner)
        return True

    def keep(
        self,
        on_superseded: Callable[[], None],
        *,
        interval_s: float = BEAT_INTERVAL_S,
        on_stop: Callable[[], None] = lambda: None,
        says: Callable[[], Mapping[str, Any]] = dict,
    ) -> None:
        """Beat in a background thread until `stop`; errors of the store are logged, not fatal.

        `on_superseded` is called once, in that thread, when another driver has taken the run, and
        `on_stop` when somebody has asked to stop it, maybe again. A directory is looked at each
        second for that, a bucket with each beat. `says` gives what a beat is to say.
        """
        self._thread = threading.Thread(
            target=self._keep,
            args=(on_superseded, interval_s, on_stop, says),
            name="owner-beat",
            daemon=True,
        )
        self._thread.start()

    def stop(self, timeout_s: float = 1.0) -> None:
        """End the background beats; blocks for at most `timeout_s`.

        A request to a slow store may outlast it: a beat after the run's end changes nothing.
        """
        self._stop.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout_s)

    def _keep(
        self,
        on_superseded: Callable[[], None],
        interval_s: float,
        on_stop: Callable[[], None],
        says: Callable[[], Mapping[str, Any]],
    ) -> None:
        name = self._record.name
        while not self._wait(interval_s, on_stop):
            try:
                owned = self.beat(says(), on_stop)
            except Exception as e:  # a thread that dies here would cost the run its owner
                logger.warning("run %s: no owner's beat this time: %s", name, e)
                self._problem = first_line(e)
                continue
            if not owned:
                logger.warning("run %s: epoch %d is superseded", name, self.epoch)
                on_superseded()
                return

    def _wait(self, interval_s: float, on_stop: Callable[[], None]) -> bool:
        """Wait for the next beat; whether beats are to end."""
        if self._record.store.url.startswith("/"):  # a look there costs nothing
            while interval_s > _LOOK_S:
                if self._stop.wait(_LOOK_S):
                    return True
                interval_s -= _LOOK_S
                with contextlib.suppress(StoreError):
                    if self._record.stop_request(self.epoch) is not None:
                        on_stop()
        return self._stop.wait(interval_s)

    def _delete_older(self, owner: Owner) -> None:
        claim = f"{self._record.name}/owner/{self.epoch:08d}/{0:08d}"
        for name, generation in owner.beats:
            if name != claim and self._may_delete:  # the claim keeps later contenders out
                try:
                    self._record.store.delete(name, generation)
                except AccessDenied as e:
                    logger.warning("run %s: old beats stay: %s", self._record.name, e)
                    self._may_delete = False


def take_ownership(
    record: RunRecord,
    identity: OwnerIdentity,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    ttl_s: float = OWNER_TTL_S,
    poll_s: float = 1.0,
    tell: Callable[[str], None] = lambda text: None,
) -> Ownership:
    """Become the run's owner: at once where that is safe, else after watching the old one.

    At once if the run has no owner or an end, or if the owner was a process of this machine that
    is gone. Otherwise blocks until the old owner's beat moves (raises `RunOwned`) or has not
    moved for `ttl_s` on this process's own `clock`. Two hosts' clocks are never compared.
    Exactly one of several contenders wins; the others raise `RunOwned`. A run that is done
    raises `UsageError`. `tell` is told, in words, of a wait that is longer than from beat to beat.
    """
    first = record.owner()
    if _must_watch(record, first, identity) and first is not None:
        since = asked = clock()
        told = False
        while asked - since < ttl_s:
            if asked - since > BEAT_INTERVAL_S + poll_s and not told:
                told = True
                tell(f"{_who(first)} owns the run and gives no beat; taking it over if it gives "
                     f"none for {ttl_s:g} s")  # fmt: skip
            sleep(max(0.0, min(poll_s, since + ttl_s - clock())))
            asked = clock()  # an answer is no younger, however long this process was stopped
            now = record.owner()
            if now is None or now.epoch != first.epoch:
                raise _owned(record, now)
            if not _must_watch(record, now, identity):
                break
            if now.beats != first.beats:
                raise _owned(record, now)
        else:
            logger.warning("run %s: its owner gave no beat for %g s", record.name, ttl_s)
    epoch = first.epoch + 1 if first else FIRST_EPOCH
    claimed_at = clock()
    if not record.create_fact(f"owner/{epoch:08d}/{0:08d}", asdict(identity)):
        raise _owned(record, record.owner())
    logger.info("run %s: owned in epoch %d by pid %d", record.name, epoch, identity.pid)
    return Ownership(record, epoch, claimed_at=claimed_at, clock=clock)


def _must_watch(record: RunRecord, owner: Owner | None, identity: OwnerIdentity) -> bool:
    state = state_of(owner, record.end(), identity)
    if state == "lost":  # it may have ended in between; what its end says is final now
        state = state_of(owner, record.end(), identity)
    if state == "done":
        raise UsageError(f"run {record.name} is done; launch the job anew instead")
    return state in ("running", "unknown")


def _who(owner: Owner) -> str:
    who = owner.identity
    return f"pid {who.pid} on {who.host} (user {who.user})" if who else "an unreadable owner"


def _owned(record: RunRecord, owner: Owner | None) -> RunOwned:
    run = f"run {record.name} in {record.store.url}"
    if owner is None:
        return RunOwned(f"{run} was removed while its owner was watched")
    since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(owner.since_s))
    return RunOwned(
        f"{run} is owned by {_who(owner)} since {since} by the store's clock; stop that driver "
        f"first (hotstart stop {record.name})"
    )
