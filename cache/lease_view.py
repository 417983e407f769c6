"""What the objects of a key's lease say, and which of them a release removes.

The names, and what they mean, are drawn in `leases.py`.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field

from hotstart.cache.entry import entry_name
from hotstart.cache.lease_holder import Holder
from hotstart.cache.store import ObjectStat

LEASES = "leases/v1/"
_MARK = re.compile(r".*@(\d{5,})(?:\.(done)|\.\d{6,}\.([0-9a-f]{8}))?", re.DOTALL)


@dataclass(frozen=True)
class Mark:
    """One object of a lease: a claim, a beat (`beat_of` is its holder's id), or its end."""

    stat: ObjectStat
    epoch: int
    is_done: bool
    beat_of: str | None

    @property
    def is_claim(self) -> bool:
        """Whether it is the object that gave its creator the epoch."""
        return not self.is_done and self.beat_of is None


@dataclass(frozen=True)
class View:
    """What one listing shows of a key's lease."""

    marks: tuple[Mark, ...]

    @classmethod
    def of(cls, objects: Iterable[ObjectStat]) -> View:
        """Read the names; those of other forms are left out."""
        found = ((stat, _MARK.fullmatch(stat.name)) for stat in objects)
        return cls(tuple(Mark(s, int(m[1]), m[2] is not None, m[3]) for s, m in found if m))

    @property
    def gate(self) -> int | None:
        """The generation of epoch 1's claim: the same as long as nobody lets go of the key."""
        found = self.claim(1)
        return None if found is None else found.generation

    @property
    def epoch(self) -> int:
        """The highest one; beats without a claim are what came late from a released lease."""
        return max((mark.epoch for mark in self.marks if mark.beat_of is None), default=0)

    @property
    def done(self) -> int:
        """The highest epoch that was released without deleting it; 0 for none."""
        return max((mark.epoch for mark in self.marks if mark.is_done), default=0)

    def claim(self, epoch: int) -> ObjectStat | None:
        """The claim of an epoch."""
        return next((m.stat for m in self.marks if m.epoch == epoch and m.is_claim), None)

    def signs(self, epoch: int) -> frozenset[tuple[str, int]]:
        """What changes as long as the holder of an epoch lives."""
        return frozenset((m.stat.name, m.stat.generation) for m in self.marks if m.epoch == epoch)

    def last_sign_s(self, epoch: int) -> float:
        """When the holder of an epoch last moved, by the store's own clock."""
        return max((m.stat.modified_s for m in self.marks if m.epoch == epoch), default=0.0)

    def is_same_as(self, other: View) -> bool:
        """Whether nothing has moved between two listings but what earlier epochs left."""
        epoch = self.epoch
        return (self.gate, epoch) == (other.gate, other.epoch) and (
            self.signs(epoch) == other.signs(epoch)
        )


@dataclass
class Lease:
    """A lease of this process's `owner`. `generation` and `gate` are None until they are known."""

    key: str
    epoch: int
    since_s: float
    due_s: float
    owner: str
    id: str = field(default_factory=lambda: uuid.uuid4().hex[:8])
    generation: int | None = None
    gate: int | None = None
    beat: int = 0
    is_over: bool = False

    @property
    def claim(self) -> bytes:
        """The claim's bytes, which no other lease has."""
        return Holder.of_this_process(self.id, self.owner).claim()


def removable(lease: Lease, view: View, *, is_ours: bool) -> list[ObjectStat]:
    """What releasing `lease` may delete, in this order: the gate last, or not if others rely on it.

    `is_ours` is whether the claim of its epoch in `view` is the one that it made.
    """
    is_last = is_ours and view.gate == lease.gate and view.epoch == lease.epoch
    gate = view.claim(1)
    return [
        mark.stat
        for mark in view.marks
        if mark.stat != gate
        and (
            is_last
            or mark.beat_of == lease.id
            or (is_ours and mark.is_claim and mark.epoch == lease.epoch)
        )
    ] + ([gate] if is_last and gate is not None else [])


def lease_name(key: str, epoch: int | None = None, suffix: str = "") -> str:
    """An object's name; without an epoch the prefix of all objects of the key."""
    entry = entry_name(key).rpartition("/")[2]
    return f"{LEASES}{entry}@" + ("" if epoch is None else f"{epoch:05}{suffix}")
