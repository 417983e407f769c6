"""The events of a run as its record tells them, from any machine: what was, then what comes.

A record holds less than its driver knows: `note`, `attempt_ready`,
`preemption_notice` and `restarting` come from the driver alone; steps, and what hosts it waits for,
with its beats.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from hotstart.cache.errors import TransientError
from hotstart.launcher.errors import first_line
from hotstart.launcher.events import (
    STEPS_EVERY_S,
    EventWriter,
    StepCounts,
    attempt_started_fields,
    emit_run_ended,
    run_started_fields,
)
from hotstart.launcher.facts import Owner, RunEnd, RunState, state_of
from hotstart.launcher.identity import OwnerIdentity
from hotstart.launcher.misses import report_of
from hotstart.launcher.outcome import signal_name
from hotstart.launcher.ownership import OWNER_TTL_S
from hotstart.launcher.preflight import recorded
from hotstart.launcher.record import RunRecord
from hotstart.launcher.workers import Reached

logger = logging.getLogger(__name__)

_LATE_END_S = 10.0


class RecordedEvents:
    """Writes the events of one run from its record. `follow` blocks until the run is over."""

    def __init__(
        self,
        record: RunRecord,
        writer: EventWriter,
        observer: OwnerIdentity,
        *,
        steps_every_s: float = STEPS_EVERY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._record = record
        self._writer = writer
        self._observer = observer
        self._steps_every_s = steps_every_s
        self._clock = clock
        self._epoch = 0
        self._attempt = 1
        self._told: set[str] = set()  # facts of the attempt that have become events
        self._started_s: float | None = None
        self._waited_s = 0.0
        self._later_at: float | None = None  # since when there is a later attempt
        self._process_count = 0
        self._counts = StepCounts(0)
        self._steps: Mapping[str, Any] = {}
        self._steps_at: float | None = None
        self._waiting: tuple[int, str] | None = None
        self._beat = ""
        self._beats: object = None
        self._moved_at = clock()

    def follow(self, poll_s: float, wait: Callable[[float], object]) -> None:
        """Write what has happened and what happens, until the run has ended or is lost.

        `wait` sleeps. Raises `StoreError`, but for a store that is out: it is asked again.
        """
        while True:
            try:
                if self._look():
                    return
            except TransientError as error:
                logger.warning("the record of run %s: %s", self._record.name, first_line(error))
                self._moved_at = self._clock()  # its driver could not beat either
            wait(poll_s)

    def _look(self) -> bool:
        """Whether the run is over; that is looked at first, so that what is read then is all."""
        owner, end = self._record.owner(), self._record.end()
        state = state_of(owner, end, self._observer)
        if owner is not None and owner.epoch > self._epoch:
            self._epoch = owner.epoch
            fields = run_started_fields(self._record, owner.epoch, owner.identity)
            self._writer.emit("run_started", owner.since_s, **fields)
        self._look_at_attempts(is_over=end is not None and state == end.state)
        if owner is not None and state in ("running", "unknown"):
            self._look_at_beat(owner)
        if end is not None and state == end.state:
            self._over(end)
            return True
        if owner is not None and self._is_lost(owner, state):
            who = owner.identity
            self._writer.emit(
                "run_lost",
                epoch=owner.epoch,
                host=who.host if who else None,
                pid=who.pid if who else None,
            )
            return True
        return False

    def _over(self, end: RunEnd) -> None:
        report = report_of(self._record)
        emit_run_ended(self._writer, end, report, superseded=False)

    def _is_lost(self, owner: Owner, state: RunState) -> bool:
        """Whether its driver has gone, or gave no beat for so long that another may take it."""
        beats, now = (owner.epoch, owner.beats), self._clock()
        if beats != self._beats:
            self._beats, self._moved_at = beats, now
        return state == "lost" or (state == "unknown" and now - self._moved_at >= OWNER_TTL_S)

    def _look_at_attempts(self, *, is_over: bool) -> None:
        while True:
            later = self._record.attempt_facts(self._attempt + 1)  # first: its end may come between
            names = self._record.attempt_facts(self._attempt)
            differences = sorted(name for name in names if name.startswith("differs/"))
            for name in ("start", *differences, "first_step", "end"):
                self._tell(name, names)
            if not later or not ("end" in names or is_over or self._has_no_end(later)):
                return
            self._attempt += 1
            self._told, self._started_s, self._later_at = set(), None, None
            self._counts, self._steps = StepCounts(0), {}

    def _has_no_end(self, later: frozenset[str]) -> bool:
        """Whether the attempt has none though a later one goes on: its driver died.

        An end is recorded beside the next start, so it may be there a little later than that.
        """
        if self._later_at is None:
            self._later_at = self._clock()
        return len(later) > 1 or self._clock() - self._later_at >= _LATE_END_S

    def _tell(self, name: str, names: frozenset[str]) -> None:
        if name not in names or name in self._told:
            return
        facts = self._record.attempt_fact(self._attempt, name)
        self._told.add(name)
        if name == "start":
            self._start(facts)
        elif name == "first_step":
            self._first_step(facts)
        elif name == "end":
            self._end(facts)
        else:
            for difference in recorded(facts):
                text = difference["text"]
                self._writer.emit("difference", self._started_s, attempt=self._attempt, text=text)

    def _start(self, facts: Mapping[str, Any]) -> None:
        self._started_s = _seconds(facts.get("started_at_s"))
        self._waited_s = _seconds(facts.get("waited_s")) or 0.0
        size = facts.get("workers")
        sizes = size if isinstance(size, Mapping) else {}
        self._process_count = int(facts.get("process_count") or 0)
        self._counts = StepCounts(self._process_count)
        fields = attempt_started_fields(
            self._attempt,
            self._process_count,
            int(facts.get("host_count") or 0),
            sizes.get("min"),
            sizes.get("max"),
        )
        self._writer.emit("attempt_started", self._started_s, **fields)

    def _first_step(self, facts: Mapping[str, Any]) -> None:
        reports = facts.get("workers")
        phases = [w.get("phases", {}) for w in reports or () if isinstance(w, Mapping)]
        times = [s for p in phases if (s := _seconds(p.get("first_step"))) is not None]
        seconds = max(times, default=None)
        began = self._started_s
        at_s = None if seconds is None or began is None else began - self._waited_s + seconds
        self._writer.emit("first_step", at_s, attempt=self._attempt, seconds=seconds)

    def _look_at_beat(self, owner: Owner) -> None:
        if owner.latest == self._beat:
            return
        self._beat = owner.latest
        says = self._record.said(owner)
        self._wait_in(says.get("waiting"))
        now, workers = self._clock(), says.get("workers")
        if self._steps_at is not None and now - self._steps_at < self._steps_every_s:
            return
        if says.get("attempt") != self._attempt or not isinstance(workers, list):
            return
        programs = says.get("programs")
        hits, compiled = programs if isinstance(programs, list) and len(programs) == 2 else (0, 0)
        for worker in workers:
            if isinstance(worker, list) and len(worker) == 4:
                index, host, phase, step = worker
                self._counts.workers[index] = Reached(index, host, phase, step)
        fields = {**self._counts.fields(), "hits": hits, "compiled": compiled}
        if fields["stepping"] and fields != self._steps:
            self._steps, self._steps_at = fields, now
            self._writer.emit("steps", attempt=self._attempt, **fields)

    def _wait_in(self, said: object) -> None:
        waiting = None
        match said:
            case {"attempt": int(attempt), "text": str(text), "left_s": left_s}:
                waiting = attempt, text
                if waiting != self._waiting:
                    fields = {"attempt": attempt, "text": text, "left_s": left_s}
                    self._writer.emit("waiting_for_hosts", **fields)
        self._waiting = waiting

    def _end(self, facts: Mapping[str, Any]) -> None:
        index = facts.get("first_worker")
        reached = self._counts.workers.get(index) if isinstance(index, int) else None
        counts = self._counts.fields()
        found = facts.get("first_exit")
        first = found if isinstance(found, Mapping) else {}
        number = first.get("signal")
        self._writer.emit(
            "attempt_ended",
            _seconds(facts.get("ended_at_s")),
            attempt=self._attempt,
            outcome=facts.get("outcome"),
            reason=facts.get("reason"),
            first_worker=index,
            first_worker_host=first.get("host") or (reached.host if reached else None),
            exit_code=first.get("exit_code"),
            signal=signal_name(number) if isinstance(number, int) else None,
            min_step=counts["min_step"],
            max_step=counts["max_step"],
        )


def _seconds(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None
