"""A command whose output is read line by line, each with the monotonic time of its arrival."""

from __future__ import annotations

import re
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType


class CommandFailed(Exception):
    """A command ended, or said nothing of what was waited for; the message has its output."""


class TimedCommand:
    """A command in a session of its own; ended when its block ends.

    `started_at` and the times of lines are of the monotonic clock.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], folder: Path
    ) -> None:
        self._lines: list[tuple[float, str]] = []
        self._changed = threading.Condition()
        self._read_all = False
        self.started_at = time.monotonic()
        self.popen = subprocess.Popen(
            command,
            env=dict(environment),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            text=True,
            errors="replace",
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> TimedCommand:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.interrupt()

    def output(self) -> str:
        """All lines so far."""
        with self._changed:
            return "".join(line for _, line in self._lines)

    def wait_for(
        self, pattern: str, *, after: float = 0.0, timeout_s: float = 240.0
    ) -> tuple[float, re.Match[str]]:
        """Block until a line that came after the time `after` matches; its time and the match.

        Raises `CommandFailed` where the command ends first or the time is over.
        """
        expression = re.compile(pattern)
        deadline = time.monotonic() + timeout_s
        seen = 0
        with self._changed:
            while True:
                for at, line in self._lines[seen:]:
                    if at > after and (match := expression.search(line)):
                        return at, match
                seen = len(self._lines)
                left_s = deadline - time.monotonic()
                if self._read_all or left_s <= 0:
                    why = "ended" if self._read_all else f"{timeout_s:g} s are over"
                    raise CommandFailed(f"no line {pattern!r}: {why}\n{self._tail()}")
                self._changed.wait(left_s)

    def finish(self, timeout_s: float = 240.0) -> None:
        """Block until it has ended by itself, well; raises `CommandFailed` otherwise."""
        try:
            code = self.popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            code = None
        self._reader.join(5)
        if code != 0:
            raise CommandFailed(f"ended with {code} within {timeout_s:g} s\n{self._tail()}")

    def interrupt(self, timeout_s: float = 20.0) -> None:
        """End it as Ctrl-C does, then by SIGKILL; returns when it is reaped."""
        for number in (signal.SIGINT, signal.SIGKILL):
            if self.popen.poll() is None:
                self.popen.send_signal(number)
                try:
                    self.popen.wait(timeout_s)
                except subprocess.TimeoutExpired:
                    continue
        self.popen.wait()

    def _tail(self) -> str:
        return "".join(line for _, line in self._lines[-60:])

    def _read(self) -> None:
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            with self._changed:
                self._lines.append((time.monotonic(), line))
                self._changed.notify_all()
        with self._changed:
            self._read_all = True
            self._changed.notify_all()
