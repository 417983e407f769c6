"""Preemption: a notice says that a host is about to go, and its gang agrees where to stop.

A notice comes from Ray (a node is drained), from the system (SIGTERM) or from Google Cloud's
metadata server; `hotstart cache warm` gives one itself, for the program to save and leave. The
driver tells all workers, wherever they are, and each answers with the number of times that its
program has asked `context.preempted()`; until it knows more, the next such call waits. The highest
of these numbers plus one is the call at which all of them get the answer True (`stop_agreement.py`
says why that is the same point of the program in each process).

    notice -> announced -> all have said their number -> settled -> workers leave
                                                      '-> some do not answer: nobody is told

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
_WORDS: dict[str, str] = {
    "drain": "Ray drains its node",
    "sigterm": "SIGTERM",
    "metadata": "Google Cloud's metadata server",
    "warm": "the launcher asks for a checkpoint",
}


@dataclass(frozen=True)
class PreemptionNotice:
    """A host is about to go; `left_s` is how long it has from now on, None where nobody said.

    `process_index` is the worker that got the signal, where it was one. `detail` is the source's
    own word. `host_index` is set by the driver.
    """

    source: Source
    host: str
    left_s: float | None = None
    detail: str = ""
    process_index: int | None = None
    host_index: int | None = None

    @property
    def takes_the_host(self) -> bool:
        """Whether the host itself goes, so that the next attempt must do without it."""
        return self.source not in ("sigterm", "warm")

    def __str__(self) -> str:
        what = _WORDS[self.source]
        if self.process_index is not None:
            what += f" to process {self.process_index}"
        if self.detail:
            what += f" ({self.detail})"
        left = "" if self.left_s is None else f", {self.left_s:.0f} s left"
        return f"preemption notice for {self.host}: {what}{left}"


@dataclass(frozen=True)
class StopPoint:
    """How often a worker's program has asked `preempted()`; it waits before it asks again.

    None: it went on before it heard where to stop, so it won't stop there.
    """

    process_index: int
    calls: int | None


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
        return len(self._seen) == 1

    def hold_s(self) -> float:
        """How long a worker may wait to hear where to stop; half of it is for the driver."""
        seen = self._seen[0]
        return max(1.0, min(2 * ANSWER_S, (seen.gone_s - seen.at_s) / 2))

    def answered(self, point: StopPoint) -> int | None:
        """Take a worker's number; the call at which all stop, once all have said theirs."""
        if point.calls is not None:
            self._calls[point.process_index] = point.calls
        return self._settle()

    def ended(self, process_index: int) -> int | None:
        """A worker has ended and answers no more; as `answered`."""
        self._going.discard(process_index)
        return self._settle() if self._seen else None

    def has_no_agreement(self, now_s: float) -> tuple[int, ...]:
        """The workers for whose answers it is too late now; said once."""
        if not self._seen or self._is_settled:
            return ()
        if now_s - self._seen[0].at_s < self.hold_s() / 2:
            return ()
        self._is_settled = True
        return tuple(sorted(self._going - self._calls.keys()))

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
            first = min(self._seen, key=lambda seen: seen.gone_s)
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

    def _lead_s(self, seen: Seen) -> float:
        """How long before the deadline the rest is ended: to signal, to kill and to flush."""
        return min(self._stop_s + _FLUSH_S, (seen.gone_s - seen.at_s) / 2)

    def _settle(self) -> int | None:
        if self._is_settled or not self._going or self._going - self._calls.keys():
            return None
        self._is_settled = True
        return max(self._calls[index] for index in self._going) + 1


def first_to_go(notices: Sequence[PreemptionNotice]) -> PreemptionNotice | None:
    """The notice that an attempt is put down to: of a host before one of a process."""
    ranked = sorted(notices, key=lambda notice: not notice.takes_the_host)
    return ranked[0] if ranked else None
