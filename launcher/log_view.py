"""Workers' logs on a screen: which attempt, which workers, once or for as long as the run lives."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from hotstart.launcher.errors import UsageError
from hotstart.launcher.facts import state_of
from hotstart.launcher.identity import OwnerIdentity
from hotstart.launcher.record import RunRecord
from hotstart.launcher.run_logs import Reading, RunLogs


class LogView:
    """Prints logs of one run through `echo`, a line at a time."""

    def __init__(
        self,
        record: RunRecord,
        logs: RunLogs,
        workers: Sequence[int],
        attempt: int | None,
        tail: int | None,
        echo: Callable[[str], object],
    ) -> None:
        """`workers` empty is all, `attempt` None the latest."""
        self._record = record
        self._logs = logs
        self._workers = tuple(workers) or None
        self._attempt = attempt
        self._tail = tail
        self._echo = echo
        self._me = OwnerIdentity.of_this_process()

    def show(self) -> None:
        """Print what there is. Raises `UsageError` where that is nothing, `StoreError`."""
        attempts = self._logs.attempts()
        self._check(attempts)
        reading = Reading(self._logs, self._attempt or attempts[-1], self._workers)
        self._check_workers(reading.attempt)
        self._print(reading.new_lines(self._tail))
        self._print(reading.last_lines())

    def follow(self, poll_s: float, wait: Callable[[float], object]) -> None:
        """Print what there is and what comes, until the run, or the one attempt, has ended.

        Blocks; `wait` sleeps. Raises `UsageError` where the run is over and there is nothing.
        """
        reading: Reading | None = None
        while True:
            over = self._is_over()  # before the look: what is read then is all
            if reading is None:
                reading = self._first(over)
                tail = self._tail
            if reading is not None:
                self._print(reading.new_lines(tail))
                tail = None
                for attempt in self._later(reading.attempt):
                    self._print(reading.new_lines())
                    self._print(reading.last_lines())
                    reading = Reading(self._logs, attempt, self._workers)
                    self._echo(f"--- attempt {attempt}")
                    self._print(reading.new_lines())
            if over:
                if reading is not None:
                    self._print(reading.last_lines())
                return
            wait(poll_s)

    def _first(self, over: bool) -> Reading | None:
        """The attempt to begin with, or None while it has no logs."""
        attempts = self._logs.attempts()
        if over:
            self._check(attempts)
        if self._attempt is not None:
            attempts = [n for n in attempts if n == self._attempt]
        return Reading(self._logs, attempts[-1], self._workers) if attempts else None

    def _later(self, attempt: int) -> list[int]:
        """Attempts after this one that have logs, where all are followed."""
        if self._attempt is not None:
            return []
        started = range(attempt + 1, self._record.next_attempt())
        return [n for n in started if self._logs.spans(n)]

    def _is_over(self) -> bool:
        owner, end = self._record.owner(), self._record.end()
        if state_of(owner, end, self._me) in ("done", "failed", "interrupted", "lost"):
            return True
        if self._attempt is None:
            return False
        facts = {a.attempt: a for a in self._record.attempts()}.get(self._attempt)
        return facts is not None and facts.end is not None

    def _check(self, attempts: Sequence[int]) -> None:
        where = f"run {self._record.name} in {self._record.store.url}"
        if not attempts:
            raise UsageError(f"{where} has no logs; no worker of it has written anything yet")
        if self._attempt is not None and self._attempt not in attempts:
            there = ", ".join(map(str, attempts[-20:]))
            raise UsageError(f"{where} has no logs of attempt {self._attempt}; there are {there}")

    def _check_workers(self, attempt: int) -> None:
        if self._workers is None:
            return
        there = self._logs.spans(attempt, self._workers)
        missing = [index for index in self._workers if index not in there]
        if missing:
            last = max(self._logs.spans(attempt), default=0)
            raise UsageError(
                f"attempt {attempt} of run {self._record.name} has no log of worker "
                f"{', '.join(map(str, missing))}; its workers are 0 to {last}"
            )

    def _print(self, lines: Iterable[tuple[int, list[str]]]) -> None:
        alone = self._workers is not None and len(self._workers) == 1
        for index, several in lines:
            for line in several:
                self._echo(line if alone else f"[{index}] {line}")
