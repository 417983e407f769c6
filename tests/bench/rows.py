"""How a row is declared: what it says, and what measures it on a stage of its own."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tests.bench.results import Measure, Result, alternate
from tests.bench.stage import MEGABYTES_PER_S, Options, Stage, open_stage

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Row:
    """One row of the bench; `limit_s` is what it may take altogether.

    `measure` blocks; what it gives may be more rows than this one.
    """

    result: Result
    measure: Callable[[Options, Tell], Sequence[Result]]
    limit_s: float = 1200.0

    @property
    def slug(self) -> str:
        """The row's name."""
        return self.result.slug


def paired(
    result: Result,
    prepare: Callable[[Stage], tuple[Measure, Measure]],
    *,
    limit_s: float = 1200.0,
    combine: Callable[[Sequence[float]], float] = statistics.median,
    conditions: Callable[[Result], Result] = lambda result: result,
    megabytes_per_s: float = MEGABYTES_PER_S,
    cpus: int = 4,
) -> Row:
    """A row whose two sides are measured in turn.

    `prepare` fills the caches of both and gives their measurements; `conditions` adds further
    bounds to the measured row.
    """

    def measure(options: Options, tell: Tell) -> Sequence[Result]:
        started = time.monotonic()
        with open_stage(options, tell, megabytes_per_s=megabytes_per_s, cpus=cpus) as stage:
            ours, theirs = prepare(stage)
            measured = alternate(
                result, ours, theirs, rounds=options.rounds, combine=combine, tell=tell
            )
        return [replace(conditions(measured), seconds=time.monotonic() - started)]

    return Row(result, measure, limit_s)
