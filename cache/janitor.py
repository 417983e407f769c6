"""Which entries a collector takes out: a policy without I/O (collect.py carries it out).

An entry that is kept, by a pin or by a run that needs it, never goes. Of the others go those that
are older than `max_age_s`, those not used for `unused_for_s`, and then, as long as all that is
left is more than `max_size_bytes`, those used longest ago. What is kept counts towards the size.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

DAY_S = 86400.0


@dataclass(frozen=True)
class Candidate:
    """All that is stored of one key. Times are by the store's clock, in seconds since the epoch.

    name: where the entry belongs. size_bytes: of it and its replacements together.
    created_s: when the youngest of them was made. used_s: when it was last used as far as that is
    known; where it is not, when it was made.
    """

    name: str
    size_bytes: int
    created_s: float
    used_s: float


@dataclass(frozen=True)
class Limits:
    """What may stay. None is no limit."""

    max_size_bytes: int | None = None
    max_age_s: float | None = None
    unused_for_s: float | None = None


@dataclass(frozen=True)
class Condemned:
    """An entry that goes, and why, in words."""

    name: str
    why: str


def choose(
    entries: Sequence[Candidate], kept: Collection[str], limits: Limits, now_s: float
) -> list[Condemned]:
    """The entries that go, in the order in which they go; pure.

    `kept` has the names of those that stay. `now_s` is the store's clock, as the entries' times.
    """
    condemned: list[Condemned] = []
    left: list[Candidate] = []
    total_bytes = sum(entry.size_bytes for entry in entries)
    for entry in sorted(entries, key=lambda entry: (entry.used_s, entry.name)):
        why = None if entry.name in kept else _outlived(entry, limits, now_s)
        if why is not None:
            condemned.append(Condemned(entry.name, why))
            total_bytes -= entry.size_bytes
        elif entry.name not in kept:
            left.append(entry)
    if limits.max_size_bytes is None:
        return condemned
    for entry in left:
        if total_bytes <= limits.max_size_bytes:
            break
        idle = f"used last {shown_days(now_s - entry.used_s)} ago"
        condemned.append(Condemned(entry.name, f"all are {total_bytes} bytes; {idle}"))
        total_bytes -= entry.size_bytes
    return condemned


def _outlived(entry: Candidate, limits: Limits, now_s: float) -> str | None:
    age_s, idle_s = now_s - entry.created_s, now_s - entry.used_s
    if limits.max_age_s is not None and age_s > limits.max_age_s:
        return f"{shown_days(age_s)} old"
    if limits.unused_for_s is not None and idle_s > limits.unused_for_s:
        return f"not used for {shown_days(idle_s)}"
    return None


def shown_days(duration_s: float) -> str:
    """For people: `12.5 days`."""
    return f"{max(0.0, duration_s) / DAY_S:.1f} days"
