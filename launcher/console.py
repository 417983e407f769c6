"""What a person sees of a run: worker output with the process index in front, and attempts."""

from __future__ import annotations

import atexit
import contextlib
import io
import logging
import os
import select
import shutil
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import TextIO

from hotstart.launcher.outcome import GiveUp, Outcome, Restart, WorkerExit
from hotstart.launcher.panel import Panel
from hotstart.launcher.placement import GangSize
from hotstart.launcher.preemption import PreemptionNotice
from hotstart.launcher.workers import LEFT_OUT, Output, Reached

_COLORS = (36, 35, 33, 32, 34, 31)
_LIMIT_CHARS = 4 << 20
_FULL_WAIT_S = 0.5
_FLUSH_S = 2.0
_REDRAW_S = 0.5
_WRITE_BYTES = 4096  # a pipe takes this much whole (PIPE_BUF), so lines stay whole


class Console:
    """A `Watcher` that writes lines; where `stream` is a terminal, in color and above a panel.

    Nothing here blocks for long, whatever reads the stream: what finds no room is left out, and
    a line says so. Where the reader has gone, all is left out.
    """

    def __init__(self, run: str, process_count: int, stream: TextIO | None = None) -> None:
        self._run = run
        self._width = len(str(process_count - 1))
        stream = stream or sys.stdout
        if isinstance(stream, io.TextIOWrapper):
            # What a worker prints must not end the run where this terminal has no such character.
            stream.reconfigure(errors="backslashreplace")
        self._colored = stream.isatty()
        left_out = f"{self._paint('hotstart', 1)} {LEFT_OUT}\n"
        self._panel = Panel(run)
        self._has_panel = self._colored and os.environ.get("TERM", "dumb") != "dumb"
        self._printer = Printer(stream, left_out, bottom=self._draw if self._has_panel else None)
        atexit.register(self.flush)

    def say(self, text: str) -> None:
        """One line of the launcher's own; never left out, and safe in a signal handler."""
        self._printer.put(f"{self._paint('hotstart', 1)} {text}\n")

    def flush(self, timeout_s: float = _FLUSH_S) -> bool:
        """Wait until all is written, at most `timeout_s`; what is not by then is left out.

        To be called before something else is written to the stream.
        """
        return self._printer.flush(timeout_s)

    def close(self) -> None:
        """Take the panel away, so that it wipes nothing out that others print; blocks a moment."""
        self._printer.take_bottom_away()
        self.flush()

    def take_logs(self) -> None:
        """Have log lines for standard error printed above the panel, which would wipe them out."""
        if not self._has_panel or not sys.stderr.isatty():
            return
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stderr:
                handler.setStream(_Above(self._printer))

    def _draw(self) -> str:
        return self._panel.drawn(shutil.get_terminal_size().columns)

    def waiting(self, attempt: int, need: str, left_s: float) -> None:
        self.say(f"{need}; waiting up to {left_s:.0f} s")

    def attempt_started(self, attempt: int, size: GangSize) -> None:
        self._panel.attempt_started(attempt)
        self.say(f"{self._run}: attempt {attempt} started")

    def output(self, output: Output) -> None:
        index = output.process_index
        prefix = self._paint(f"[{index:>{self._width}}]", _COLORS[index % len(_COLORS)])
        self._printer.offer("".join(f"{prefix} {line}\n" for line in output.lines))

    def reached(self, reached: Reached) -> None:
        self._panel.reached(reached)

    def differs(self, attempt: int, difference: str) -> None:
        self.say(f"attempt {attempt}: warning: {difference}")

    def notice(self, attempt: int, notice: PreemptionNotice) -> None:
        self.say(f"attempt {attempt}: {notice}")

    def ready(self, attempt: int, seconds: float) -> None:
        pass  # the panel shows it

    def first_step(self, attempt: int, seconds: float) -> None:
        self.say(f"attempt {attempt}: first step after {seconds:.1f} s")

    def attempt_ended(
        self,
        attempt: int,
        outcome: Outcome,
        decision: Restart | GiveUp,
        first: WorkerExit | None = None,
    ) -> None:
        text = f"attempt {attempt} {outcome.kind}: {outcome.reason}"
        if isinstance(decision, Restart):
            wait = f" in {decision.delay_s:.1f} s" if decision.delay_s else ""
            text += f"; restarting{wait} ({decision.budgets_left.failures} failures and "
            text += f"{decision.budgets_left.preemptions} preemptions left)"
        self.say(text)
        if isinstance(decision, GiveUp):
            self._printer.take_bottom_away()
        if isinstance(decision, GiveUp) and not self.flush() and outcome.kind == "interrupted":
            self._printer.abandon()  # who wants it to stop must not wait for what comes after

    def _paint(self, text: str, code: int) -> str:
        return f"\033[{code}m{text}\033[0m" if self._colored else text


