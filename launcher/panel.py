"""The panel at a terminal's bottom while a run goes on: attempt, time, steps, programs.

Drawn with Rich, which is imported by the thread that draws.
"""

from __future__ import annotations

import io
import threading
import time
from collections import Counter
from collections.abc import Callable

from hotstart.launcher.workers import Reached

_WORDS = {
    "": "starting",
    "process_start": "importing jax",
    "import_jax": "putting the cache in place",
    "cache_enabled": "joining the others",
    "distributed": "entering the program",
    "user_code": "before the first program",
    "first_compile": "before the first step",
}


class Panel:
    """What the panel knows; safe among threads."""

    def __init__(self, run: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._run = run
        self._clock = clock
        self._lock = threading.Lock()
        self._attempt = 0
        self._started_at = 0.0
        self._workers: dict[int, Reached] = {}

    def attempt_started(self, attempt: int) -> None:
        """Forget the last attempt's workers."""
        with self._lock:
            self._attempt, self._started_at, self._workers = attempt, self._clock(), {}

    def reached(self, reached: Reached) -> None:
        """Take where a worker is now."""
        with self._lock:
            self._workers[reached.process_index] = reached

    def lines(self) -> list[str]:
        """The title, then what stands in the panel; empty before the first attempt."""
        with self._lock:
            if not self._attempt:
                return []
            minutes, seconds = divmod(int(self._clock() - self._started_at), 60)
            title = f"{self._run}  attempt {self._attempt}  {minutes}:{seconds:02}"
            workers = list(self._workers.values())
        return [title, *filter(None, (_where(workers), _programs(workers)))]

    def drawn(self, width: int) -> str:
        """The panel for a terminal of so many columns, each line ended; empty if there is none."""
        lines = self.lines()
        if not lines or width < 20:
            return ""
        from rich.console import Console
        from rich.panel import Panel as Box
        from rich.text import Text

        text = Text("\n".join(lines[1:]) or "placing workers", no_wrap=True, overflow="ellipsis")
        out = io.StringIO()
        console = Console(file=out, force_terminal=True, width=width, color_system="standard")
        console.print(Box(text, title=Text(lines[0]), title_align="left", border_style="cyan"))
        return out.getvalue()


def _where(workers: list[Reached]) -> str:
    stepping = [w.last_step for w in workers if w.last_step is not None]
    parts = []
    if stepping:
        low, high = min(stepping), max(stepping)
        steps = f"step {high}" if low == high else f"steps {low} to {high}"
        who = "" if len(stepping) == len(workers) else f"{len(stepping)} of {len(workers)} at "
        parts.append(f"{who}{steps}")
    waiting = Counter(_WORDS[w.phase] for w in workers if w.last_step is None and w.phase in _WORDS)
    parts += [f"{count} {what}" for what, count in waiting.items()]
    return ", ".join(parts)


def _programs(workers: list[Reached]) -> str:
    hits, compiled = sum(w.hits for w in workers), sum(w.compiled for w in workers)
    if not hits and not compiled:
        return ""
    return f"programs: {hits} from the cache, {compiled} compiled"
