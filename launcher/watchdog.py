"""The watchdog: tells a gang that is alive and makes no progress from one that is slow.

Each agent looks at its workers' reports once a second and says which are still: nothing in them
has changed, no step, no program asked for, compiled or stored, for longer than they may be so
(`WorkerWatch`). The driver ends an attempt when all that have not ended are still (`GangWatch`):
one that goes on may be what the others wait for. Where `step_s` is set, one that has told steps is
enough, if the others go on to step: then they do not make it wait.

    in a request of JAX: reading, waiting for another's compilation, compiling    `compile_s`
    else, in user code                                                            `step_s`

Without `step_s` a program need not report steps, so a worker outside of a request is never the
reason: it counts as still after `compile_s`, since it may wait for one inside. Before user code
other bounds hold. What an agent saw is judged on its own clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class StillLimits:
    """How long a worker may be still, in seconds: between steps, and within one request of JAX.

    None: for ever.
    """

    step_s: float | None = None
    compile_s: float | None = None

    def of(self, in_request: bool) -> float | None:
        """The limit of a worker that is inside a request of JAX, or not."""
        if in_request or self.step_s is None:
            return self.compile_s
        return self.step_s


@dataclass(frozen=True)
class Stillness:
    """A worker has been still for too long, or goes on again: then `still_s` is None.

    `tells_steps` says that its program has told steps and has not ended.
    """

    process_index: int
    host: str
    still_s: float | None = None
    in_request: bool = False
    last_step: int | None = None
    tells_steps: bool = False


@dataclass(frozen=True)
class Hang:
    """Why a gang is taken to hang, and the process index that has got least far."""

    reason: str
    process_index: int


class WorkerWatch:
    """One worker, seen by its agent."""

    def __init__(self, process_index: int, host: str, limits: StillLimits) -> None:
        self._process_index = process_index
        self._host = host
        self._limits = limits
        self._seen: object = None
        self._since_s = 0.0
        self._is_still = False

    def forgive(self, seconds: float) -> None:
        """Time in which the agent itself stood still does not count."""
        self._since_s += seconds

    def look(
        self, report: Mapping[str, Any], now_s: float, *, is_over: bool = False
    ) -> Stillness | None:
        """What is to be told of a worker whose latest report this is; None where nothing is new.

        `is_over`: its program has ended, and it uploads, or waits for the others to end.
        """
        phases, cache = report.get("phases", {}), report.get("cache", {})
        last_step = report.get("last_step")
        seen = dict(phases), dict(cache), last_step, report.get("steps"), is_over
        if seen != self._seen:
            self._seen, self._since_s = seen, now_s
        in_request = bool(cache.get("in_flight"))
        limit_s, still_s = self._limits.of(in_request), now_s - self._since_s
        is_in_user_code = phases.get("user_code") is not None
        is_still = is_in_user_code and limit_s is not None and still_s >= limit_s
        if is_still == self._is_still:
            return None
        self._is_still = is_still
        return Stillness(
            self._process_index,
            self._host,
            still_s if is_still else None,
            in_request,
            last_step if isinstance(last_step, int) else None,
            tells_steps=bool(report.get("steps")) and not is_over,
        )


class GangWatch:
    """All workers of an attempt, heard of by the driver."""

    def __init__(self, process_count: int, limits: StillLimits) -> None:
        self._limits = limits
        self._going = set(range(process_count))
        self._still: dict[int, Stillness] = {}
        self._steps: dict[int, int] = {}
        self._stepped_since: dict[int, set[int]] = {}  # by who is still: who has stepped since

    def heard(self, said: Stillness) -> None:
        """A worker is still, or goes on."""
        self._still.pop(said.process_index, None)
        self._stepped_since.pop(said.process_index, None)
        if said.still_s is not None and said.process_index in self._going:
            self._still[said.process_index] = said
            self._stepped_since[said.process_index] = set()

    def reached(self, process_index: int, last_step: int | None) -> None:
        """Which step a worker has done last; it may be said again."""
        if last_step is None or self._steps.get(process_index) == last_step:
            return
        self._steps[process_index] = last_step
        for stepped in self._stepped_since.values():
            stepped.add(process_index)

    def ended(self, process_index: int) -> None:
        """A worker has ended, so nobody waits for it."""
        self._going.discard(process_index)
        self._still.pop(process_index, None)
        self._stepped_since.pop(process_index, None)

    @property
    def hang(self) -> Hang | None:
        """Why this gang is taken to hang; None while it may go on."""
        has_step_limit = self._limits.step_s is not None
        overdue = [s for s in self._still.values() if s.in_request or has_step_limit]
        if going_on := self._going - self._still.keys():
            overdue = [s for s in overdue if self._hangs_alone(s, going_on)]
        if not overdue:
            return None
        last = min(overdue, key=_progress)
        return Hang(_reason(last, self._limits), last.process_index)

    def _hangs_alone(self, said: Stillness, going_on: set[int]) -> bool:
        """Whether a worker has stopped to step while all of `going_on` step without it.

        One that goes on in another way, as within a compilation, may be what it waits for.
        """
        is_due = said.tells_steps and not said.in_request and self._limits.step_s is not None
        return is_due and going_on <= self._stepped_since[said.process_index]


def _progress(said: Stillness) -> tuple[int, float, int]:
    step = -1 if said.last_step is None else said.last_step
    return step, -(said.still_s or 0.0), said.process_index


def _reason(said: Stillness, limits: StillLimits) -> str:
    who = f"no progress: process {said.process_index} on {said.host}"
    if said.in_request:
        return (
            f"{who} has been inside one compilation, or waiting for it, for {said.still_s:.0f} s "
            f"(timeouts.compile_s={limits.compile_s:g})"
        )
    steps = "has not done its first step"
    if said.last_step is not None:
        steps = f"has done nothing since step {said.last_step}"
    return f"{who} {steps} for {said.still_s:.0f} s (timeouts.step_s={limits.step_s:g})"
