"""How large a gang to ask Ray for, where a job takes a range of workers; and when to speak: pure.

A gang that is granted and could be larger is looked at for `SETTLE_S` more: hosts that come up
together, or are let go by the attempt before, show one after the other. One that is not granted
(the cluster's own account of what is free is about a second old, and a host that was cut off
counts as there until Ray has given it up) is asked for smaller after a while, down to the least,
which is waited for.
"""

from __future__ import annotations

SETTLE_S = 2.0
GROW_S = 15.0
FALL_S = 10.0  # a busy head takes some seconds to move a group
_LOOK_S = 0.5
_FIRST_WORD_S = 2.0
_CHANGED_S = 10.0
_UNCHANGED_S = 60.0


class Sizing:
    """`wanted` is the number of workers to ask for. Times are of one monotonic clock."""

    def __init__(
        self, least: int, most: int, step: int, now_s: float, *, fall_s: float = FALL_S
    ) -> None:
        """Sizes differ by `step`; `fall_s` is how long a size above the least is asked for."""
        self.least = least
        self.most = most
        self.wanted = most
        self._step = step
        self._fall_s = fall_s
        self._asked_at_s = now_s
        self._looked_at_s = now_s
        self._granted_at_s: float | None = None
        self._first_granted_at_s: float | None = None

    @property
    def is_elastic(self) -> bool:
        """Whether there is anything to choose."""
        return self.least < self.most

    def begin(self, room: int) -> None:
        """Ask first for what there seems to be room for, in workers."""
        self.wanted = self._allowed(room)

    def looks(self, now_s: float) -> bool:
        """Whether it is time to look at the cluster again."""
        if now_s - self._looked_at_s < _LOOK_S:
            return False
        self._looked_at_s = now_s
        return True

    def granted(self, extra: int, now_s: float) -> bool:
        """Whether to take what is granted; `extra` more workers have room beside it."""
        if self._granted_at_s is None:
            self._granted_at_s = now_s
        if self._first_granted_at_s is None:
            self._first_granted_at_s = now_s
        if self.wanted == self.most:
            return True
        may_grow = now_s - self._first_granted_at_s < GROW_S
        larger = self._allowed(self.wanted + extra)
        if may_grow and larger > self.wanted:
            self._ask(larger, now_s)
            return False
        return not may_grow or now_s - self._granted_at_s >= SETTLE_S

    def refused(self, room: int, now_s: float) -> None:
        """It is not granted so far, and there seems to be `room` for so many workers."""
        if self.wanted > self.least and now_s - self._asked_at_s >= self._fall_s:
            self._ask(min(self._allowed(room), self.wanted - self._step), now_s)

    def _ask(self, workers: int, now_s: float) -> None:
        self.wanted = max(self.least, workers)
        self._asked_at_s = now_s
        self._granted_at_s = None

    def _allowed(self, workers: int) -> int:
        return max(self.least, min(self.most, workers - workers % self._step))


class Waiting:
    """Says when it is time for a word on what is waited for: soon, on a change, and sparingly."""

    def __init__(self, now_s: float) -> None:
        self._began_s = now_s
        self._said_at_s: float | None = None
        self._said = ""

    @property
    def has_spoken(self) -> bool:
        """Whether a word was said."""
        return self._said_at_s is not None

    def may_speak(self, now_s: float) -> bool:
        """Whether it is worth finding out what there is to say."""
        if self._said_at_s is None:
            return now_s - self._began_s >= _FIRST_WORD_S
        return now_s - self._said_at_s >= _CHANGED_S

    def speaks(self, text: str, now_s: float) -> bool:
        """Whether to say this now."""
        if not self.may_speak(now_s):
            return False
        changed = text != self._said
        if self._said_at_s is not None and not changed and now_s - self._said_at_s < _UNCHANGED_S:
            return False
        self._said, self._said_at_s = text, now_s
        return True
