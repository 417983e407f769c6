"""What a person sees of a run: worker output with the process index in front, and attempts."""

from __future__ import annotations

import io
import sys
from typing import TextIO

from hotstart.launcher.outcome import GiveUp, Outcome, Restart
from hotstart.launcher.workers import Output

_COLORS = (36, 35, 33, 32, 34, 31)


class Console:
    """A `Watcher` that writes plain lines, colored where `stream` is a terminal."""

    def __init__(self, run: str, process_count: int, stream: TextIO | None = None) -> None:
        self._run = run
        self._width = len(str(process_count - 1))
        self._stream = stream or sys.stdout
        if isinstance(self._stream, io.TextIOWrapper):
            # What a worker prints must not end the run where this terminal has no such character.
            self._stream.reconfigure(errors="backslashreplace")
        self._colored = self._stream.isatty()

    def say(self, text: str) -> None:
        """One line of the launcher's own."""
        self._stream.write(f"{self._paint('hotstart', 1)} {text}\n")
        self._stream.flush()

    def attempt_started(self, attempt: int) -> None:
        self.say(f"{self._run}: attempt {attempt} started")

    def output(self, output: Output) -> None:
        index = output.process_index
        prefix = self._paint(f"[{index:>{self._width}}]", _COLORS[index % len(_COLORS)])
        self._stream.write("".join(f"{prefix} {line}\n" for line in output.lines))
        self._stream.flush()

    def first_step(self, attempt: int, seconds: float) -> None:
        self.say(f"attempt {attempt}: first step after {seconds:.1f} s")

    def attempt_ended(self, attempt: int, outcome: Outcome, decision: Restart | GiveUp) -> None:
        text = f"attempt {attempt} {outcome.kind}: {outcome.reason}"
        if isinstance(decision, Restart):
            wait = f" in {decision.delay_s:.1f} s" if decision.delay_s else ""
            text += f"; restarting{wait} ({decision.budgets_left.failures} failures and "
            text += f"{decision.budgets_left.preemptions} preemptions left)"
        self.say(text)

    def _paint(self, text: str, code: int) -> str:
        return f"\033[{code}m{text}\033[0m" if self._colored else text
