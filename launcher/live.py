"""What a run's workers are doing now, on its way into the owner's beats.

`status` shows it from any machine; the reports of workers are in the record only once all have
stepped, and at the end.
"""

from __future__ import annotations

import threading
from typing import Any

from hotstart.launcher.following import Watcher
from hotstart.launcher.outcome import GiveUp, Outcome, Restart, WorkerExit
from hotstart.launcher.placement import GangSize
from hotstart.launcher.preemption import PreemptionNotice
from hotstart.launcher.workers import Output, Reached


class Live:
    """A `Watcher` that remembers where the workers are, and tells another one everything.

    Safe among threads.
    """

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher
        self._lock = threading.Lock()
        self._attempt: int | None = None
        self._workers: dict[int, Reached] = {}
        self._waiting: dict[str, Any] | None = None

    def says(self) -> dict[str, Any]:
        """Attempt and workers as a JSON object; between attempts what hosts are waited for, if any.

        A worker is `[process index, host, phase, last step]`; `programs` are all workers' hits
        and compilations so far.
        """
        with self._lock:
            if self._attempt is None:
                return {} if self._waiting is None else {"waiting": self._waiting}
            workers = [
                [index, reached.host, reached.phase, reached.last_step]
                for index, reached in sorted(self._workers.items())
            ]
            there = self._workers.values()
            programs = [sum(w.hits for w in there), sum(w.compiled for w in there)]
            return {"attempt": self._attempt, "workers": workers, "programs": programs}

    def waiting(self, attempt: int, need: str, left_s: float) -> None:
        with self._lock:
            self._waiting = {"attempt": attempt, "text": need, "left_s": round(left_s, 1)}
        self._watcher.waiting(attempt, need, left_s)

    def attempt_started(self, attempt: int, size: GangSize) -> None:
        with self._lock:
            self._attempt, self._workers, self._waiting = attempt, {}, None
        self._watcher.attempt_started(attempt, size)

    def output(self, output: Output) -> None:
        self._watcher.output(output)

    def reached(self, reached: Reached) -> None:
        with self._lock:
            self._workers[reached.process_index] = reached
        self._watcher.reached(reached)

    def differs(self, attempt: int, difference: str) -> None:
        self._watcher.differs(attempt, difference)

    def ready(self, attempt: int, seconds: float) -> None:
        self._watcher.ready(attempt, seconds)

    def first_step(self, attempt: int, seconds: float) -> None:
        self._watcher.first_step(attempt, seconds)

    def notice(self, attempt: int, notice: PreemptionNotice) -> None:
        self._watcher.notice(attempt, notice)

    def attempt_ended(
        self,
        attempt: int,
        outcome: Outcome,
        decision: Restart | GiveUp,
        first: WorkerExit | None = None,
    ) -> None:
        with self._lock:
            self._attempt = None
        self._watcher.attempt_ended(attempt, outcome, decision, first)
