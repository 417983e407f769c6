"""What a row of the bench says: a measurement, its rival's, the ratio, and whether it is enough."""

from __future__ import annotations

import operator
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

Measure = Callable[[], "Sample"]
_SENSES = {"<": operator.lt, "<=": operator.le, "==": operator.eq, ">=": operator.ge}


@dataclass(frozen=True)
class Sample:
    """One measured value, and what was seen on the way to it."""

    value: float
    beside: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Bound:
    """What a value must hold to; `sense` is `<`, `<=`, `>=` or `==`."""

    sense: str
    limit: float

    def holds(self, value: float) -> bool:
        """Whether the value is within the bound, as it is measured and not as it is shown."""
        return _SENSES[self.sense](value, self.limit)


@dataclass(frozen=True)
class Condition:
    """A further bound that a row must hold to, besides the one on its ratio."""

    what: str
    value: float
    bound: Bound

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "what": self.what,
            "value": self.value,
            "bound": f"{self.bound.sense} {self.bound.limit:g}",
            "met": self.bound.holds(self.value),
        }


@dataclass(frozen=True)
class Result:
    """A measured row. `bound` is on the ratio, or on `ours` where there is no rival.

    `ours` and `theirs` are of all rounds together; `rounds` has each round's. A row that is
    reported only has no bound. `seconds` is what measuring it took.
    """

    slug: str
    what: str
    against: str
    unit: str
    bound: Bound | None = None
    ours: float | None = None
    theirs: float | None = None
    conditions: tuple[Condition, ...] = ()
    beside: Mapping[str, Any] = field(default_factory=dict)
    rounds: Mapping[str, Sequence[float]] = field(default_factory=dict)
    error: str | None = None
    seconds: float = 0.0

    @property
    def ratio(self) -> float | None:
        """Ours over theirs; None where there is no rival."""
        return self.ours / self.theirs if self.ours is not None and self.theirs else None

    @property
    def met(self) -> bool | None:
        """Whether all bounds hold: None without any, False where the row failed."""
        if self.error is not None:
            return False
        checks = [condition.bound.holds(condition.value) for condition in self.conditions]
        if self.bound is not None:
            value = self.ours if self.theirs is None else self.ratio
            checks.append(value is not None and self.bound.holds(value))
        return all(checks) if checks else None

    def to_json(self) -> dict[str, Any]:
        """The row of `bench.json`."""
        return {
            "slug": self.slug,
            "what": self.what,
            "ours": _rounded(self.ours),
            "theirs": _rounded(self.theirs),
            "unit": self.unit,
            "ratio": _rounded(self.ratio),
            "target": None if self.bound is None else self.bound.limit,
            "met": self.met,
            "against": self.against,
            "bound": None if self.bound is None else f"{self.bound.sense} {self.bound.limit:g}",
            "conditions": [condition.to_json() for condition in self.conditions],
            "beside": _rounded(dict(self.beside)),
            "rounds": _rounded(dict(self.rounds)),
            "error": self.error,
            "seconds": round(self.seconds, 1),
        }


def alternate(
    row: Result,
    ours: Measure,
    theirs: Measure,
    *,
    rounds: int,
    combine: Callable[[Sequence[float]], float] = statistics.median,
    tell: Callable[[str], None] = lambda text: None,
    clock: Callable[[], float] = time.monotonic,
) -> Result:
    """`row` with both sides measured in turn, `rounds` times each; blocks.

    `combine` makes one value of all rounds' of a side. What was seen beside a value is kept for
    both sides, combined likewise, under `ours_NAME` and `theirs_NAME`.
    """
    started = clock()
    samples: dict[str, list[Sample]] = {"ours": [], "theirs": []}
    for number in range(1, rounds + 1):
        for side, measure in (("ours", ours), ("theirs", theirs)):
            sample = measure()
            samples[side].append(sample)
            tell(f"round {number}: {side} {sample.value:.4g} {row.unit}")
    values = {side: [sample.value for sample in taken] for side, taken in samples.items()}
    beside = {
        f"{side}_{name}": combine([sample.beside[name] for sample in taken])
        for side, taken in samples.items()
        for name in taken[0].beside
    }
    return replace(
        row,
        ours=combine(values["ours"]),
        theirs=combine(values["theirs"]),
        beside={**row.beside, **beside},
        rounds=values,
        seconds=clock() - started,
    )


def once(measure: Measure) -> Measure:
    """Measure at the first call only: for a rival's count that has no spread."""
    known: list[Sample] = []

    def first() -> Sample:
        if not known:
            known.append(measure())
        return known[0]

    return first


def _rounded(value: Any) -> Any:
    """Four digits that count, all through; times are not known better."""
    if isinstance(value, dict):
        return {name: _rounded(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value
