"""The invariants, checked as things happen and once more at the end:

one epoch has one believer
no wait without a live holder or a bound
a published entry is never lost
nobody compiles twice except where a stated fault explains it
a gang never runs two executables of one program
two attempts never own one run          (owner_checks.py)
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from hotstart.cache.entry import decode, entry_name
from hotstart.cache.errors import EntryError
from hotstart.cache.lease_view import Lease, lease_name
from hotstart.cache.leases import StoreLeases
from hotstart.cache.repair import entry_names
from tests.simulation.lease_checks import LeaseChecks
from tests.simulation.stores import Bucket
from tests.simulation.world import BROKEN, SimProcess, World

LOST, TWICE, WRONG, WAITS = "lost_entries", "duplicate_entries", "wrong_results", "unrepaired"
WAIT_BOUND_S = 60.0
FAULT_BOUND_S = 150.0
BREAK_BOUND_S = 20.0  # until it is noticed, and the way back


@dataclass
class Compilation:
    """One compilation: by whom, since when its request waits, and how it ended."""

    key: str
    process: SimProcess
    allies: tuple[SimProcess, ...]
    asked_s: float
    started_s: float
    ended_s: float | None = None

    @property
    def until_s(self) -> float:
        """When it was over; for ever where its process died over it."""
        return float("inf") if self.ended_s is None else self.ended_s


@dataclass(frozen=True)
class Belief:
    """A lease that a process believes to have."""

    lease: Lease
    leases: StoreLeases
    process: SimProcess
    since_s: float

    @property
    def stands(self) -> bool:
        held = self.leases._held.get(self.lease.key)
        return self.process.alive and held is self.lease and not self.lease.is_over


class Checks:
    """What has happened in a world, and what of it must not."""

    def __init__(self, world: World, bucket: Bucket) -> None:
        self.world = world
        self.bucket = bucket
        self.compilations: list[Compilation] = []
        self.beliefs: list[Belief] = []
        self.believed: dict[tuple[str, int], Belief] = {}
        self.ran: dict[tuple[Any, str], tuple[bytes, SimProcess]] = {}
        self.published: dict[str, bytes] = {}  # entries that are in the bucket, by key
        self.promised: list[tuple[str, str]] = []
        self.keys: dict[str, str] = {}
        self.unstored: set[str] = set()
        self._claims: dict[tuple[str, bytes], int] = {}
        self._leases = LeaseChecks(world, bucket, self.believed)
        bucket.on_create.append(self._created)
        bucket.on_delete.append(self._deleted)

    def add_key(self, key: str, *, stored: bool = True) -> None:
        """A program of the run; one that JAX does not store may be compiled again and again."""
        self.keys[entry_name(key)] = key
        if not stored:
            self.unstored.add(key)

    # Leases.

    def believes(self, leases: StoreLeases, lease: Lease) -> None:
        """A process has just got a lease."""
        world, process = self.world, self.world.process
        world.note(f"believes {lease.key[:12]} epoch {lease.epoch}")
        name = lease_name(lease.key, lease.epoch)
        generation = self._claims.get((name, lease.claim))
        belief = Belief(lease, leases, process, world.scheduler.now_s)
        if generation is None:
            world.fail(f"{process.name} believes in {name}, which it has never created", TWICE)
            return
        other = self.believed.setdefault((name, generation), belief)
        if other is not belief:
            world.fail(f"{process.name} and {other.process.name} both believe in {name}", TWICE)
        wrong = self._leases.took(belief, name, generation)
        if wrong is not None:
            world.fail(wrong, TWICE)
        for earlier in self.beliefs:
            if not earlier.stands or earlier.lease.key != lease.key:
                continue
            if not world.excused(earlier.since_s, earlier.process, process):
                world.fail(
                    f"{process.name} takes epoch {lease.epoch} of {lease.key[:12]} over from "
                    f"{earlier.process.name}, which is well and holds epoch {earlier.lease.epoch}",
                    TWICE,
                )
        self.beliefs.append(belief)

    # Entries.

    def _created(self, name: str, data: bytes, generation: int) -> None:
        self._claims[name, data] = generation
        self.world.note(f"-> {name[:60]} is in {self.bucket.name}")
        key = self.keys.get(name.partition("~")[0])
        if key is not None and _is_sound(key, data):
            self.published[key] = data

    def _deleted(self, name: str, data: bytes) -> None:
        self.world.note(f"-> {name[:60]} is deleted")
        key = self.keys.get(name.partition("~")[0])
        if key is not None and _is_sound(key, data):
            self.world.fail(f"the entry of {key[:12]} is deleted, and was sound", LOST)

    def is_stored(self, key: str) -> bool:
        """Whether the bucket has a sound entry of the key, under one of its names."""
        found = [self.bucket.get(name) for name in entry_names(key)]
        return any(data is not None and _is_sound(key, data) for data in found)

    def promise(self, key: str, why: str) -> None:
        """Somebody was told that the entry is stored, or will be whatever happens."""
        self.promised.append((key, why))

    # Compilations and what runs.

    def compile(
        self, key: str, process: SimProcess, allies: tuple[SimProcess, ...], asked_s: float
    ) -> Compilation:
        """A compilation begins, for a request that began at `asked_s`.

        Where a bad entry was there before, a lease's holder can't tell that it is bad from that
        it was just published, and compiles without.
        """
        now_s = self.world.scheduler.now_s
        made = Compilation(key, process, allies, asked_s, now_s)
        same = [c for c in self.compilations if c.key == key]
        self.compilations.append(made)
        if key in self.unstored or key in self.world.spoiled:
            return made
        if same:
            before = same[-1]
            # Also who was waited for in vain by that one: it may compile without a lease then.
            since_s = min(before.asked_s, asked_s) - WAIT_BOUND_S
            chain = [c for c in same if c is before or c.until_s >= since_s]
            who = {p for c in (*chain, made) for p in (c.process, *c.allies)}
            held = [b for b in self.beliefs if b.lease.key == key and b.since_s >= since_s]
            who |= {belief.process for belief in held}
            excused = self.world.excused(min(c.asked_s for c in (*chain, made)), *who)
            excused |= any(self._was_late(c.allies, c.asked_s) for c in (*chain, made))
            if not excused:
                self.world.fail(
                    f"{process.name} compiles {key[:12]}, which {before.process.name} has begun "
                    f"to compile at {before.started_s:.3f}; no fault explains it",
                    TWICE,
                )
        elif key in self.published and not self.world.excused(asked_s, process, *allies):
            self.world.fail(f"{process.name} compiles {key[:12]}, which is stored", TWICE)
        return made

    def runs(
        self, gang: Any, key: str, payload: bytes, allies: tuple[SimProcess, ...], since_s: float
    ) -> None:
        """A process of a gang (attempt), which began at `since_s`, begins to run an executable.

        A host that is cut off from the coordinator goes on alone, and may run its own; so may one
        that was too late to join it, or to come back to it, and a process that can leave its
        executable neither in the node directory nor in the store, where a bad one may be.
        """
        process = self.world.process
        before, other = self.ran.setdefault((gang, key), (payload, process))
        if before == payload or key in self.unstored:
            return
        excused = functools.partial(self.world.excused, since_s, process, other, *allies)
        no_store = excused(kind="store") or excused(kind="outage") or key in self.world.spoiled
        no_place = excused(kind="disk full") and no_store
        alone = excused(kind="cut") or self._could_not_come_back(allies, since_s)
        if not (alone or no_place or self._was_late(allies, since_s)):
            self.world.fail(
                f"{process.name} runs {payload!r} and {other.name} {before!r} of {key[:12]}",
                WRONG,
            )

    def _could_not_come_back(self, agents: tuple[SimProcess, ...], since_s: float) -> bool:
        """Whether one of a gang's agents stood still while a link of one was broken."""
        return any(
            self.world.excused(
                fault.from_s, *agents, kind=kind, before_s=fault.until_s + BREAK_BOUND_S
            )
            for fault in self.world.faults
            if fault.kind == BROKEN and fault.until_s >= since_s
            for kind in ("stall", "suspension")
        )

    def _was_late(self, agents: tuple[SimProcess, ...], joined_s: float) -> bool:
        """Whether one of a gang's agents stood still when it was to open its cache.

        Its workers wait for that for 10 s, and it for its coordinator for 5 s.
        """
        born_s = min((agent.born_s for agent in agents), default=0.0)
        return any(
            self.world.excused(born_s, *agents, kind=kind, before_s=joined_s)
            for kind in (("stall", "suspension", "cut") if agents else ())
        )

    def waited(
        self, key: str, process: SimProcess, allies: tuple[SimProcess, ...], since_s: float
    ) -> None:
        """A request has ended: was there, all the time that it took, something to wait for?"""
        now_s = self.world.scheduler.now_s
        others_s = 0.0
        for c in self.compilations:
            if c.key == key:
                end_s = now_s if c.ended_s is None else c.ended_s
                others_s += max(0.0, min(end_s, now_s) - max(c.started_s, since_s))
        bound_s = WAIT_BOUND_S + others_s
        for fault in self.world.faults:
            if fault.kind == BROKEN:
                bound_s += BREAK_BOUND_S if fault.until_s >= since_s else 0.0
            elif fault.until_s >= since_s - FAULT_BOUND_S:
                bound_s += FAULT_BOUND_S + fault.until_s - fault.from_s
        if now_s - since_s > bound_s:
            self.world.fail(
                f"the request of {process.name} for {key[:12]} has taken {now_s - since_s:.0f} s "
                f"and {bound_s:.0f} s are the bound",
                WAITS,
            )

    def at_the_end(self) -> None:
        """Once all has been quiet for long enough."""
        for key, why in self.promised:
            if not self.is_stored(key):
                self.world.fail(f"the entry of {key[:12]} is not stored: {why}", LOST)
                return
        for key in self.published:
            if not self.is_stored(key):
                self.world.fail(f"the entry of {key[:12]} was stored and is lost", LOST)
                return


def _is_sound(key: str, data: bytes) -> bool:
    try:
        decode(key, data)
    except EntryError:
        return False
    return True


def watched_leases(checks: Checks) -> type[StoreLeases]:
    """`StoreLeases` that tell of each lease that they get."""

    class WatchedLeases(StoreLeases):
        def _hold(self, lease: Lease) -> None:
            checks.believes(self, lease)
            super()._hold(lease)

    return WatchedLeases
