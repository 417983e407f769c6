"""Many seeds, and how often each crash point was reached."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from tests.chaos.campaigns import Row
from tests.simulation.drivers import Drivers
from tests.simulation.gang import GangScenario
from tests.simulation.nemesis import faults_of, target_of
from tests.simulation.points import POINTS
from tests.simulation.seams import installed
from tests.simulation.solo import Solo
from tests.simulation.world import HORIZON_S, Faults, Violation, World

SCENARIOS = {"drivers": Drivers, "gang": GangScenario, "solo": Solo}


@dataclass
class Run:
    """What came of one seed."""

    seed: int
    scenario: str
    world: World
    failure: BaseException | None


def scenario_of(seed: int) -> str:
    """What a seed simulates."""
    return sorted(SCENARIOS)[seed % len(SCENARIOS)]


def aim_of(seed: int) -> str | None:
    """The crash point that a seed aims at; None for seeds of other faults."""
    return target_of(seed // len(SCENARIOS), POINTS[scenario_of(seed)])


def planned_faults(seed: int) -> Faults:
    """What may go wrong in a seed's run."""
    return faults_of(seed // len(SCENARIOS), POINTS[scenario_of(seed)])


def run_seed(seed: int, *, trace: bool = False) -> Run:
    """One run of the simulation, a function of its seed."""
    name = scenario_of(seed)
    world = World(seed, planned_faults(seed), trace=trace)
    scenario = SCENARIOS[name](world)
    with installed(world, scenario.seams()):

        def main() -> None:
            scenario.run()
            world.scheduler.stop()

        task = world.scheduler.spawn(world.harness, "harness/main", main)
        world.scheduler.run(HORIZON_S)
        failure = world.scheduler.failure
        if failure is None and not task.has_returned:
            failure = Violation("the run does not end: somebody waits for ever", "unrepaired")
    return Run(seed, name, world, failure)


@dataclass
class Campaign:
    """Seeds that were run, and what came of them."""

    on_failure: Callable[[Run], None] = lambda run: None
    stop_at_failures: int = 5
    seeds: int = 0
    switches: int = 0
    cpu_s: float = 0.0
    reached: Counter[str] = field(default_factory=Counter)
    killed_at: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)  # by column of `Row`

    @property
    def has_failed(self) -> bool:
        """Whether there were as many violations as are to be looked at."""
        return sum(self.failed.values()) >= self.stop_at_failures

    def run(self, seeds: Iterable[int]) -> None:
        """Run these seeds."""
        for seed in seeds:
            if self.has_failed:
                return
            started = time.process_time()
            run = run_seed(seed)
            self.cpu_s += time.process_time() - started
            self.seeds += 1
            self.switches += run.world.scheduler.switches
            self.reached.update(run.world.reached)
            self.killed_at.update(run.world.killed_at)
            self.faults.update(fault.kind for fault in run.world.faults)
            if run.failure is not None:
                kind = run.failure.counts_as if isinstance(run.failure, Violation) else "crashes"
                self.failed[kind] += 1
                self.on_failure(run)

    def run_aimed(self, first: int, kills: int, most: int) -> None:
        """Go on, from a seed on, until processes died so often at each crash point.

        Only seeds that aim at what is still short of it are run, `most` of them at most.
        """
        end = self.seeds + most
        points = sum(POINTS.values(), ())
        seed = first
        while self.seeds < end and not self.has_failed:
            if all(self.killed_at[point] >= kills for point in points):
                return
            aim = aim_of(seed)
            if aim is not None and self.killed_at[aim] < kills:
                self.run([seed])
            seed += 1

    def unknown_points(self) -> list[str]:
        """Crash points that were reached and are not in `points.py`."""
        return sorted(set(self.reached) - set(sum(POINTS.values(), ())))

    def row(self, seed: int) -> Row:
        """For `build/chaos.json`."""
        return Row("simulation", self.seeds, seed, **self.failed)
