"""Preemption: a notice says that a host is about to go, and its gang agrees where to stop.

A notice comes from Ray (a node is drained), from the system (SIGTERM, to a worker or an agent) or
from Google Cloud's metadata server; `hotstart cache warm` gives one itself, for the program to save
and leave. The driver tells all workers, wherever they are, and each answers with the number of
times that its program has asked `context.preempted()`; until it knows more, the next such call
waits. The highest of these numbers plus one is the call at which all of them get the answer True
(`stop_agreement.py` says why that is the same point of the program in each process).

    notice -> announced -> all have said their number -> settled -> workers leave
                  ^                                   '-> some do not answer: nobody is told
                  '-------------- a moment later, while there is time --------'

Workers that have not left `lead_s` before the deadline are ended: what they have published is
stored, they get SIGTERM, then SIGKILL. This module is pure; times are the driver's monotonic clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Source = Literal["drain", "sigterm", "metadata", "warm"]

UNKNOWN_LEFT_S = 30.0  # what Google Cloud gives a Spot VM, and Kubernetes a pod
ANSWER_S = 10.0
LEAVE_S = 30.0
_FLUSH_S = 5.0
_AGAIN_S = 2.0  # between two tries to agree: the gang goes on meanwhile; twice that the next time
_MOST_AGAIN_S = 60.0
_SHORTEST_TRY_S = 2.0
_WORDS: dict[str, str] = {
    "drain": "Ray drains its node",
    "sigterm": "SIGTERM",
    "metadata": "Google Cloud's metadata server",
    "warm": "all workers have done a step; they are asked to save a checkpoint and leave, for a "
    "start that restores it to be warmed too",
}


@dataclass(frozen=True)
class PreemptionNotice:
    """A host is about to go; `left_s` is how long it has from now on, None where nobody said.

    `process_index` is the worker that got the signal, where it was one; of a signal without it, the
    host's agent got it. `detail` is the source's own word. `host_index` is set by the driver.
    """

    source: Source
    host: str
    left_s: float | None = None
    detail: str = ""
    process_index: int | None = None
    host_index: int | None = None

    @property
    def takes_the_host(self) -> bool:
        """Whether the host itself goes, so that nothing may be put there any more."""
        return self.source not in ("sigterm", "warm")

    @property
    def takes_the_agent(self) -> bool:
        """Whether the agent goes, with its host or alone: the next attempt must do without it."""
        return self.source != "warm" and (self.takes_the_host or self.process_index is None)

    def __str__(self) -> str:
        what = _WORDS[self.source]
        if self.source == "warm":
            return f"{what}: {self.left_s:.0f} s at most"
        if self.process_index is not None:
            what += f" to process {self.process_index}"
        elif self.source == "sigterm":
            what += " to its agent"
        if self.detail:
            what += f" ({self.detail})"
        left = "" if self.left_s is None else f", {self.left_s:.0f} s left"
        return f"preemption notice for {self.host}: {what}{left}"


@dataclass(frozen=True)
class StopPoint:
    """How often a worker's program has asked `preempted()`; it waits before it asks again.

    `turn` is the try to agree that it answers.
    None: it went on before it heard where to stop, so it won't stop there.
    """

    process_index: int
    calls: int | None
    turn: int = 1


@dataclass(frozen=True)
class Leaving:
    """A worker's program has ended, since it was told to leave."""

    process_index: int
    last_step: int | None = None


@dataclass(frozen=True)
class Seen:
    """A notice, when it was seen, and by when its host is gone."""

    notice: PreemptionNotice
    at_s: float
    gone_s: float


