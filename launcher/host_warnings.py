"""An agent's warnings, on their way to the report."""

from __future__ import annotations

import logging

_MAX_WARNINGS = 10


class HostWarnings(logging.StreamHandler):
    """Keeps the first warnings since the last `take`; all of them go to Ray's log as well."""

    def __init__(self) -> None:
        super().__init__()
        self.setLevel(logging.WARNING)
        self._kept: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Write it, and keep it for the report."""
        super().emit(record)
        if len(self._kept) < _MAX_WARNINGS:
            self._kept.append(record.getMessage())

    def take(self) -> list[str]:
        """The warnings since the last call."""
        self.acquire()  # the lock under which `emit` is called
        try:
            taken, self._kept = self._kept, []
        finally:
            self.release()
        return taken
