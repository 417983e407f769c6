"""Who may start workers for a run: claims, and taking over.

The claim of an epoch is create-only, so exactly one of several contenders gets it. An owner
lives while its beat changes; how long it has not is measured on the observer's own clock.

An owner whose beat was not written for `SURE_S` can't know any more whether another has taken the
run, and stops its workers until it can (`beats.py`). That is before anybody may take it
(`OWNER_TTL_S` after the last beat that was seen), so no two attempts write one checkpoint
directory.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import asdict

from hotstart.cache.errors import StoreError
from hotstart.launcher.beats import BEAT_INTERVAL_S, Ownership
from hotstart.launcher.errors import RunOwned, UsageError
from hotstart.launcher.facts import Owner, state_of
from hotstart.launcher.identity import OwnerIdentity
from hotstart.launcher.record import RunRecord

logger = logging.getLogger(__name__)

OWNER_TTL_S = 30.0
FIRST_EPOCH = 1


def take_ownership(
    record: RunRecord,
    identity: OwnerIdentity,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    ttl_s: float = OWNER_TTL_S,
    poll_s: float = 1.0,
    tell: Callable[[str], None] = lambda text: None,
    beats: RunRecord | None = None,
) -> Ownership:
    """Become the run's owner: at once where that is safe, else after watching the old one.

    At once if the run has no owner or an end, or if the owner was a process of this machine that
    is gone. Otherwise blocks until the old owner's beat moves (raises `RunOwned`) or has not
    moved for `ttl_s` on this process's own `clock`. Two hosts' clocks are never compared.
    Exactly one of several contenders wins; the others raise `RunOwned`. A run that is done
    raises `UsageError`. `tell` is told, in words, of a wait that is longer than from beat to beat.

    An owner that was silent and gives a beat in the very moment of the claim finds the claim with
    its next one: until it has ended, or can't be sure of the run any more, this blocks, for up to
    `ttl_s` more. `beats` is the same record for the owner's beats, by a store with short deadlines.
    """
    first, was_silent = record.owner(), False
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
            was_silent = True
            logger.warning("run %s: its owner gave no beat for %g s", record.name, ttl_s)
    epoch = first.epoch + 1 if first else FIRST_EPOCH
    claimed_at = clock()
    if not record.create_fact(f"owner/{epoch:08d}/{0:08d}", asdict(identity)):
        raise _owned(record, record.owner())
    logger.info("run %s: owned in epoch %d by pid %d", record.name, epoch, identity.pid)
    ownership = Ownership(beats or record, epoch, claimed_at=claimed_at, clock=clock)
    if first is not None or ownership.doubt() is not None:
        with contextlib.suppress(StoreError):  # the next beat looks too
            now = record.owner()  # the answer to the claim may have been long on its way
            if now is None or now.epoch != epoch:
                raise _owned(record, now)
    if was_silent and first is not None:
        _see_off(record, first, ownership, identity, clock, sleep, ttl_s, poll_s, tell)
    return ownership


def _see_off(
    record: RunRecord,
    old: Owner,
    ownership: Ownership,
    identity: OwnerIdentity,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
    ttl_s: float,
    poll_s: float,
    tell: Callable[[str], None],
) -> None:
    """Block while an owner that was silent, and is not now, may think that it owns the run."""
    since, told = clock(), False
    while clock() - since < ttl_s:
        with contextlib.suppress(StoreError):
            beats, end = record.beats(old.epoch), record.end()
            if beats == old.beats or (end is not None and end.epoch >= old.epoch):
                return
            if not told:
                told = True
                tell(f"{_who(old)} gives beats again; waiting until it has ended its workers")
            if ownership.beat_age_s() >= BEAT_INTERVAL_S and not ownership.beat():
                raise _owned(record, record.owner())
        if old.identity is not None and identity.knows_dead(old.identity):
            return
        sleep(min(poll_s, max(0.0, since + ttl_s - clock())))


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
