"""Drivers that contend for one run: the real record, ownership and attempt loop, a gang of air.

One driver makes the run; others restart it, from the same host and from others, again and again,
as a person or a supervisor does who believes it dead. The gang is a timer: an attempt's workers
live until the attempt ends, or the driver does.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from hotstart.cache.errors import StoreError
from hotstart.launcher.attempts import AttemptLoop, LoopSettings
from hotstart.launcher.beats import BEAT_DEADLINE_S, Ownership
from hotstart.launcher.errors import ExitCode, LauncherError, UsageError
from hotstart.launcher.identity import OwnerIdentity
from hotstart.launcher.outcome import Budgets, GiveUp, WorkerExit
from hotstart.launcher.ownership import take_ownership
from hotstart.launcher.placement import GangSize
from hotstart.launcher.record import RunRecord
from hotstart.launcher.record_patience import Patience
from hotstart.launcher.run_end import record_end
from hotstart.launcher.watchdog import StillLimits
from tests.simulation.checks import LOST, WAITS
from tests.simulation.nemesis import Nemesis
from tests.simulation.owner_checks import Acting, OwnerChecks
from tests.simulation.primitives import Pool
from tests.simulation.stores import Bucket, SimStore
from tests.simulation.world import Host, SimProcess, World

QUIET_AFTER_S = 300.0
_RUN = "run"
_EVENTS_S = 0.2
_CONTENDS_S = 140.0  # 30 s of watching, and slow requests


class AirGang:
    """`attempts.Gang`: workers that live for a while, and end as the dice say."""

    def __init__(self, world: World, checks: OwnerChecks, mine: Acting) -> None:
        self.lost: list[Any] = []
        self.leaving: dict[int, float] = {}
        self.size = GangSize(1, 1, 1, 1)
        self._world = world
        self._checks = checks
        self._mine = mine
        self._attempt = 0
        self._ends_s = 0.0

    def could_grow(self) -> bool:
        return False

    def fresh_coordinator(self) -> str:
        return "somewhere:1"

    def start(self, plan: Any, decided_at: float) -> None:
        world = self._world
        self._attempt = plan.attempt
        self._checks.begins(self._mine, plan.attempt)
        world.point("an attempt has begun")
        self._ends_s = world.scheduler.now_s + world.rng.choice((2.0, 10.0, 60.0))

    def events(self) -> list[tuple[int, Any]]:
        world = self._world
        world.scheduler.sleep(_EVENTS_S)
        if not self._attempt or world.scheduler.now_s < self._ends_s:
            return []
        code = 0 if world.rng.random() < 0.3 else 1
        return [(self._attempt, WorkerExit(0, code, None, "host", 1.0, False))]

    def stop(self, grace_s: float, *, ask: bool) -> None:
        self._mine.attempt = None

    def finish(self) -> dict[int, dict[str, Any]]:
        self._mine.attempt, self._attempt = None, 0
        return {0: {"steps": 1}}

    def drained(self) -> bool:
        return True

    def look_at_nodes(self) -> None:
        pass

    def flush(self, timeout_s: float) -> bool:
        return True

    def asked(self) -> Any:
        return ()

    def take_stats(self) -> list[dict[str, Any]]:
        return []

    def close(self) -> None:
        self._mine.attempt = None


class Drivers:
    """The scenario; `run` is its main task."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.bucket = Bucket(world, "records")
        self.checks = OwnerChecks(world, self.bucket)
        self._nemesis = Nemesis(world, self.bucket)
        self._facts: dict[str, bytes] = {}
        self.bucket.on_create.append(self._created)
        self.bucket.on_delete.append(self._deleted)
        self._made = False

    def seams(self) -> list[tuple[str, str, Any]]:
        """Thread pools of the record and of the attempt loop."""
        pool = functools.partial(Pool, self.world.scheduler)
        return [
            ("hotstart.launcher.attempt_writer", "ThreadPoolExecutor", pool),
            ("hotstart.launcher.record", "ThreadPoolExecutor", pool),
        ]

    def run(self) -> None:
        """Let drivers contend until the run is done, then look at what is left."""
        world, rng = self.world, self.world.rng
        hosts = [world.add_host() for _ in range(rng.choice((1, 2, 3)))]
        world.scheduler.at(QUIET_AFTER_S, self._be_quiet)
        self._tick()
        starts = 0
        drivers: list[SimProcess] = []
        while not self.checks.is_done or any(driver.alive for driver in drivers):
            drivers = [driver for driver in drivers if driver.alive]
            wanted = 1 if world.quiet else 3
            if not self.checks.is_done and len(drivers) < wanted:
                starts += 1
                drivers.append(self._start(rng.choice(hosts), is_first=starts == 1))
            world.scheduler.sleep(rng.expovariate(1 / 15))
        self._be_quiet()
        world.scheduler.sleep(100.0)  # requests of the dead have arrived
        lost = [name for name in self._facts if self.bucket.get(name) is None]
        if lost:
            world.fail(f"{lost[0]} was recorded and is lost", LOST)

    def _be_quiet(self) -> None:
        self.world.quiet = True

    def _tick(self) -> None:
        self.checks.tick()
        self.world.scheduler.at(1.0, self._tick)

    def _created(self, name: str, data: bytes, generation: int) -> None:
        self.world.note(f"-> {name} is in {self.bucket.name}")
        if "/owner/" not in name or name.endswith("/00000000"):
            self._facts[name] = data

    def _deleted(self, name: str, data: bytes) -> None:
        if name in self._facts:
            self.world.fail(f"{name} is deleted", LOST)

    def _start(self, host: Host, *, is_first: bool) -> SimProcess:
        return self.world.start("driver", host, functools.partial(self._drive, is_first))

    def _store(self, deadline_s: float = 30.0) -> SimStore:
        may_delete = not self.world.what_fails.may_not_delete
        return SimStore(self.world, self.bucket, may_delete=may_delete, deadline_s=deadline_s)

    def _drive(self, is_first: bool, process: SimProcess) -> None:
        """As `launch.new_run` or `launch.old_run`, then `Run.execute`."""
        world = self.world
        store = self._store()
        world.point("before the run is owned")
        asked_s = world.scheduler.now_s
        try:
            record = RunRecord(store, _RUN)
            if is_first:
                record = RunRecord.create(store, _RUN, "job: 1", {}, 0.0)
            record.read()
            ownership = take_ownership(
                record,
                OwnerIdentity.of_this_process(),
                clock=process.monotonic,
                sleep=process.sleep,
                beats=RunRecord(self._store(BEAT_DEADLINE_S), _RUN),
            )
        except (LauncherError, StoreError) as error:
            if type(error) is UsageError and not is_first:  # it says so of a run that is done
                self.checks.is_done = True
            world.note(f"gives up: {error}")
            self._took(process, asked_s)
            return
        self._took(process, asked_s)
        mine = self.checks.owns(process, ownership.epoch)
        world.point("after the run is owned")
        self._execute(record, ownership, mine, process)

    def _took(self, process: SimProcess, asked_s: float) -> None:
        world = self.world
        took_s = world.scheduler.now_s - asked_s
        if took_s > _CONTENDS_S and not world.excused(asked_s, process):
            world.fail(
                f"{process.name} has taken {took_s:.0f} s to learn whether it owns the run", WAITS
            )

    def _execute(
        self, record: RunRecord, ownership: Ownership, mine: Acting, process: SimProcess
    ) -> None:
        world = self.world

        def interrupt() -> None:
            world.note("is superseded")
            mine.told = True

        ownership.keep(interrupt)
        decision, may_restart = GiveUp(ExitCode.JOB_FAILED, "the driver failed"), False
        patience = Patience(tell=world.note, clock=process.monotonic, sleep=process.sleep)
        try:
            loop = AttemptLoop(
                LoopSettings(Budgets(3, 0), backoff_s=1.0, stop_s=1.0),
                record,
                lambda attempt: AirGang(world, self.checks, mine),  # type: ignore[arg-type]
                _plan,  # type: ignore[arg-type]
                _Nobody(),  # type: ignore[arg-type]
                lambda: mine.told,
                clock=process.monotonic,
                sleep=process.sleep,
                rng=random.Random(world.rng.getrandbits(32)),
                doubt=ownership.doubt,
                patience=patience,
            )
            decision = loop.run()
        except (StoreError, LauncherError) as error:
            may_restart = isinstance(error, StoreError)
            world.note(f"fails: {error}")
        finally:
            if process.alive:
                self.checks.ends(mine)
            record_end(
                record,
                ownership.epoch,
                decision,
                may_restart=may_restart,
                patience=patience,
                gives_up=lambda: mine.told,
                tell=world.note,
            )
            ownership.stop()


def _plan(attempt: int, coordinator: str, size: GangSize) -> Any:
    return SimpleNamespace(attempt=attempt, process_count=1, cache=None, limits=StillLimits())


class _Nobody:
    """Watches nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args: None
