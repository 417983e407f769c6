"""Events for machines while a run goes on: one JSON object a line, described in docs/events.md.

    {"schema": 1, "event": "first_step", "at": "2026-11-24T16:30:16.700+00:00", "run": "lm-1",
     "attempt": 1, "seconds": 14.2}

`EVENTS` is the one list of what there is. An event has exactly its fields, whoever tells it: the
driver of a run as things happen (`Events`), or who follows its record (`recorded_events.py`).
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, TextIO

from hotstart.launcher.facts import RunEnd
from hotstart.launcher.following import Watcher
from hotstart.launcher.identity import OwnerIdentity
from hotstart.launcher.outcome import GiveUp, Outcome, Restart, WorkerExit, signal_name
from hotstart.launcher.ownership import FIRST_EPOCH
from hotstart.launcher.placement import GangSize
from hotstart.launcher.preemption import PreemptionNotice
from hotstart.launcher.record import RunRecord
from hotstart.launcher.workers import Output, Reached

SCHEMA = 1
EVENTS: Mapping[str, tuple[str, ...]] = {
    "run_started": ("run_dir", "logs", "checkpoints", "restart", "epoch", "host", "pid"),
    "note": ("text",),
    "waiting_for_hosts": ("attempt", "text", "left_s"),
    "attempt_started": ("attempt", "process_count", "host_count", "workers_wanted"),
    "difference": ("attempt", "text"),
    "attempt_ready": ("attempt", "seconds"),
    "first_step": ("attempt", "seconds"),
    "steps": ("attempt", "process_count", "stepping", "min_step", "max_step", "slowest_worker",
              "hits", "compiled"),
    "preemption_notice": ("attempt", "source", "detail", "host", "process_index", "left_s", "text"),
    "attempt_ended": ("attempt", "outcome", "reason", "first_worker", "first_worker_host",
                      "exit_code", "signal", "min_step", "max_step"),
    "restarting": ("attempt", "delay_s", "failures_left", "preemptions_left"),
    "report": ("report",),
    "run_lost": ("epoch", "host", "pid"),
    "run_ended": ("state", "exit_code", "reason", "may_restart", "superseded", "attempts"),
}  # fmt: skip
STEPS_EVERY_S = 10.0
_SUMS = ("requests", "hits", "compiled", "errors", "compile_s", "saved_s")


class EventWriter:
    """Writes the events of one run, each by one call of `write` with a whole line."""

    def __init__(
        self, run: str, write: Callable[[str], object], now: Callable[[], float] = time.time
    ) -> None:
        """`now` is wall-clock time in seconds since the epoch, for display only."""
        self._run = run
        self._write = write
        self._now = now

    def emit(self, event: str, at_s: float | None = None, /, **fields: Any) -> None:
        """Write an event; `at_s` is when it happened, now unless said. KeyError for other fields.

        Blocks as long as `write` does.
        """
        if fields.keys() != set(EVENTS[event]):
            raise KeyError(f"{event} has the fields {EVENTS[event]}, not {tuple(fields)}")
        at = datetime.fromtimestamp(self._now() if at_s is None else at_s, UTC)
        head = {
            "schema": SCHEMA,
            "event": event,
            "at": at.isoformat(timespec="milliseconds"),
            "run": self._run,
        }
        line = {**head, **{name: fields[name] for name in EVENTS[event]}}
        self._write(json.dumps(line) + "\n")


class StepCounts:
    """Where the workers of one attempt are, summed up; of any number of workers one small event."""

    def __init__(self, process_count: int) -> None:
        self._process_count = process_count
        self.workers: dict[int, Reached] = {}

    def fields(self) -> dict[str, Any]:
        """The fields of `steps` but for the attempt; the lowest process index of the slowest."""
        steps = {i: w.last_step for i, w in self.workers.items() if w.last_step is not None}
        slowest = min(steps, key=lambda i: (steps[i], i), default=None)
        return {
            "process_count": self._process_count,
            "stepping": len(steps),
            "min_step": min(steps.values(), default=None),
            "max_step": max(steps.values(), default=None),
            "slowest_worker": slowest,
            "hits": sum(w.hits for w in self.workers.values()),
            "compiled": sum(w.compiled for w in self.workers.values()),
        }


class Events:
    """A `Watcher` that writes events, and tells another one everything.

    `steps` comes each ten seconds at most, and only where something has moved.
    """

    def __init__(
        self,
        writer: EventWriter,
        watcher: Watcher,
        *,
        steps_every_s: float = STEPS_EVERY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._writer = writer
        self._watcher = watcher
        self._steps_every_s = steps_every_s
        self._clock = clock
        self._attempt = 0
        self._counts = StepCounts(0)
        self._told: dict[str, Any] = {}
        self._told_at = 0.0

    def waiting(self, attempt: int, need: str, left_s: float) -> None:
        self._writer.emit("waiting_for_hosts", attempt=attempt, text=need, left_s=round(left_s, 1))
        self._watcher.waiting(attempt, need, left_s)

    def attempt_started(self, attempt: int, size: GangSize) -> None:
        self._attempt, self._counts = attempt, StepCounts(size.process_count)
        self._told, self._told_at = self._counts.fields(), self._clock()
        fields = attempt_started_fields(
            attempt, size.process_count, size.host_count, size.least, size.most
        )
        self._writer.emit("attempt_started", **fields)
        self._watcher.attempt_started(attempt, size)

    def output(self, output: Output) -> None:
        self._watcher.output(output)

    def reached(self, reached: Reached) -> None:
        self._counts.workers[reached.process_index] = reached
        if self._clock() - self._told_at >= self._steps_every_s:
            self._tell_steps()
        self._watcher.reached(reached)

    def _tell_steps(self) -> None:
        fields = self._counts.fields()
        if fields["stepping"] and fields != self._told:
            self._told, self._told_at = fields, self._clock()
            self._writer.emit("steps", attempt=self._attempt, **fields)

    def differs(self, attempt: int, difference: str) -> None:
        self._writer.emit("difference", attempt=attempt, text=difference)
        self._watcher.differs(attempt, difference)

    def ready(self, attempt: int, seconds: float) -> None:
        self._writer.emit("attempt_ready", attempt=attempt, seconds=round(seconds, 3))
        self._watcher.ready(attempt, seconds)

    def first_step(self, attempt: int, seconds: float) -> None:
        self._writer.emit("first_step", attempt=attempt, seconds=round(seconds, 3))
        self._watcher.first_step(attempt, seconds)

    def notice(self, attempt: int, notice: PreemptionNotice) -> None:
        self._writer.emit(
            "preemption_notice",
            attempt=attempt,
            source=notice.source,
            detail=notice.detail,
            host=notice.host,
            process_index=notice.process_index,
            left_s=notice.left_s,
            text=str(notice),
        )
        self._watcher.notice(attempt, notice)

    def attempt_ended(
        self,
        attempt: int,
        outcome: Outcome,
        decision: Restart | GiveUp,
        first: WorkerExit | None = None,
    ) -> None:
        counts = self._counts.fields()
        index = outcome.first_worker
        reached = None if index is None else self._counts.workers.get(index)
        self._writer.emit(
            "attempt_ended",
            attempt=attempt,
            outcome=outcome.kind,
            reason=outcome.reason,
            first_worker=index,
            first_worker_host=first.host if first else reached.host if reached else None,
            exit_code=first.exit_code if first else None,
            signal=signal_name(first.signal) if first and first.signal is not None else None,
            min_step=counts["min_step"],
            max_step=counts["max_step"],
        )
        if isinstance(decision, Restart):
            self._writer.emit(
                "restarting",
                attempt=attempt + 1,
                delay_s=round(decision.delay_s, 3),
                failures_left=decision.budgets_left.failures,
                preemptions_left=decision.budgets_left.preemptions,
            )
        self._watcher.attempt_ended(attempt, outcome, decision, first)


def run_started_fields(
    record: RunRecord, epoch: int, owner: OwnerIdentity | None
) -> dict[str, Any]:
    """The fields of `run_started`: the run in the hands of the owner of `epoch`."""
    return {
        "run_dir": record.store.url,
        "logs": record.log_location,
        "checkpoints": record.checkpoint_location,
        "restart": epoch != FIRST_EPOCH,
        "epoch": epoch,
        "host": owner.host if owner else None,
        "pid": owner.pid if owner else None,
    }


def attempt_started_fields(
    attempt: int, process_count: int, host_count: int, least: int | None, most: int | None
) -> dict[str, Any]:
    """The fields of `attempt_started`."""
    return {
        "attempt": attempt,
        "process_count": process_count,
        "host_count": host_count,
        "workers_wanted": {"min": least, "max": most},
    }


def emit_run_ended(
    writer: EventWriter,
    end: RunEnd,
    report: Mapping[str, Any] | None,
    *,
    superseded: bool,
    at_s: float | None = None,
) -> None:
    """The last two events of a run, or the last one where its record gives no report."""
    if report is not None:
        writer.emit("report", at_s, report=report)
    writer.emit(
        "run_ended",
        at_s,
        state=end.state,
        exit_code=end.exit_code,
        reason=end.reason,
        may_restart=end.may_restart,
        superseded=superseded,
        attempts=[_summed(attempt) for attempt in (report or {}).get("attempts", ())],
    )


def _summed(attempt: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: attempt[name] for name in ("attempt", "outcome", "seconds_to_first_step")}
    caches = [worker["cache"] for worker in attempt["workers"]]
    return kept | {name: round(sum(cache[name] for cache in caches), 3) for name in _SUMS}


def take_stdout() -> TextIO:
    """Standard output for events alone; what else is printed there goes to standard error.

    So is what native code and child processes print: their descriptor is 1. Where either is closed
    what is for it goes nowhere.
    """
    if sys.stdout is None:
        return open(os.devnull, "w", encoding="utf-8")
    sys.stdout.flush()
    number = sys.stdout.fileno()
    # Not at 2, were that free: whatever writes to standard error would write there.
    stream = os.fdopen(fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 3), "w", encoding="utf-8")
    try:
        os.dup2(2, number)
    except OSError:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), number)
    return stream
