"""What a lease's objects show, request by request, whatever has gone wrong besides:

nobody takes a lease over from a live holder that gave a sign in the last time to live
nobody but its holder removes a claim that was not taken over

Both are exact: a process that stands still, is cut off or is slow excuses neither, since the
protocol promises them on the observer's own clock. Only where the store's clock jumps may a lost
owner's other leases be judged too early.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hotstart.cache.leases import TTL_S
from tests.simulation.stores import Bucket
from tests.simulation.world import SimProcess, World

if TYPE_CHECKING:
    from tests.simulation.checks import Belief

_OBJECT = re.compile(r"leases/v1/(?P<entry>[^@]*)@(?P<epoch>\d+)(?P<rest>.*)")
_OF_A_LOST_OWNER_S = TTL_S / 2  # signs that differ by less count as given together
_ROUNDING_S = 1e-6


@dataclass(frozen=True)
class _Claim:
    """A claim as it was created: how long the epoch before had been silent, by each host's clock.

    `silent_s` is empty where nothing of the epoch before was there, or it was released.
    """

    before: tuple[str, int] | None
    silent_s: dict[str, float]


class LeaseChecks:
    """Follows the objects of all leases in a bucket."""

    def __init__(
        self, world: World, bucket: Bucket, believed: dict[tuple[str, int], Belief]
    ) -> None:
        """`believed` has who believes in which claim, by its name and generation."""
        self._world = world
        self._bucket = bucket
        self._believed = believed
        self._signs: dict[tuple[str, int], dict[str, float]] = {}
        self._claims: dict[tuple[str, int], _Claim] = {}
        self._generations: dict[str, int] = {}
        self._taken_over: set[tuple[str, int]] = set()
        self._given_up: set[tuple[SimProcess, SimProcess]] = set()
        bucket.on_create.append(self._created)
        bucket.on_delete.append(self._deleted)

    def took(self, belief: Belief, name: str, generation: int) -> str | None:
        """What is wrong with a lease that a process has just got, if anything is."""
        claim = self._claims[name, generation]
        if claim.before is not None:
            self._taken_over.add(claim.before)
        holder = self._believed.get(claim.before) if claim.before else None
        if holder is None or not claim.silent_s or not holder.process.alive:
            return None
        who = belief.process
        silent_s = claim.silent_s[who.host.name]
        is_lost = (who, holder.process) in self._given_up
        self._given_up.add((who, holder.process))
        if is_lost and any(
            fault.kind.startswith("the store's clock") for fault in self._world.faults
        ):
            return None
        if silent_s >= (_OF_A_LOST_OWNER_S * 0.98 if is_lost else TTL_S) - _ROUNDING_S:
            return None
        return (
            f"{who.name} takes epoch {belief.lease.epoch} of {belief.lease.key[:12]} over from "
            f"{holder.process.name}, which has given a sign {silent_s:.3f} s ago by its own clock"
        )

    def _created(self, name: str, data: bytes, generation: int) -> None:
        found = _OBJECT.fullmatch(name)
        if found is None:
            return
        entry, epoch = found["entry"], int(found["epoch"])
        clocks = self._world.clocks()
        self._signs[entry, epoch] = clocks
        if found["rest"]:
            return
        self._generations[name] = generation
        earlier = f"leases/v1/{entry}@{epoch - 1:05}"
        is_there = self._bucket.get(earlier) is not None
        is_released = self._bucket.get(f"{earlier}.done") is not None
        before, silent_s = None, {}
        if is_there and not is_released:
            before = earlier, self._generations[earlier]
            signs = self._signs[entry, epoch - 1]
            silent_s = {host: now_s - signs[host] for host, now_s in clocks.items()}
        self._claims[name, generation] = _Claim(before, silent_s)

    def _deleted(self, name: str, data: bytes) -> None:
        found = _OBJECT.fullmatch(name)
        if found is None or found["rest"]:
            return
        belief = self._believed.get((name, self._generations[name]))
        by = self._bucket.by
        if belief is None or belief.process is by or not belief.stands:
            return
        if (name, self._generations[name]) not in self._taken_over:
            self._world.fail(
                f"{by.name if by else 'somebody'} removes the claim of {belief.process.name}, "
                f"which holds epoch {found['epoch']} of {belief.lease.key[:12]}",
                "duplicate_entries",
            )