class GangPreemption:
    """What the driver knows of the notices of one attempt."""

    def __init__(self, process_count: int, started_s: float, stop_s: float) -> None:
        self._started_s = started_s
        self._stop_s = stop_s
        self._going = set(range(process_count))
        self._calls: dict[int, int] = {}
        self._left: dict[int, tuple[float, int | None]] = {}
        self._seen: list[Seen] = []
        self._turn = 0
        self._hold_s = 0.0
        self._asked_s: float | None = None  # when this turn began; None between two
        self._again_s = 0.0  # when the next one may begin
        self._is_settled = False
        self._ended_late = False

    @property
    def notices(self) -> list[PreemptionNotice]:
        """All that were seen, the first one first, but for the launcher's own."""
        return [seen.notice for seen in self._seen if seen.notice.source != "warm"]

    def heard(self, notice: PreemptionNotice, now_s: float) -> bool:
        """Take a notice; True for the first one, which is to be announced to the workers."""
        left_s = UNKNOWN_LEFT_S if notice.left_s is None else notice.left_s
        self._seen.append(Seen(notice, now_s, now_s + left_s))
        if len(self._seen) > 1:
            return False
        self._begin_turn(now_s)
        return True

    @property
    def turn(self) -> int:
        """The number of the try to agree on where to stop, from 1; 0 before a notice."""
        return self._turn

    @property
    def hold_s(self) -> float:
        """How long a worker may wait to hear where to stop; half of it is for the driver."""
        return self._hold_s

    def answered(self, point: StopPoint) -> int | None:
        """Take a worker's number; the call at which all stop, once all have said theirs.

        An answer to an older turn says nothing: the worker may have asked since.
        """
        if point.calls is not None and point.turn == self._turn:
            self._calls[point.process_index] = point.calls
        return self._settle()

    def ended(self, process_index: int) -> int | None:
        """A worker has ended and answers no more; as `answered`."""
        self._going.discard(process_index)
        return self._settle() if self._seen else None

    def has_no_agreement(self, now_s: float) -> tuple[int, ...]:
        """The workers for whose answers it is too late in this turn; said once a turn."""
        if self._is_settled or self._asked_s is None:
            return ()
        if now_s - self._asked_s < self._hold_s / 2:
            return ()
        self._asked_s = None
        self._again_s = now_s + min(_AGAIN_S * 2 ** min(self._turn - 1, 10), _MOST_AGAIN_S)
        return tuple(sorted(self._going - self._calls.keys()))

    def tries_again(self, now_s: float) -> bool:
        """Whether to announce it again, as a new turn, since the last one gave no agreement.

        Not where some have left already, or where the rest is about to be ended anyway.
        """
        if self._is_settled or not self._seen or self._asked_s is not None or self._left:
            return False
        first = self._first_to_go
        if now_s < self._again_s or first.gone_s - self._lead_s(first) - now_s < _SHORTEST_TRY_S:
            return False
        self._begin_turn(now_s)
        return True

    def left(self, leaving: Leaving, now_s: float) -> None:
        """A worker's program has ended for a notice."""
        self._left.setdefault(leaving.process_index, (now_s, leaving.last_step))

    def overdue(self, now_s: float) -> str | None:
        """Why those that are still there are to be ended now; None while they may go on."""
        late = sorted(self._going - self._left.keys())
        if late and self._left and now_s - min(at_s for at_s, _ in self._left.values()) > LEAVE_S:
            self._ended_late = True
            here = ", ".join(map(str, late))
            return f"process {here} did not leave within {LEAVE_S:.0f} s of the others"
        if self._seen:
            first = self._first_to_go
            if now_s >= first.gone_s - self._lead_s(first):
                self._ended_late = True
                return "its workers had not left in time and were ended"
        return None

    def facts(self) -> list[dict[str, Any]]:
        """For the record: each notice, when it was seen, and how the workers left.

        Seconds since the attempt was decided.
        """
        left = [
            {"process_index": i, "at_s": round(at_s - self._started_s, 3), "last_step": step}
            for i, (at_s, step) in sorted(self._left.items())
        ]
        return [
            {
                **asdict(seen.notice),
                "seen_at_s": round(seen.at_s - self._started_s, 3),
                "left": left,
                "ended_by_launcher": self._ended_late,
            }
            for seen in self._seen
            if seen.notice.source != "warm"
        ]

    @property
    def _first_to_go(self) -> Seen:
        return min(self._seen, key=lambda seen: seen.gone_s)

    def _begin_turn(self, now_s: float) -> None:
        self._turn += 1
        self._asked_s = now_s
        self._hold_s = max(1.0, min(2 * ANSWER_S, (self._first_to_go.gone_s - now_s) / 2))
        self._calls = {}

    def _lead_s(self, seen: Seen) -> float:
        """How long before the deadline the rest is ended: to signal, to kill and to flush."""
        return min(self._stop_s + _FLUSH_S, (seen.gone_s - seen.at_s) / 2)

    def _settle(self) -> int | None:
        if self._is_settled or self._asked_s is None:
            return None
        if not self._going or self._going - self._calls.keys():
            return None
        self._is_settled = True
        return max(self._calls[index] for index in self._going) + 1


def first_to_go(notices: Sequence[PreemptionNotice]) -> PreemptionNotice | None:
    """The notice that an attempt is put down to: of a host, then of an agent, then of a worker."""
    ranked = sorted(notices, key=lambda n: (not n.takes_the_host, not n.takes_the_agent))
    return ranked[0] if ranked else None
