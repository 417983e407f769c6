"""How long a run's record may be out before something of the run is given up.

One operation on a store ends with its deadline (30 s). While a run goes on that is not the end: the
driver tries again for as long as it takes, since it holds the hosts and nobody else can go on with
a run whose record is out either. Once the run is over it tries for `END_PATIENCE_S` more, as what
the record lacks then would be started once more by the next restart. What the store refuses (no
right, no such bucket, no such request) is not tried again.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable
from typing import TypeVar

from hotstart.cache.errors import AccessDenied, RejectedRequest, StoreError, StoreMissing
from hotstart.launcher.errors import first_line

logger = logging.getLogger(__name__)

END_PATIENCE_S = 600.0
AGAIN_S = 2.0
_LOOK_S = 0.2
_WORD_S = 60.0

T = TypeVar("T")


class Patience:
    """Tries again what the record could not do. Safe among threads."""

    def __init__(
        self,
        *,
        tell: Callable[[str], None] = logger.warning,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`tell` hears at once, and then once a minute, what is waited for."""
        self._tell = tell
        self._clock = clock
        self._sleep = sleep
        self._until: float | None = None
        self._result = ""
        self._told_at: float | None = None

    def over(self, result: str, *, is_final: bool) -> None:
        """The run has ended, with this result in words: from now on patience has an end.

        Where that is not final, since the run is to be restarted anyway, it has none left. Later
        calls change nothing.
        """
        if self._until is None:
            self._result, self._told_at = result, None
            self._until = self._clock() + (END_PATIENCE_S if is_final else 0.0)

    def keep(
        self,
        act: Callable[[], T],
        *,
        gives_up: Callable[[], bool],
        pause: Callable[[float], None] | None = None,
    ) -> T:
        """What `act` gives, as soon as the record does its part.

        Blocks. Raises the last `StoreError` where the store refuses, where `gives_up`, and where
        patience has ended. `pause` is another way to sleep, which ends by itself once `gives_up`.
        """
        while True:
            try:
                return act()
            except StoreError as error:
                if not may_come_back(error) or gives_up() or self._is_spent():
                    raise
                self._say(error)
                (pause or functools.partial(self._nap, gives_up))(AGAIN_S)
                if gives_up():
                    raise

    def _nap(self, gives_up: Callable[[], bool], delay_s: float) -> None:
        until = self._clock() + delay_s
        while not gives_up() and (left_s := until - self._clock()) > 0:
            self._sleep(min(left_s, _LOOK_S))

    def _is_spent(self) -> bool:
        return self._until is not None and self._clock() >= self._until

    def _say(self, error: StoreError) -> None:
        now = self._clock()
        if self._told_at is not None and now - self._told_at < _WORD_S:
            return
        self._told_at = now
        if self._until is None:
            self._tell(
                f"the run's record is out, and is waited for: {first_line(error)}; to give the "
                "hosts back end the run (Ctrl-C) and restart it when the record is there again"
            )
        else:
            self._tell(
                f"the run is over ({self._result}), but its record is out: {first_line(error)}; "
                f"trying for {self._until - now:.0f} s more (Ctrl-C ends it now)"
            )


def may_come_back(error: StoreError) -> bool:
    """Whether the same request may succeed later on."""
    return not isinstance(error, AccessDenied | StoreMissing | RejectedRequest)
