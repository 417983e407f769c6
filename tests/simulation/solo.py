"""Processes without the launcher, on several hosts: leases in the bucket alone.

Each runs the same programs, in its own order and pace, with the node directory of its host;
processes that died are started again. What a process was told to be stored must be there.
"""

from __future__ import annotations

from typing import Any

from hotstart.cache.counters import Counters
from hotstart.cache.guarded import GuardedStore
from hotstart.cache.lease_resolver import LeaseResolver
from hotstart.cache.shared import SharedCache, Tiers
from tests.simulation.checks import Checks, watched_leases
from tests.simulation.jax_like import CompileError, JaxLike
from tests.simulation.nemesis import Nemesis
from tests.simulation.scene import FLUSH_S, some_node, some_programs
from tests.simulation.stores import Bucket, NodeDirectory, SimStore
from tests.simulation.world import Host, SimProcess, World

QUIET_AFTER_S = 300.0
_STARTS = 12


class Solo:
    """The scenario; `run` is its main task."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.bucket = Bucket(world, "bucket")
        self.checks = Checks(world, self.bucket)
        self._finished: set[str] = set()
        self._nodes: dict[str, Bucket] = {}
        self._programs = some_programs(world, self.bucket, self.checks, raising=0.1)
        self._nemesis = Nemesis(world, self.bucket)

    def seams(self) -> list[tuple[str, str, Any]]:
        """Nothing but the usual ones."""
        return []

    def run(self) -> None:
        """Start everything, wait for it, then look at what is left."""
        world, rng = self.world, self.world.rng
        hosts = [world.add_host() for _ in range(rng.choice((1, 2, 3)))]
        for host in hosts:
            self._nodes[host.name] = some_node(world, self._programs)
        world.scheduler.at(QUIET_AFTER_S, self._be_quiet)
        slots = [rng.choice(hosts) for _ in range(rng.choice((2, 3, 4)))]
        running = [self._start(host, rng.expovariate(1 / 3)) for host in slots]
        starts = 0
        while any(process is not None for process in running):
            world.scheduler.sleep(0.5)
            for number, process in enumerate(running):
                if process is None or process.alive:
                    continue
                running[number] = None
                if process.name not in self._finished and (starts < _STARTS or world.quiet):
                    starts += 1
                    running[number] = self._start(slots[number], rng.expovariate(1 / 2))
        self._be_quiet()
        world.scheduler.sleep(100.0)  # requests of the dead have arrived
        self.checks.at_the_end()

    def _be_quiet(self) -> None:
        self.world.quiet = True

    def _start(self, host: Host, delay_s: float) -> SimProcess:
        def main(process: SimProcess) -> None:
            process.sleep(delay_s)
            self._work(process)
            self._finished.add(process.name)

        return self.world.start("solo", host, main)

    def _work(self, process: SimProcess) -> None:
        world, checks = self.world, self.checks
        may_delete = not world.what_fails.may_not_delete
        clock, sleep = process.monotonic, process.sleep
        store = GuardedStore(SimStore(world, self.bucket, may_delete=may_delete), clock=clock)
        node = NodeDirectory(world, self._nodes[process.host.name])
        leases = watched_leases(checks)(store, first_poll_s=0.1, clock=clock, sleep=sleep)
        counters = Counters()
        cache = SharedCache(
            Tiers(store, node), counters, LeaseResolver(leases), clock=clock, upload_threads=2
        )
        jax = JaxLike(process, checks, cache, counters)
        programs = list(self._programs)
        world.rng.shuffle(programs)
        for program in programs:
            try:
                jax.run(program)
            except CompileError:
                world.note("compiling raised")
        world.point("before the flush")
        if cache.flush(FLUSH_S):
            for key in sorted(jax.put):
                checks.promise(key, f"{process.name} was told so")
        cache.close()
        world.point("after the end")
