"""An agent's eye on its owner: workers end before another driver may start others.

With each of its polls the driver says how old its latest beat is. That age was counted after the
agent's answer before (the driver polls again once it has it), so on the agent's own clock the beat
is no older than the time since that answer and the age together: a poll that was long on its way
can't make it look younger. Where that passes `SURE_S`, the driver is cut off, stopped, or can't
beat; another may take the run soon, so this host's workers are killed. See `ownership.py`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)

SURE_S = 22.0  # how old an owner's latest beat may be
_START_S = 60.0  # until the first poll: other hosts may be slow to start their workers
_LOOK_S = 0.5


class OwnerWatch:
    """Calls `on_lost` once for each attempt whose owner is not heard of. Safe among threads."""

    def __init__(
        self,
        on_lost: Callable[[], None],
        *,
        sure_s: float = SURE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._on_lost = on_lost
        self._sure_s = sure_s
        self._clock = clock
        self._lock = threading.Lock()
        self._answered_at = clock()
        self._until: float | None = None
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Workers start now."""
        with self._lock:
            self._until = self._clock() + _START_S
            self._answered_at = self._clock()
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="hotstart-owner", daemon=True
                )
                self._thread.start()

    def end(self) -> None:
        """No worker is left to be ended."""
        with self._lock:
            self._until = None

    def heard(self, beat_age_s: float) -> None:
        """The driver has polled; its latest beat was this old when it did."""
        with self._lock:
            if self._until is not None:
                self._until = self._answered_at - beat_age_s + self._sure_s

    def answered(self) -> None:
        """The poll is answered now."""
        with self._lock:
            self._answered_at = self._clock()

    def look(self) -> None:
        """End the workers if it is time to."""
        with self._lock:
            if self._until is None or self._clock() < self._until:
                return
            self._until = None
        logger.warning(
            "the driver's beat is older than %g s, or it doesn't ask any more: workers are killed "
            "here, for another driver may take the run",
            self._sure_s,
        )
        self._on_lost()

    def close(self) -> None:
        """Look no more; does not block."""
        self._closed.set()

    def _run(self) -> None:
        while not self._closed.wait(_LOOK_S):
            self.look()
