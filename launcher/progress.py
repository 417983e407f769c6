"""What a worker tells its agent of itself: one report, sent again whenever it has changed.

The report is complete each time, so the last one that arrived is the truth however the worker
ended. It is sent from a thread of its own, at most every `interval_s`; user code never waits.
"""

from __future__ import annotations

import dataclasses
import logging
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from hotstart.cache.counters import CacheStats
from hotstart.cache.requests import Request
from hotstart.launcher.channel import Channel

PHASES = (
    "process_start",
    "import_jax",
    "cache_enabled",
    "distributed",
    "user_code",
    "first_compile",
    "first_step",
)
IN_USER_CODE = PHASES[PHASES.index("user_code") :]
_MAX_WARNINGS = 20
_MAX_PROGRAMS = 10


class Progress(logging.Handler):
    """Collects phases, steps, counters and warnings of this worker and sends them."""

    def __init__(
        self,
        channel: Channel,
        process_index: int,
        decided_at: float,
        stats: Callable[[], CacheStats],
        stood_by: bool = False,
        imported: Callable[[], list[str]] | None = None,
        *,
        interval_s: float = 0.1,
    ) -> None:
        """`imported` gives the names of modules that the agent wants to know at the first step."""
        super().__init__(level=logging.WARNING)
        self._channel = channel
        self._process_index = process_index
        self._decided_at = decided_at
        self._stats = stats
        self._stood_by = stood_by
        self._imported = imported
        self._interval_s = interval_s
        self._phases: dict[str, float | None] = dict.fromkeys(PHASES)
        self._last_step: object = None
        self._steps = 0
        self._warnings: list[str] = []
        self._slowest: list[Request] = []
        self._changed = threading.Event()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hotstart-progress", daemon=True)
        self._thread.start()

    def reached(self, phase: str) -> None:
        """Note that a phase is over, the first time it is said."""
        if self._phases[phase] is None:
            self._phases[phase] = round(time.monotonic() - self._decided_at, 4)
            self._changed.set()

    def step(self, number: object) -> None:
        """Note a step of user code; a number that lives on a device is not waited for here."""
        self.reached("first_step")
        self._last_step = number
        self._steps += 1
        self._changed.set()

    def asked(self, request: Request) -> None:
        """Keep the programs that took longest to compile, here or where their entry was made."""
        ranked = sorted((*self._slowest, request), key=lambda r: r.compile_s, reverse=True)
        self._slowest = ranked[:_MAX_PROGRAMS]

    def counters_changed(self) -> None:
        """Note that the cache's counters have changed."""
        if self._phases["first_compile"] is None and self._stats().requests:
            self.reached("first_compile")
        self._changed.set()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep hotstart's own warnings for the report."""
        if len(self._warnings) < _MAX_WARNINGS:
            self._warnings.append(record.getMessage())
            self._changed.set()

    def close(self) -> None:
        """Send the last report; returns once it is on its way."""
        self._over.set()
        self._changed.set()
        self._thread.join(timeout=2.0)
        super().close()

    @property
    def last_step(self) -> int | None:
        """The last step of user code, where that is a number."""
        return _whole(self._last_step)

    def report(self) -> dict[str, Any]:
        """The report now."""
        return {
            "process_index": self._process_index,
            "host": socket.gethostname(),
            "standby": self._stood_by,
            "phases": dict(self._phases),
            "cache": dataclasses.asdict(self._stats()),
            "programs": [
                {
                    "module": request.module,
                    "outcome": request.outcome,
                    "compile_s": round(request.compile_s, 3),
                    "size_bytes": request.size_bytes,
                }
                for request in self._slowest
            ],
            "last_step": self.last_step,
            "steps": self._steps,
            "warnings": list(self._warnings),
        }

    def _run(self) -> None:
        while not self._over.is_set():
            self._changed.wait()
            self._changed.clear()
            self._channel.send({"report": self.report()})
            if self._imported is not None and self._phases["first_step"] is not None:
                self._channel.send({"modules": self._imported()})
                self._imported = None
            self._over.wait(self._interval_s)
        self._channel.send({"report": self.report()})


def _whole(number: Any) -> int | None:
    try:
        return None if number is None else int(number)
    except Exception:  # user code may call anything a step
        return None
