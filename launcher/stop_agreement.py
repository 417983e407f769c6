"""A worker's side of the agreement where to stop for a preemption.

Processes of one gang run the same program, so they ask `preempted()` at the same points of it, and
the number of the call names the point. After a notice a process says how often it has asked, and
its next call waits; the driver answers with the highest number plus one, which no process has
passed, since those that had asked so often wait. Nobody waits for ever for another: between two
calls of the process that is ahead, everything that the others need to catch up with it has been
started. The protocol is that of JAX's preemption sync manager (openxla/xla,
`xla/tsl/distributed_runtime/preemption/preemption_sync_manager.cc`), with two differences: it
needs no step numbers, and who waits in vain goes on. Then it is tried again: each try is a *turn*
with a number, and what is said in an older one counts no more.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class StopAgreement:
    """Safe among threads."""

    def __init__(
        self,
        answer: Callable[[int | None, int], None],
        told: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`answer` gets the number of calls so far, or None where the word came too late, and the
        turn; `told` is called when the program is told to stop, the first time."""
        self._answer = answer
        self._told = told
        self._clock = clock
        self._changed = threading.Condition()
        self._calls = 0
        self._turn = 0
        self._hold_until: float | None = None
        self._stop_at: int | None = None
        self._has_told = False

    @property
    def is_asked(self) -> bool:
        """Whether the program has asked at all."""
        return self._calls > 0

    def ask(self) -> bool:
        """`context.preempted()`; blocks only after a notice, until it is known where to stop."""
        self._calls += 1  # one thread asks; a lock would cost each step
        if self._hold_until is None and self._stop_at is None:
            return False
        number = self._calls
        with self._changed:
            while self._hold_until is not None:
                left_s = self._hold_until - self._clock()
                if left_s <= 0:
                    self._hold_until = None
                    break
                self._changed.wait(left_s)
            if self._stop_at is None or number < self._stop_at:
                return False
            first, self._has_told = not self._has_told, True
        if first:
            self._told()
        return True

    def hold(self, hold_s: float, turn: int) -> None:
        """There is a notice: the next call waits for `settle`, at most `hold_s`."""
        with self._changed:
            if turn < self._turn or self._stop_at is not None:
                return
            self._turn = turn
            self._hold_until = self._clock() + hold_s
            self._answer(self._calls, turn)

    def settle(self, stop_at: int | None, turn: int) -> None:
        """All stop at this call; None: there is no agreement. Of an older turn it means nothing."""
        with self._changed:
            if turn != self._turn:
                return
            is_late = self._hold_until is None or self._clock() > self._hold_until
            self._hold_until = None
            if stop_at is not None and is_late and self._calls >= stop_at:
                self._answer(
                    None, turn
                )  # to stop later than the others is to leave them in a collective
            elif stop_at is not None:
                self._stop_at = stop_at
            self._changed.notify_all()

    def let_go(self) -> None:
        """No call waits any more."""
        with self._changed:
            self._hold_until = None
            self._changed.notify_all()
