"""Hosts, their processes, and what goes wrong with them."""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.simulation.scheduler import Killed, Scheduler, Task

HORIZON_S = 20_000.0
OUTAGE_AFTERMATH_S = 30.0 + 60.0  # a request's deadline; then no leases and few requests
BROKEN = "broken link"  # explains nothing by itself: who is cut off connects again
_TRACE = 60
_KILLS = 4
_STOPS = 3


class Violation(AssertionError):
    """An invariant does not hold; `counts_as` is the column of `build/chaos.json`."""

    def __init__(self, text: str, counts_as: str = "crashes") -> None:
        super().__init__(text)
        self.counts_as = counts_as


@dataclass(frozen=True)
class Fault:
    """Something that went wrong: what, to which processes or hosts, and when."""

    kind: str
    who: frozenset[str]
    from_s: float
    until_s: float


@dataclass(frozen=True)
class Faults:
    """What may go wrong in a run. Probabilities are per occasion, rates per simulated minute.

    spoiled: how likely a key has a bad entry from the start, in the bucket or a node directory.
    kill_at: the crash point where processes die, each time with `kill_chance`, but few in a run.
    stop_at: the crash point where they stand still instead, for about `stop_s`; with `stop_host`
    all of their host, and its clock with it.
    """

    kill_at: str | None = None
    kill_chance: float = 0.0
    stop_at: str | None = None
    stop_chance: float = 0.0
    stop_s: float = 0.0
    stop_host: bool = False
    kill: float = 0.0
    stalls: float = 0.0
    suspensions: float = 0.0
    store_error: float = 0.0
    outages: float = 0.0
    disk_error: float = 0.0
    clock_jumps: float = 0.0
    breaks: float = 0.0
    cuts: float = 0.0
    spoiled: float = 0.1
    may_not_delete: bool = False


@dataclass
class Host:
    """A machine. Its monotonic clock runs at its own rate, and not while it is suspended."""

    name: str
    rate: float
    offset_s: float
    suspended_s: float = 0.0  # in all, to the end of the last time
    suspended_until_s: float = 0.0
    processes: dict[int, SimProcess] = field(default_factory=dict)

    def monotonic(self, now_s: float) -> float:
        return self.offset_s + (now_s - self.suspended_s) * self.rate

    def suspend(self, now_s: float, lasts_s: float) -> bool:
        """Stand still from now on; False where it does already."""
        if self.suspended_until_s > now_s:
            return False
        self.suspended_s += lasts_s
        self.suspended_until_s = now_s + lasts_s
        return True


class SimProcess:
    """A process: its tasks run while it is alive and not stalled."""

    def __init__(self, world: World, name: str, role: str, host: Host) -> None:
        self.world = world
        self.name = name
        self.role = role
        self.host = host
        self.alive = True
        self.born_s = world.scheduler.now_s
        self.stopped_until_s = 0.0
        self.pid = world.next_pid()
        self.started = self.pid * 7
        self.children: list[SimProcess] = []
        self.on_end: list[Callable[[], None]] = []
        host.processes[self.pid] = self

    @property
    def stalled_until_s(self) -> float:
        return max(self.stopped_until_s, self.host.suspended_until_s) if self.alive else 0.0

    def monotonic(self) -> float:
        return self.host.monotonic(self.world.scheduler.now_s)

    def sleep(self, delay_s: float) -> None:
        self.world.scheduler.sleep(delay_s / self.host.rate)

    def spawn(self, name: str, run: Callable[[], Any]) -> Task:
        return self.world.scheduler.spawn(self, f"{self.name}/{name}", run)

    def touched_by(self, fault: Fault) -> bool:
        return self.name in fault.who or self.host.name in fault.who


