"""A collector: takes entries out of a store in use, by the policy of `janitor.py`.

An entry and its replacements (repair.py) go together, the last replacement first: a crash in
between leaves a chain that readers can still walk. Each deletion takes the generation that was
listed, so what was created anew meanwhile stays; two collectors at once delete each object once;
a reader in the middle of a read reads on. An entry in a directory that was read since it was
listed stays too. What came in the meantime is looked for again for each batch, after that was
announced: pins here, runs by the caller. `announcements.py` says why nothing that is pinned is
lost. A run that is there before a batch is announced keeps what it needs of that batch.
Leases, manifests and what is not an entry are left alone.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Literal

from hotstart.cache.announcements import Announcement, announced
from hotstart.cache.directory import DirectoryStore
from hotstart.cache.errors import AccessDenied, RejectedRequest, StoreError
from hotstart.cache.eviction import ENTRIES, is_entry, pin_folder, place_of
from hotstart.cache.heads import in_order
from hotstart.cache.janitor import Candidate, Condemned
from hotstart.cache.pins import list_pins
from hotstart.cache.store import ObjectStat, Store

BATCH = 100
_REFUSALS = (AccessDenied, RejectedRequest)  # nothing will come of these any more
CLOCKS = "clocks/v1/"
Fate = Literal[
    "deleted",
    "gone or replaced meanwhile",
    "used meanwhile",
    "pinned meanwhile",
    "needed meanwhile",
]
Spare = Callable[[Sequence[str]], Mapping[str, str]]


@dataclass(frozen=True)
class Stored:
    """What a listing shows of one key: the entry and its replacements, in order of name."""

    candidate: Candidate
    objects: tuple[ObjectStat, ...]


@dataclass(frozen=True)
class Collected:
    """What became of a condemned entry. `fate` is one of `Fate`, or says what went wrong."""

    name: str
    size_bytes: int
    why: str
    fate: str

    @property
    def is_deleted(self) -> bool:
        """Whether this collector has deleted all of it."""
        return self.fate == "deleted"


def list_stored(store: Store) -> dict[str, Stored]:
    """All entries by where they belong, of every version of the format. One listing.

    A directory has access times; a bucket has none, so there an entry counts as used when it was
    made: see `with_uses`.
    """
    objects: dict[str, list[ObjectStat]] = {}
    for stat in store.list(ENTRIES):
        if is_entry(stat.name):
            objects.setdefault(place_of(stat.name), []).append(stat)
    return {
        name: Stored(_candidate(store, name, stats), tuple(stats))
        for name, stats in objects.items()
    }


def with_uses(stored: Mapping[str, Stored], used_s: Mapping[str, float]) -> dict[str, Stored]:
    """The same with what is known of uses besides, by name, where that is later."""

    def later(there: Stored) -> Stored:
        known = there.candidate
        used = max(known.used_s, used_s.get(known.name, known.used_s))
        return replace(there, candidate=replace(known, used_s=used))

    return {name: later(there) for name, there in stored.items()}


def spare_none(names: Sequence[str]) -> Mapping[str, str]:
    """For who knows of no runs."""
    return {}


def collect(
    store: Store,
    stored: Mapping[str, Stored],
    condemned: Sequence[Condemned],
    *,
    spare: Spare = spare_none,
    threads: int = 8,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Collected]:
    """Delete what was condemned, and tell the fate of each.

    `spare` is asked for each batch which of its names are needed by now, and why. One request an
    object; for a batch of 100 four more, and those of `spare`. What can't be deleted is told, and
    the rest goes on; raises `StoreError` where a batch can't be announced or pins can't be listed,
    and what `spare` raises.
    """
    remaining = iter(condemned)
    while batch := list(islice(remaining, BATCH)):
        names = [one.name for one in batch]
        with announced(store, names, clock=clock) as announcement:
            pinned = frozenset(list_pins(store))
            needed = spare(names)

            def delete(one: Condemned, batch: _Batch) -> Collected:
                there = stored[one.name]
                fate = batch.spared(one.name) or _delete(store, there, batch.announcement)
                return Collected(one.name, there.candidate.size_bytes, one.why, fate)

            kept = _Batch(announcement, pinned, needed)
            yield from in_order(partial(delete, batch=kept), batch, threads=threads)


@dataclass(frozen=True)
class _Batch:
    announcement: Announcement
    pinned: Collection[str]
    needed: Collection[str]

    def spared(self, name: str) -> Fate | None:
        if pin_folder(name) in self.pinned:
            return "pinned meanwhile"
        return "needed meanwhile" if name in self.needed else None


def store_now_s(store: Store) -> float:
    """What the clock says that an object's `modified_s` is of: a small object is made and deleted.

    Hosts' clocks may differ from it. Three requests; raises `StoreError`.
    """
    name = f"{CLOCKS}{uuid.uuid4().hex}"
    store.create(name, b"")
    found = store.stat(name)
    if found is None:
        return time.time()
    store.delete(name, found.generation)
    return found.modified_s


def _candidate(store: Store, name: str, stats: Sequence[ObjectStat]) -> Candidate:
    created_s = max(stat.modified_s for stat in stats)
    size_bytes = sum(stat.size_bytes for stat in stats)
    return Candidate(name, size_bytes, created_s, max([created_s, *last_uses(store, stats)]))


def last_uses(store: Store, stats: Sequence[ObjectStat]) -> list[float]:
    """When each was last read or made, as far as the store knows; a bucket knows of none."""
    if not isinstance(store, DirectoryStore):
        return []
    return [used for stat in stats if (used := store.last_use_s(stat)) is not None]


def _delete(store: Store, there: Stored, announcement: Announcement) -> str:
    fate: Fate = "deleted"
    try:
        if any(used > there.candidate.used_s for used in last_uses(store, there.objects)):
            return "used meanwhile"
        for stat in reversed(there.objects):
            if announcement.is_over:
                return "not deleted: too long after it was announced; run it again"
            if not store.delete(stat.name, stat.generation):
                fate = "gone or replaced meanwhile"
    except StoreError as error:
        if not isinstance(error, _REFUSALS):
            announcement.unsure()
        return f"not deleted: {error}"
    return fate
