"""When a store that is out is left alone: the states of a circuit, and nothing else.

    closed --k operations in a row fail by an outage--> open
    open   --its pause is over, and somebody asks-----> probing: that operation is let through
    probing --the probe fails by an outage------------> open, for twice as long
    any    --an operation is answered-----------------> closed

A failed operation has been retried until its deadline, so few of them are proof enough. Several
may be under way at once: what began before the circuit opened changes nothing when it fails.
The clock's reading is an argument; any monotonic clock in seconds will do.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

FAILURES_TO_OPEN = 2
FIRST_PAUSE_S = 15.0
LONGEST_PAUSE_S = 60.0


class Permit(Enum):
    """What an operation may do that wants to begin."""

    GO = "go"
    PROBE = "probe"  # as GO, and the others wait for what comes of it
    REFUSED = "refused"


@dataclass(frozen=True)
class Circuit:
    """A circuit's state; closed as it is made.

    failures: operations in a row that an outage has failed. open_until_s: when the next probe
    may begin, None where it is closed. pause_s: how long it was opened for the last time.
    probing: a probe is under way.
    """

    failures: int = 0
    open_until_s: float | None = None
    pause_s: float = 0.0
    probing: bool = False

    @property
    def is_open(self) -> bool:
        return self.open_until_s is not None

    def ask(self, now_s: float) -> tuple[Permit, Circuit]:
        """Whether an operation may begin, and the state after that."""
        if self.open_until_s is None:
            return Permit.GO, self
        if self.probing or now_s < self.open_until_s:
            return Permit.REFUSED, self
        return Permit.PROBE, replace(self, probing=True)

    def answered(self) -> Circuit:
        """The state after an operation that the store has answered, by a refusal too."""
        return self if self == Circuit() else Circuit()

    def failed(self, permit: Permit, now_s: float) -> Circuit:
        """The state after an operation with this permit that an outage has failed."""
        if permit is Permit.PROBE:
            return self._opened(min(2 * self.pause_s, LONGEST_PAUSE_S), now_s)
        if self.is_open:
            return self
        if self.failures + 1 < FAILURES_TO_OPEN:
            return replace(self, failures=self.failures + 1)
        return self._opened(FIRST_PAUSE_S, now_s)

    def abandoned(self, permit: Permit) -> Circuit:
        """The state after an operation of which nothing is known: it was interrupted."""
        return replace(self, probing=False) if permit is Permit.PROBE else self

    def _opened(self, pause_s: float, now_s: float) -> Circuit:
        return Circuit(FAILURES_TO_OPEN, now_s + pause_s, pause_s)
