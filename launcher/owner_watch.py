"""An agent's eye on its owner: workers end before another driver may start others.

The driver says how old its latest beat is when it starts workers and with each of its polls. It
says beside it what the agent's clock was in the last answer that it had before it counted that age.
So on the agent's own clock the beat is no older than that answer and the age together, however
long the message was on its way. Where that passes `SURE_S`, the driver is cut off, stopped, or
can't beat; another may take the run soon, so this host's workers are killed. That is the one bound,
from an attempt's first moment on. See `beats.py`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

logger = logging.getLogger(__name__)

SURE_S = 22.0  # how old an owner's latest beat may be
_LOOK_S = 0.5


@dataclass(frozen=True)
class Sign:
    """The age of the owner's latest beat, counted after an answer in which the agent's clock said
    `answered_at`."""

    answered_at: float
    beat_age_s: float


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
        self._until = clock()
        self._is_on = False
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """There are workers now."""
        with self._lock:
            self._is_on = True
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="hotstart-owner", daemon=True
                )
                self._thread.start()

    def end(self) -> None:
        """No worker is left to be ended."""
        with self._lock:
            self._is_on = False

    def heard(self, sign: Sign) -> bool:
        """Take a sign of the driver's; whether it is sure of the run as far as is known here."""
        with self._lock:
            self._until = max(self._until, sign.answered_at - sign.beat_age_s + self._sure_s)
            return self._clock() < self._until

    def look(self) -> None:
        """End the workers if it is time to."""
        with self._lock:
            if not self._is_on or self._clock() < self._until:
                return
            self._is_on = False
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
