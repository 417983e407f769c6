"""What lies beside the entries and goes by age: results of XLA's autotuning, and what was left.

    autotune/v1/...       goes as entries do by age; in a directory by last use as well. What is not
                          among the newest of its kind goes in any case: nobody reads it
                          (autotune.py). A bucket keeps no last use, and nothing else tells it.
    collections/v1/...    what a killed collector had announced (announcements.py), and
    clocks/v1/...         what it had made to read the store's clock: once a day old

Ages are by the store's clock. None of it counts towards a size, is pinned, or is needed by a run: a
start that compiles nothing reads no autotune results, and one that does tunes anew without them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hotstart.cache.announcements import COLLECTIONS
from hotstart.cache.autotune import AUTOTUNE, MAX_BUNDLES
from hotstart.cache.collect import CLOCKS, Collected, last_uses
from hotstart.cache.errors import StoreError
from hotstart.cache.heads import in_order
from hotstart.cache.janitor import DAY_S, Limits, shown_days
from hotstart.cache.store import ObjectStat, Store

LEFT_FOR_S = DAY_S


@dataclass(frozen=True)
class Litter:
    """An object that goes, and why, in words."""

    stat: ObjectStat
    why: str


def find_litter(store: Store, limits: Limits, now_s: float) -> list[Litter]:
    """What goes of all that is no entry. Three listings; raises `StoreError`."""
    found = [*_autotune(store, limits, now_s)]
    for folder in (COLLECTIONS, CLOCKS):
        for stat in store.list(folder):
            age_s = now_s - stat.modified_s
            if age_s > LEFT_FOR_S:
                why = f"a collector left it {shown_days(age_s)} ago"
                found.append(Litter(stat, why))
    return found


def sweep(store: Store, litter: Sequence[Litter], *, threads: int = 8) -> Iterator[Collected]:
    """Delete it, and tell the fate of each. One request an object; raises no `StoreError`."""

    def delete(one: Litter) -> Collected:
        fate = "gone or replaced meanwhile"
        try:
            if store.delete(one.stat.name, one.stat.generation):
                fate = "deleted"
        except StoreError as error:
            fate = f"not deleted: {error}"
        return Collected(one.stat.name, one.stat.size_bytes, one.why, fate)

    yield from in_order(delete, litter, threads=threads)


def _autotune(store: Store, limits: Limits, now_s: float) -> Iterator[Litter]:
    by_identity: dict[str, list[ObjectStat]] = {}
    for stat in store.list(AUTOTUNE):
        by_identity.setdefault(stat.name.rpartition("/")[0], []).append(stat)
    for stats in by_identity.values():
        newest = sorted(stats, key=lambda stat: stat.modified_s, reverse=True)
        for number, stat in enumerate(newest):
            why = _outlived(store, stat, limits, now_s)
            if number >= MAX_BUNDLES:
                why = f"only the newest {MAX_BUNDLES} of its kind are read"
            if why is not None:
                yield Litter(stat, why)


def _outlived(store: Store, stat: ObjectStat, limits: Limits, now_s: float) -> str | None:
    age_s = now_s - stat.modified_s
    if limits.max_age_s is not None and age_s > limits.max_age_s:
        return f"{shown_days(age_s)} old"
    used_s = max(last_uses(store, [stat]), default=None)
    if limits.unused_for_s is None or used_s is None or now_s - used_s <= limits.unused_for_s:
        return None
    return f"not used for {shown_days(now_s - used_s)}"