class _Above(io.TextIOBase):
    """A stream that prints what is written to it, and never waits for that."""

    def __init__(self, printer: Printer) -> None:
        self._printer = printer

    def write(self, text: str) -> int:
        self._printer.put(text)
        return len(text)


class Printer:
    """Writes texts in order from a thread of its own.

    `left_out` is printed where texts are missing. `bottom` gives what stands below the last line,
    and is drawn anew after each text and each half second. The stream's own buffer is passed by: a
    thread that is stuck in it would keep its lock, and the interpreter could not end.
    """

    def __init__(
        self,
        stream: TextIO,
        left_out: str,
        limit_chars: int = _LIMIT_CHARS,
        *,
        bottom: Callable[[], str] | None = None,
    ) -> None:
        self._stream = stream
        self._left_out = left_out
        self._limit_chars = limit_chars
        self._bottom = bottom
        self._drawn = ""
        self._fd: int | None = None
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
            self._fd = stream.fileno()
        # Of its default lock, which a signal handler may take again.
        self._changed = threading.Condition()
        self._texts: deque[str] = deque()
        self._queued_chars = 0
        self._writing = False
        self._full = False  # until half of the room is free again
        self._owes_left_out = False
        self._gone = False
        threading.Thread(target=self._write_texts, name="hotstart-console", daemon=True).start()

    def put(self, text: str) -> None:
        """Print this in any case; does not block."""
        with self._changed:
            if not self._gone:
                self._append(text)

    def offer(self, text: str) -> None:
        """Print this, or leave it out where there is no room; blocks at most 0.5 s for that."""
        with self._changed:
            if not self._full:
                self._full = not self._changed.wait_for(
                    lambda: self._gone or self._queued_chars < self._limit_chars, _FULL_WAIT_S
                )
            elif self._queued_chars <= self._limit_chars // 2:
                self._full = False
            if self._gone:
                return
            if self._full:
                self._owes_left_out = True
            else:
                self._append(text)

    def flush(self, timeout_s: float) -> bool:
        """Whether all is written, after at most `timeout_s`; the rest is left out."""
        with self._changed:
            if self._owes_left_out and not self._gone:
                self._append("")
            done = self._changed.wait_for(lambda: not (self._texts or self._writing), timeout_s)
            if not done:
                self._texts.clear()
                self._queued_chars = 0
                self._owes_left_out = True
            return done

    def take_bottom_away(self) -> None:
        """Draw no more below the last line."""
        with self._changed:
            if self._bottom is not None:
                self._bottom = None
                self._append("")

    def abandon(self) -> None:
        """Write no more, and let nobody else block on the stream either."""
        with self._changed:
            self._gone = True
            self._texts.clear()
            self._queued_chars = 0
            self._changed.notify_all()
        if self._fd is not None:
            with contextlib.suppress(OSError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._fd)
                os.close(nowhere)

    def _append(self, text: str) -> None:
        if self._owes_left_out:
            self._owes_left_out = False
            text = self._left_out + text
        self._texts.append(text)
        self._queued_chars += len(text)
        self._changed.notify_all()

    def _write_texts(self) -> None:
        while True:
            with self._changed:
                wait_s = None if self._bottom is None else _REDRAW_S
                self._changed.wait_for(lambda: self._texts, wait_s)
                text = self._texts.popleft() if self._texts else ""
                self._queued_chars -= len(text)
                self._writing = True
                bottom = None if self._texts else self._bottom
                self._changed.notify_all()
            try:
                self._write_above(text, bottom() if bottom is not None else "")
            except (OSError, ValueError):  # its reader has gone, or its disk is full
                self.abandon()
            with self._changed:
                self._writing = False
                self._changed.notify_all()

    def _write_above(self, text: str, bottom: str) -> None:
        if not text and bottom == self._drawn:
            return
        wiped = f"\r\033[{self._drawn.count(chr(10))}A\033[J" if self._drawn else ""
        self._drawn = bottom
        self._write(f"{wiped}{text}{bottom}")

    def _write(self, text: str) -> None:
        if self._fd is None:
            self._stream.write(text)
            self._stream.flush()
            return
        data = memoryview(text.encode(self._stream.encoding or "utf-8", "backslashreplace"))
        while data and not self._gone:
            try:
                data = data[os.write(self._fd, data[:_WRITE_BYTES]) :]
            except BlockingIOError:  # whoever shares the terminal has set it so
                select.select([], [self._fd], [])
