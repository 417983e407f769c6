"""Stopping a run from another machine: a request in its record, which its owner finds.

The request names an epoch, so it asks that owner alone: a later restart is not stopped by it. The
owner looks for it with each beat (every 5 s, and once a second where the run directory is a
directory), ends its workers as Ctrl-C does, and records the run's end. Watchers, which would start
another driver, are asked beside it (`watchers.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from hotstart.launcher.facts import RunEnd, state_of
from hotstart.launcher.identity import OwnerIdentity
from hotstart.launcher.ownership import OWNER_TTL_S
from hotstart.launcher.record import RunRecord
from hotstart.launcher.watchers import ask_watchers, live_watchers

_POLL_S = 0.5
_WATCHER_S = 20.0  # in which a watcher that lives has looked


@dataclass(frozen=True)
class Stopped:
    """How a stop went.

    ended: the run has ended since; `end` says how. over: it had ended before. nobody: it has no
    driver that lives, so there was nobody to ask. silent: its driver gave no beat meanwhile.
    waiting: the driver lives and hasn't ended the run within the timeout. unwatched: there was no
    driver, but somebody who watched over the run (`owner`), and does no more. deaf: who watched
    over it did not end in time.
    """

    how: Literal["ended", "over", "nobody", "silent", "waiting", "unwatched", "deaf"]
    end: RunEnd | None = None
    owner: OwnerIdentity | None = None


def stop_run(
    record: RunRecord,
    identity: OwnerIdentity,
    timeout_s: float,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    asked: Callable[[OwnerIdentity | None], None] = lambda owner: None,
) -> Stopped:
    """Ask the run's owner to stop it, and wait for the end; blocks for at most `timeout_s`.

    Who watches over the run is asked too, and waited for where there is no owner. `asked` is told
    once that a request is there. An owner whose beat doesn't move for the time to live, or whose
    process has gone from this machine, is not waited for: its request stays, so that it ends its
    workers should it come back. Raises `StoreError`.
    """
    facts = {"host": identity.host, "user": identity.user, "pid": identity.pid}
    facts["asked_s"] = time.time()
    began = clock()
    watchers = ask_watchers(record, identity, facts)
    while True:
        left_s = began + timeout_s - clock()
        epoch = _epoch(record)
        went = _stop_owner(record, identity, left_s, facts, clock, sleep, asked)
        if not watchers or went.how not in ("nobody", "over"):
            return went
        asked(watchers[0].identity)
        until = min(began + timeout_s, clock() + _WATCHER_S)
        while clock() < until and _epoch(record) == epoch:
            ids = {watcher.id for watcher in live_watchers(record, identity)}
            if not any(watcher.id in ids for watcher in watchers):
                return Stopped("unwatched", went.end, watchers[0].identity)
            sleep(min(_POLL_S, max(0.0, until - clock())))
        if _epoch(record) == epoch:
            return Stopped("deaf", went.end, watchers[0].identity)
        # It had begun to start a driver, which is to be stopped now.


def _epoch(record: RunRecord) -> int:
    owner = record.owner()
    return 0 if owner is None else owner.epoch


def _stop_owner(
    record: RunRecord,
    identity: OwnerIdentity,
    timeout_s: float,
    facts: Mapping[str, Any],
    clock: Callable[[], float],
    sleep: Callable[[float], None],
    asked: Callable[[OwnerIdentity | None], None],
) -> Stopped:
    owner, end = record.owner(), record.end()
    state = state_of(owner, end, identity)
    if owner is None:
        return Stopped("nobody")
    if state in ("done", "failed", "interrupted"):
        return Stopped("over", end, owner.identity)
    record.ask_to_stop(owner.epoch, facts)
    if state == "lost":
        return Stopped("nobody", owner=owner.identity)
    asked(owner.identity)
    began = moved_at = clock()
    while clock() - began < timeout_s:
        sleep(min(_POLL_S, max(0.0, began + timeout_s - clock())))
        now, end = record.owner(), record.end()
        if end is not None and end.epoch >= owner.epoch:
            return Stopped("ended", end, owner.identity)
        if now is None or now.epoch != owner.epoch or state_of(now, end, identity) == "lost":
            end = record.end()  # it may have ended in between
            if end is not None and end.epoch >= owner.epoch:
                return Stopped("ended", end, owner.identity)
            return Stopped("nobody", owner=owner.identity)
        if now.beats != owner.beats:
            owner, moved_at = now, clock()
        elif clock() - moved_at >= OWNER_TTL_S:
            return Stopped("silent", owner=owner.identity)
    return Stopped("waiting", owner=owner.identity)


def stop_reason(request: Mapping[str, Any]) -> str:
    """Who has asked, for the run's end."""
    who = f"{request.get('user', 'somebody')} on {request.get('host', 'another machine')}"
    return f"stopped by {who} (hotstart stop)"


def stopped_json(run: str, went: Stopped) -> dict[str, Any]:
    """How a stop went, for `--json`."""
    end, owner = went.end, went.owner
    return {
        "run": run,
        "how": went.how,
        "state": end.state if end else None,
        "exit_code": end.exit_code if end else None,
        "reason": end.reason if end else None,
        "owner": {"host": owner.host, "user": owner.user, "pid": owner.pid} if owner else None,
    }


def stopped_line(run: str, went: Stopped, timeout_s: float, run_dir_argument: str) -> str:
    """How a stop went, for a person."""
    who = f"pid {went.owner.pid} on {went.owner.host}" if went.owner else "its driver"
    again = f"hotstart restart {run}{run_dir_argument}"
    match went.how:
        case "ended" | "over" if went.end is not None:
            before = "had ended before" if went.how == "over" else "has ended"
            text = f"{run} {before}: {went.end.state}, {went.end.reason}"
            return text if went.end.state == "done" else f"{text}; restart it with: {again}"
        case "silent":
            return (
                f"{who} gave no beat for {OWNER_TTL_S:.0f} s, so {run} has nobody to stop it; the "
                f"request stays, should that driver come back; take the run over with: {again}"
            )
        case "unwatched":
            return f"{who} watches over {run} no more; it has no driver; go on with: {again}"
        case "deaf":
            return (
                f"{who} watched over {run} and has not ended: it is out of reach, or was killed; "
                "the request stays, should it come back"
            )
        case "waiting":
            return (
                f"{run} has not ended within {timeout_s:g} s, but {who} lives and is asked; look "
                f"with: hotstart status {run}{run_dir_argument}"
            )
        case _:
            return f"{run} has no driver that lives: there is nobody to stop; go on with: {again}"
