"""Two attempts never own one run.

Two at once are explained only by a driver that was stopped, or cut off from the store, for so long
that it was taken for dead; once it can reach the store again it must give up within `_GIVES_UP_S`.
An attempt's number is never given out twice, and nobody takes the run from a driver that lives and
has given a sign in the last time to live by the taker's own clock, whatever happens.
"""

from __future__ import annotations

import re

from hotstart.launcher.ownership import OWNER_TTL_S
from tests.simulation.checks import TWICE
from tests.simulation.stores import Bucket
from tests.simulation.world import SimProcess, World

_GIVES_UP_S = 30.0
_SIGN = re.compile(r"(?P<run>[^/]*)/owner/(?P<epoch>\d+)/(?P<beat>\d+)")
_ROUNDING_S = 1e-6


class Acting:
    """A driver that owns the run, as far as it knows, and its attempt's number, if one runs."""

    def __init__(self, process: SimProcess, epoch: int, since_s: float) -> None:
        self.process = process
        self.epoch = epoch
        self.since_s = since_s
        self.attempt: int | None = None
        self.told = False


class OwnerChecks:
    """Two attempts never own one run."""

    def __init__(self, world: World, bucket: Bucket) -> None:
        self.world = world
        self.acting: list[Acting] = []
        self._bucket = bucket
        self._run = ""
        self._signs: dict[int, dict[str, float]] = {}  # by epoch: all hosts' clocks
        # When each process last looked: how long the owner had been silent by its clock.
        self._silent_s: dict[SimProcess, tuple[int, float]] = {}
        bucket.on_create.append(self._created)
        bucket.on_list.append(self._listed)
        self._claimed: set[SimProcess | None] = set()
        self._epochs: dict[int, SimProcess] = {}
        self._attempts: dict[int, SimProcess] = {}
        self.is_done = False

    def owns(self, process: SimProcess, epoch: int) -> Acting:
        world = self.world
        world.note(f"owns the run in epoch {epoch}")
        before = self._epochs.setdefault(epoch, process)
        if before is not process:
            world.fail(f"{process.name} and {before.name} both own epoch {epoch}", TWICE)
        if epoch < max(self._epochs):
            world.fail(f"{process.name} owns epoch {epoch} after a later one was given out", TWICE)
        last = self._epochs.get(epoch - 1)
        seen, silent_s = self._silent_s.get(process, (0, 0.0))
        ended = self._bucket.get(f"{self._run}/end/{epoch - 1:08d}") is not None
        is_watched = seen == epoch - 1 and silent_s >= OWNER_TTL_S - _ROUNDING_S
        if last is not None and last.alive and not (ended or is_watched):
            world.fail(
                f"{process.name} takes the run from {last.name}, which had given a sign "
                f"{silent_s:.3f} s before it looked, by its own clock",
                TWICE,
            )
        mine = Acting(process, epoch, world.scheduler.now_s)
        self._look(mine)
        self.acting.append(mine)
        return mine

    def _created(self, name: str, data: bytes, generation: int) -> None:
        found = _SIGN.fullmatch(name)
        if found is None:
            return
        self._run = found["run"]
        if int(found["beat"]) == 0:
            self._claimed.add(self._bucket.by)
        self._signs[int(found["epoch"])] = self.world.clocks()

    def _listed(self, prefix: str) -> None:
        by = self._bucket.by
        # Who has claimed looks whether that was in time; it takes nothing by what it sees then.
        if (
            by is None
            or by in self._claimed
            or not self._signs
            or not prefix.startswith(f"{self._run}/owner/")
        ):
            return
        epoch = max(self._signs)
        host = by.host.name
        self._silent_s[by] = epoch, self.world.clocks()[host] - self._signs[epoch][host]

    def begins(self, mine: Acting, attempt: int) -> None:
        world = self.world
        before = self._attempts.setdefault(attempt, mine.process)
        if before is not mine.process:
            world.fail(f"{mine.process.name} and {before.name} both start attempt {attempt}", TWICE)
        if mine.told:
            world.fail(
                f"{mine.process.name} starts attempt {attempt} though it was superseded", TWICE
            )
        stopped = world.excused(world.scheduler.now_s - 1.0, mine.process, kind="stall")
        if mine.epoch < max(self._epochs) and not (stopped or self._was_suspended(mine)):
            world.fail(
                f"{mine.process.name} starts attempt {attempt} though a later driver owns the run",
                TWICE,
            )
        if self.is_done and not self._was_suspended(mine):
            world.fail(f"{mine.process.name} starts attempt {attempt} of a run that is done", TWICE)
        mine.attempt = attempt
        self._look(mine)

    def _was_suspended(self, mine: Acting) -> bool:
        """Whether its own clock stood still, so that it can't know how old its last beat is."""
        return self.world.excused(mine.since_s, mine.process, kind="suspension")

    def ends(self, mine: Acting) -> None:
        if mine in self.acting:
            self.acting.remove(mine)

    def tick(self) -> None:
        for mine in self.acting:
            self._look(mine)

    def _look(self, mine: Acting) -> None:
        world, now_s = self.world, self.world.scheduler.now_s
        self.acting = [other for other in self.acting if other.process.alive]
        for old in self.acting:
            if old is mine or old.epoch >= mine.epoch or not mine.process.alive:
                continue
            taken_s = mine.since_s
            # It beats every 5 s: what was wrong with it must have been so before it was taken.
            ill = [f for f in world.faults if old.process.touched_by(f) and f.from_s <= taken_s]
            well_s = max((f.until_s for f in ill), default=0.0)
            if old.process.stalled_until_s > now_s:
                continue
            if not any(f.until_s >= taken_s - 30.0 for f in ill):
                world.fail(
                    f"{mine.process.name} owns the run, as {old.process.name} does, well", TWICE
                )
            later = [f.until_s for f in world.faults if old.process.touched_by(f)]
            well_s = max([well_s, taken_s, *later])
            if now_s - well_s > _GIVES_UP_S:
                world.fail(
                    f"{old.process.name} goes on {now_s - well_s:.0f} s after it was well", TWICE
                )