class World:
    """One run of the simulation."""

    def __init__(self, seed: int, faults: Faults, *, trace: bool = False) -> None:
        self.seed = seed
        self.what_fails = faults
        self.rng = random.Random(f"{seed} world")
        self.scheduler = Scheduler(
            random.Random(f"{seed} schedule"), restlessness=self.rng.choice((0.02, 0.1, 0.3))
        )
        self.faults: list[Fault] = []
        self.spoiled: set[str] = set()  # keys of which a bad entry was there before the run
        self.quiet = False  # nothing goes wrong any more
        self.reached: Counter[str] = Counter()
        self.killed_at: Counter[str] = Counter()
        self.stopped_at: Counter[str] = Counter()
        self.last: deque[str] = deque(maxlen=None if trace else _TRACE)
        self.hosts: list[Host] = []
        self._pids = 100
        self._names: Counter[str] = Counter()
        self.harness = SimProcess(self, "harness", "harness", Host("nowhere", 1.0, 0.0))

    # What is there.

    def add_host(self) -> Host:
        rng = self.rng
        host = Host(f"host{len(self.hosts)}", rng.uniform(0.99, 1.01), rng.uniform(0, 1e6))
        self.hosts.append(host)
        return host

    def start(self, role: str, host: Host, run: Callable[[SimProcess], None]) -> SimProcess:
        """A new process whose main task is `run`; it ends with that."""
        process = self.new_process(role, host)

        def main() -> None:
            run(process)
            self.end(process)

        process.spawn("main", main)
        return process

    def new_process(self, role: str, host: Host) -> SimProcess:
        self._names[role] += 1
        return SimProcess(self, f"{role}{self._names[role]}", role, host)

    def next_pid(self) -> int:
        self._pids += 1
        return self._pids

    @property
    def process(self) -> SimProcess:
        """The one whose task runs."""
        return self.scheduler.check().process  # type: ignore[return-value]

    # What happens.

    def note(self, text: str) -> None:
        task = self.scheduler.current
        self.last.append(f"{self.scheduler.now_s:10.3f} {task.name if task else '-':28} {text}")

    def fail(self, text: str, counts_as: str = "crashes") -> None:
        """An invariant does not hold: the run ends."""
        self.note(f"VIOLATION {text}")
        self.scheduler.stop(Violation(text, counts_as))

    def point(self, what: str) -> None:
        """A crash point, and a point of choice."""
        process = self.process
        name = f"{process.role}: {what}"
        self.reached[name] += 1
        self.note(what)
        plan = self.what_fails
        if not self.quiet and process is not self.harness:
            chance = plan.kill
            if name == plan.kill_at and self.killed_at[name] < _KILLS:
                chance = plan.kill_chance
            if chance and self.rng.random() < chance:
                self.killed_at[name] += 1
                self.kill(process)
                raise Killed
            if name == plan.stop_at and self.stopped_at[name] < _STOPS:
                self._stop_here(name, process)
        self.scheduler.may_switch()

    def _stop_here(self, name: str, process: SimProcess) -> None:
        plan = self.what_fails
        if self.rng.random() >= plan.stop_chance:
            return
        self.stopped_at[name] += 1
        lasts_s = plan.stop_s * self.rng.uniform(0.7, 1.5)
        if plan.stop_host:
            self.suspend(process.host, lasts_s)
        else:
            self.stall(process, lasts_s)
        self.scheduler.sleep(0.0)

    def stall(self, process: SimProcess, lasts_s: float) -> None:
        """SIGSTOP, or a page that does not come: the clock goes on."""
        process.stopped_until_s = self.scheduler.now_s + lasts_s
        self.fault("stall", process.name, lasts_s=lasts_s)

    def suspend(self, host: Host, lasts_s: float) -> None:
        """A machine that is migrated: its monotonic clock stands still as well."""
        if host.suspend(self.scheduler.now_s, lasts_s):
            self.fault("suspension", host.name, lasts_s=lasts_s)

    def clocks(self) -> dict[str, float]:
        """What each host's monotonic clock shows now."""
        now_s = self.scheduler.now_s
        return {h.name: h.monotonic(max(now_s, h.suspended_until_s)) for h in self.hosts}

    def fault(self, kind: str, *who: str, lasts_s: float = 0.0) -> None:
        now_s = self.scheduler.now_s
        self.note(f"FAULT {kind} {' '.join(who)} {lasts_s:.1f} s")
        self.faults.append(Fault(kind, frozenset(who), now_s, now_s + lasts_s))

    def kill(self, process: SimProcess, *, is_fault: bool = True) -> None:
        """SIGKILL, and what the kernel sees to: its children die, its connections end."""
        if not process.alive:
            return
        if is_fault:
            self.fault("kill", process.name)
        for child in process.children:
            self.kill(child, is_fault=False)
        self.end(process)

    def end(self, process: SimProcess) -> None:
        self.scheduler.kill(process)
        process.host.processes.pop(process.pid, None)
        for act in process.on_end:
            act()

    def excused(
        self,
        since_s: float,
        *processes: SimProcess,
        kind: str = "",
        before_s: float = float("inf"),
    ) -> bool:
        """Whether a stated fault, of this kind, has touched one of these in that time.

        A broken link is one only where it is asked for.
        """
        return any(
            fault.until_s >= since_s
            and fault.from_s <= before_s
            and fault.kind.startswith(kind)
            and (kind or fault.kind != BROKEN)
            and ("all" in fault.who or any(process.touched_by(fault) for process in processes))
            for fault in self.faults
        )
