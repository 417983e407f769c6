"""The state of a run as an observer sees it: who owns it, whether that one lives, what to do next.

Nothing is known of another machine's clock, so a beat's age means nothing here: where the owner is
on another machine its beat is watched for a while, and what is said is whether it moved.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from hotstart.launcher.facts import AttemptFacts, Owner, RunFacts, RunState
from hotstart.launcher.identity import OwnerIdentity
from hotstart.launcher.ownership import OWNER_TTL_S
from hotstart.launcher.progress import PHASES
from hotstart.launcher.record import RunRecord

SCHEMA = 1
WATCH_S = 8.0  # longer than from beat to beat
_POLL_S = 0.5
_SHOWN_WORKERS = 16
_SHOWN_REASONS = 3


@dataclass(frozen=True)
class Watched:
    """What watching an owner's beat has shown; `moved` is None where it was not watched."""

    moved: bool | None
    seconds: float


def watch_beat(
    record: RunRecord,
    owner: Owner,
    watch_s: float,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Watched:
    """Watch until the owner's beat moves, at most `watch_s`. Raises `StoreError`.

    An owner that was superseded meanwhile counts as moved: somebody lives.
    """
    began = clock()
    while (left_s := began + watch_s - clock()) > 0:
        sleep(min(_POLL_S, left_s))
        now = record.owner()
        if now is None or now.epoch != owner.epoch or now.beats != owner.beats:
            return Watched(True, clock() - began)
    return Watched(False if watch_s > 0 else None, clock() - began)


def run_status(
    record: RunRecord,
    observer: OwnerIdentity,
    watch_s: float = WATCH_S,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    run_dir_argument: str = "",
) -> dict[str, Any]:
    """The status as JSON-ready data of schema 1, described in docs/runs.md.

    Blocks for as long as the beat is watched: not at all where the owner's machine is this one.
    `run_dir_argument` is what the next command needs to find the run directory.
    """
    facts = record.read(observer)
    watched = Watched(None, 0.0)
    if facts.state == "unknown" and facts.owner is not None:
        watched = watch_beat(record, facts.owner, watch_s, clock=clock, sleep=sleep)
        facts = record.read(observer)  # it may have ended meanwhile
    state = _state(facts, watched)
    says = record.said(facts.owner) if facts.owner and state in ("running", "unknown") else {}
    last = facts.attempts[-1] if facts.attempts else None
    ended = facts.end if facts.end is not None and facts.end.state == facts.state else None
    return {
        "schema": SCHEMA,
        "run": facts.run,
        "run_dir": record.store.url,
        "state": state,
        "exit_code": ended.exit_code if ended else None,
        "reason": ended.reason if ended else None,
        "may_restart": ended.may_restart if ended else None,
        "owner": None if facts.owner is None else _owner(facts.owner, facts.state, watched),
        "attempts": len(facts.attempts),
        "attempt": None if last is None else _attempt(last, says),
        "waiting": _waiting(says),
        "reasons": [
            {"attempt": a.attempt, "outcome": a.end.get("outcome"), "reason": a.end.get("reason")}
            for a in facts.attempts[-_SHOWN_REASONS:]
            if a.end is not None
        ],
        "next": [f"hotstart {c} {facts.run}{o}{run_dir_argument}" for c, o in _next(state)],
    }


def status_lines(status: Mapping[str, Any]) -> Iterator[str]:
    """A status of schema 1 for a person."""
    yield f"run {status['run']} in {status['run_dir']}"
    ended = f" (exit code {status['exit_code']}): {status['reason']}" if status["reason"] else ""
    yield f"state: {status['state']}{ended}"
    if status["owner"] is not None and status["exit_code"] is None:
        yield f"owner: {_owner_line(status['owner'])}"
    attempt = status["attempt"]
    if attempt is not None:
        hosts = {worker["host"] for worker in attempt["workers"] if worker["host"]}
        where = f" on {_count(len(hosts), 'host')}" if hosts else ""
        how = f", {attempt['outcome']}" if attempt["outcome"] else ""
        started = f", started {attempt['started_at']}" if attempt["started_at"] else ""
        yield (
            f"attempt {attempt['attempt']}{how}: {_count(attempt['process_count'], 'worker')}"
            f"{where}{started}"
        )
        workers = attempt["workers"]
        for worker in workers[:_SHOWN_WORKERS]:
            step = "no step yet" if worker["last_step"] is None else f"step {worker['last_step']}"
            yield f"  [{worker['process_index']}] {worker['host']}: {worker['phase']}, {step}"
        if len(workers) > _SHOWN_WORKERS:
            steps = [w["last_step"] for w in workers if w["last_step"] is not None]
            reached = f", steps {min(steps)} to {max(steps)}" if steps else ""
            yield f"  and {len(workers) - _SHOWN_WORKERS} more{reached}; --json has all"
    if status["waiting"] is not None:
        yield f"attempt {status['waiting']['attempt']} waits for hosts: {status['waiting']['text']}"
    for reason in status["reasons"]:
        yield f"attempt {reason['attempt']} ended: {reason['outcome']}: {reason['reason']}"
    for command in status["next"]:
        yield f"next: {command}"


def _state(facts: RunFacts, watched: Watched) -> RunState:
    if facts.state != "unknown" or watched.moved is None:
        return facts.state
    if watched.moved:
        return "running"
    return "lost" if watched.seconds >= OWNER_TTL_S else "unknown"


def _owner(owner: Owner, state: RunState, watched: Watched) -> dict[str, Any]:
    identity = owner.identity
    alive = {"running": True, "lost": False}.get(state, watched.moved or None)
    return {
        "host": identity.host if identity else None,
        "user": identity.user if identity else None,
        "pid": identity.pid if identity else None,
        "epoch": owner.epoch,
        "since": _iso(owner.since_s),
        "last_beat_at": _iso(owner.last_beat_s),
        "process_alive": alive if state in ("running", "lost") else None,
        "beat_moved": watched.moved,
        "watched_s": round(watched.seconds, 1),
        "stop_asked": owner.stop_asked,
    }


def _owner_line(owner: Mapping[str, Any]) -> str:
    who = "unreadable" if owner["pid"] is None else (
        f"pid {owner['pid']} on {owner['host']} (user {owner['user']})"
    )  # fmt: skip
    if owner["process_alive"] is not None:
        lives = "lives on this machine" if owner["process_alive"] else "has gone from this machine"
    elif owner["beat_moved"] is None:
        lives = "was not looked at"
    elif owner["beat_moved"]:
        lives = f"lives: its beat moved within {owner['watched_s']:.0f} s"
    else:
        lives = f"gave no beat for the {owner['watched_s']:.0f} s that it was watched"
    stop = "; it is asked to stop" if owner["stop_asked"] else ""
    return (
        f"{who}, epoch {owner['epoch']}, {lives}; last beat {owner['last_beat_at']} by the store's "
        f"clock{stop}"
    )


def _attempt(facts: AttemptFacts, says: Mapping[str, Any]) -> dict[str, Any]:
    end = facts.end or {}
    started_s = facts.start.get("started_at_s")
    live = says.get("workers") if says.get("attempt") == facts.attempt else None
    workers = [_live_worker(w) for w in live or () if isinstance(w, list) and len(w) == 4]
    return {
        "attempt": facts.attempt,
        "outcome": end.get("outcome"),
        "reason": end.get("reason"),
        "started_at": _iso(started_s) if isinstance(started_s, int | float) else None,
        "process_count": int(facts.start.get("process_count") or 0),
        "workers": workers or [_reported_worker(report) for report in facts.workers],
    }


def _waiting(says: Mapping[str, Any]) -> dict[str, Any] | None:
    match says.get("waiting"):
        case {"attempt": int(attempt), "text": str(text)}:
            return {"attempt": attempt, "text": text}
    return None


def _live_worker(worker: list[Any]) -> dict[str, Any]:
    index, host, phase, last_step = worker
    return {"process_index": index, "host": host, "phase": phase, "last_step": last_step}


def _reported_worker(report: Mapping[str, Any]) -> dict[str, Any]:
    phases = report.get("phases")
    there = phases if isinstance(phases, Mapping) else {}
    phase = next((p for p in reversed(PHASES) if there.get(p) is not None), "")
    host, step = str(report.get("host", "")), report.get("last_step")
    return _live_worker([report.get("process_index"), host, phase, step])


def _next(state: RunState) -> list[tuple[str, str]]:
    match state:
        case "done":
            return [("report", "")]
        case "running":
            return [("logs", " -f"), ("stop", "")]
        case _:
            return [("restart", ""), ("logs", " --tail 50")]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
