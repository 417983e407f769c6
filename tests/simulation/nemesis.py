"""What goes wrong by itself: stalls, suspended hosts, outages, jumping clocks, lost links."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from tests.simulation.network import Network
from tests.simulation.stores import Bucket
from tests.simulation.world import OUTAGE_AFTERMATH_S, Faults, SimProcess, World

ONE_FAULT_EACH = (
    Faults(),
    Faults(kill=0.004),
    Faults(stalls=2.0),
    Faults(suspensions=1.0),
    Faults(store_error=0.02),
    Faults(outages=0.5),
    Faults(disk_error=0.05),
    Faults(clock_jumps=2.0),
    Faults(cuts=1.0),
    Faults(breaks=6.0),
)


# Around what the protocols wait for: 5 s and 10 s in the launcher, 15 s of a run's owner, 30 s of a
# lease; twice that, since what follows a takeover takes its time too.
STOPS_S = (7.0, 20.0, 40.0, 80.0)


def target_of(number: int, points: Sequence[str]) -> str | None:
    """Where processes die in a scenario's run of this number; None where that is left to chance."""
    return points[number // 4 % len(points)] if points and number % 4 == 0 else None


def faults_of(number: int, points: Sequence[str]) -> Faults:
    """What may fail in a scenario's run.

    Of four runs one has processes die at a crash point, each point in turn, and one has them stand
    still there; the others have one kind of fault, or several.
    """
    rng = random.Random(f"{number} faults")
    may_not_delete = rng.random() < 0.1
    target = target_of(number, points)
    if target is not None:
        chance = rng.choice((0.03, 0.2, 0.5, 1.0))
        faults = Faults(kill_at=target, kill_chance=chance, may_not_delete=may_not_delete)
        return replace(faults, **_what_leads_to(target))
    if number % 4 == 2 and points:
        return _stops(rng, points[number // 4 % len(points)], may_not_delete)
    if rng.random() < 0.6:
        return replace(rng.choice(ONE_FAULT_EACH), may_not_delete=may_not_delete)
    return Faults(
        kill=rng.choice((0.0, 0.003)),
        stalls=rng.choice((0.0, 1.0)),
        suspensions=rng.choice((0.0, 0.5)),
        store_error=rng.choice((0.0, 0.02)),
        outages=rng.choice((0.0, 0.3)),
        disk_error=rng.choice((0.0, 0.02)),
        clock_jumps=rng.choice((0.0, 1.0)),
        breaks=rng.choice((0.0, 3.0)),
        cuts=rng.choice((0.0, 0.7)),
        may_not_delete=may_not_delete,
    )


def _stops(rng: random.Random, target: str, may_not_delete: bool) -> Faults:
    """Processes stand still at a crash point, in half of the runs with one more fault beside."""
    faults = Faults(
        stop_at=target,
        stop_chance=rng.choice((0.1, 0.4, 1.0)),
        stop_s=rng.choice(STOPS_S),
        stop_host=rng.random() < 0.3,
        may_not_delete=may_not_delete,
    )
    beside: dict[str, Any] = {}
    if rng.random() < 0.5:
        kind, much = rng.choice(
            (
                ("kill", 0.003),
                ("spoiled", 0.8),
                ("cuts", 1.0),
                ("breaks", 6.0),
                ("disk_error", 0.1),
                ("stalls", 1.0),
            )
        )
        beside[kind] = much
    return replace(faults, **{**_what_leads_to(target), **beside})


def _what_leads_to(target: str) -> dict[str, Any]:
    """What must fail besides, for a crash point to be reached often enough."""
    if "lease-end" in target:
        return {"may_not_delete": True}
    if "get mark" in target:
        return {"kill": 0.01}
    if "delete entry" in target or "stat entry in node" in target:
        return {"spoiled": 0.8, "may_not_delete": False}
    if target.startswith("worker") and target.endswith("bucket"):
        return {"disk_error": 0.2}
    return {}


class Nemesis:
    """Lets things go wrong until the world is quiet."""

    def __init__(self, world: World, bucket: Bucket, network: Network | None = None) -> None:
        self._world = world
        self._bucket = bucket
        what = world.what_fails
        self._often(what.stalls, self._stall)
        self._often(what.suspensions, self._suspend)
        self._often(what.outages, self._outage)
        self._often(what.clock_jumps, self._jump)
        if network is not None:
            self._often(what.breaks, network.break_one)
            self._often(what.cuts, network.cut)

    def _often(self, per_minute: float, act: Callable[[], None]) -> None:
        world = self._world
        if not per_minute:
            return

        def strike() -> None:
            if not world.quiet:
                act()
                again()

        def again() -> None:
            world.scheduler.at(world.rng.expovariate(per_minute / 60), strike)

        again()

    def _victims(self) -> list[SimProcess]:
        return [process for host in self._world.hosts for process in host.processes.values()]

    def _duration_s(self) -> float:
        return self._world.rng.choice((1.0, 10.0, 40.0)) * self._world.rng.uniform(0.5, 2.0)

    def _stall(self) -> None:
        victims = self._victims()
        if victims:
            self._world.stall(self._world.rng.choice(victims), self._duration_s())

    def _suspend(self) -> None:
        if self._world.hosts:
            self._world.suspend(self._world.rng.choice(self._world.hosts), self._duration_s())

    def _outage(self) -> None:
        """One host, or all of them, can't reach the bucket."""
        hosts = self._world.hosts if self._world.rng.random() < 0.5 else []
        hosts = hosts or [self._world.rng.choice(self._world.hosts)]
        lasts_s = self._duration_s() * 2
        for host in hosts:
            self._bucket.out_until_s[host.name] = self._world.scheduler.now_s + lasts_s
        self._world.fault(
            "outage", *(host.name for host in hosts), lasts_s=lasts_s + OUTAGE_AFTERMATH_S
        )

    def _jump(self) -> None:
        """The store's wall clock is set."""
        self._bucket.clock_s += self._world.rng.choice((-1, 1)) * self._world.rng.uniform(1, 3600)
        self._world.fault("the store's clock jumps", "all")
