"""What the lifecycle rules of a bucket delete, and the rules that a cache should have: pure.

https://cloud.google.com/storage/docs/lifecycle

Only entries may go by age: they can be compiled again. A rule is judged by its `age`,
`matchesPrefix`, `isLive` and `matchesStorageClass`. Not judged, since they can't tell an entry
from another object by its age: rules with dates, custom times or suffixes, and those for
noncurrent versions. The age counts from an entry's creation, not from its last use.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hotstart.cache.eviction import ENTRIES

DAY_S = 86_400
_NOT_JUDGED = frozenset(
    {
        "createdBefore",
        "customTimeBefore",
        "daysSinceCustomTime",
        "daysSinceNoncurrentTime",
        "matchesSuffix",
        "noncurrentTimeBefore",
        "numNewerVersions",
    }
)

Rule = Mapping[str, Any]  # as the JSON API has it: {"action": {...}, "condition": {...}}


@dataclass(frozen=True)
class Layout:
    """Where things lie in a bucket: name prefixes that end in a slash, or are empty.

    entries: of the cache's entries. runs: of the run records, which lie there with checkpoints
    and logs; None where they are elsewhere.
    """

    entries: str
    runs: str | None = None

    @classmethod
    def of_cache(cls, prefix: str) -> Layout:
        """That of a cache at `gs://bucket/prefix`, which has no slash at its end.

        The runs of a cache that is called `cache` are beside it, as `hotstart submit --bucket`
        makes them.
        """
        folder, is_called_so = prefix.removesuffix("cache"), f"/{prefix}".endswith("/cache")
        runs = f"{folder}runs/" if is_called_so else None
        return cls(f"{prefix}/{ENTRIES}" if prefix else ENTRIES, runs)


@dataclass(frozen=True)
class Deletion:
    """A rule that deletes live objects below any of `prefixes` once they are `age_days` old."""

    age_days: int
    prefixes: tuple[str, ...]

    def catches(self, prefix: str) -> bool:
        """Whether it deletes anything below a prefix."""
        return any(_overlap(one, prefix) for one in self.prefixes)

    def covers(self, prefix: str) -> bool:
        """Whether it deletes everything below a prefix."""
        return any(prefix.startswith(one) for one in self.prefixes)

    def catches_more_than(self, layout: Layout) -> bool:
        """Whether it deletes anything that isn't an entry and lies beside them, or in runs."""
        beside = any(
            layout.entries.startswith(one) and one != layout.entries for one in self.prefixes
        )
        return beside or (layout.runs is not None and self.catches(layout.runs))


def days_of(run_length_s: float) -> int:
    """The age of a rule for runs of this length: whole days, rounded up, at least one."""
    return max(1, math.ceil(run_length_s / DAY_S))


def entries_rule(layout: Layout, age_days: int) -> Rule:
    """The rule that a cache should have."""
    return {
        "action": {"type": "Delete"},
        "condition": {"age": age_days, "matchesPrefix": [layout.entries]},
    }


def deletion_of(rule: Rule) -> Deletion | None:
    """What a rule deletes by age; None where it deletes nothing, or is not judged."""
    if rule.get("action", {}).get("type") != "Delete":
        return None
    return _matched(rule)


def class_change_of(rule: Rule) -> tuple[str, Deletion] | None:
    """The class to which a rule moves live objects by age, and which objects that are."""
    action = rule.get("action", {})
    matched = _matched(rule)
    if action.get("type") != "SetStorageClass" or matched is None:
        return None
    return str(action.get("storageClass")), matched


def deletions(rules: Sequence[Rule]) -> list[Deletion]:
    """All deletions by age."""
    return [found for rule in rules if (found := deletion_of(rule)) is not None]


def mended_rules(
    rules: Sequence[Rule], layout: Layout, run_length_s: float | None, *, whole_bucket: bool
) -> list[Rule]:
    """The rules with one for the entries alone, no shorter than the run.

    With `whole_bucket`, of rules that touch the entries or the runs only prefixes that touch
    neither are left; else all but the prefixes of entries alone are left, for these are nobody
    else's. An age beyond the run's length is kept. Where the length is not known and no rule
    tells an age, there is none for the entries, which then stay.
    """
    kept: list[Rule] = []
    ages = [] if run_length_s is None else [days_of(run_length_s)]
    for rule in rules:
        deletion = deletion_of(rule)
        if deletion is None:
            kept.append(rule)
            continue
        if whole_bucket:
            left = [
                one
                for one in deletion.prefixes
                if not _overlap(one, layout.entries)
                and not (layout.runs is not None and _overlap(one, layout.runs))
            ]
        else:
            left = [one for one in deletion.prefixes if not one.startswith(layout.entries)]
        if any(_overlap(one, layout.entries) for one in deletion.prefixes if one not in left):
            ages.append(deletion.age_days)
        if left == list(deletion.prefixes):
            kept.append(rule)
        elif left:
            condition = {**rule.get("condition", {}), "matchesPrefix": left}
            kept.append({**rule, "condition": condition})
    age_days = max(ages, default=0)
    return [*kept, entries_rule(layout, age_days)] if age_days else kept


def shortest_age(rules: Sequence[Rule], prefix: str) -> int | None:
    """After how many days the first objects below a prefix are deleted; None for never."""
    found = deletions(rules)
    return min((d.age_days for d in found if d.catches(prefix)), default=None)


def shown_days(days: int) -> str:
    """For people: `1 day`, `10 days`."""
    return "1 day" if days == 1 else f"{days} days"


def _matched(rule: Rule) -> Deletion | None:
    condition = rule.get("condition", {})
    classes = condition.get("matchesStorageClass")
    if (
        condition.keys() & _NOT_JUDGED
        or condition.get("isLive") is False
        or (classes is not None and "STANDARD" not in classes)
    ):
        return None
    prefixes = tuple(condition.get("matchesPrefix") or ("",))
    return Deletion(int(condition.get("age", 0)), prefixes)


def _overlap(one: str, other: str) -> bool:
    return one.startswith(other) or other.startswith(one)
