"""What a collector takes out, for all entries, pins and limits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotstart.cache.janitor import DAY_S, Candidate, Condemned, Limits, choose

pytestmark = pytest.mark.unit

NOW_S = 100 * DAY_S
NAMES = [f"entries/v1/{index:064x}" for index in range(12)]


def entry(index: int, *, size: int = 10, age_d: float = 1.0, idle_d: float = 1.0) -> Candidate:
    return Candidate(NAMES[index], size, NOW_S - age_d * DAY_S, NOW_S - idle_d * DAY_S)


def names(condemned: list[Condemned]) -> list[str]:
    return [one.name for one in condemned]


def test_choose_without_limits_takes_nothing() -> None:
    assert choose([entry(0, age_d=99, idle_d=99)], (), Limits(), NOW_S) == []


def test_choose_by_age_takes_the_older_and_says_why() -> None:
    entries = [entry(0, age_d=9, idle_d=0), entry(1, age_d=11, idle_d=2), entry(2, age_d=10)]
    [gone] = choose(entries, (), Limits(max_age_s=10 * DAY_S), NOW_S)
    assert gone == Condemned(NAMES[1], "11.0 days old")


def test_choose_by_last_use_spares_what_is_old_and_used() -> None:
    entries = [entry(0, age_d=90, idle_d=1), entry(1, age_d=20, idle_d=12)]
    [gone] = choose(entries, (), Limits(unused_for_s=10 * DAY_S), NOW_S)
    assert gone == Condemned(NAMES[1], "not used for 12.0 days")


def test_choose_by_size_takes_those_used_longest_ago_and_no_more_than_needed() -> None:
    entries = [entry(i, size=10, idle_d=i) for i in range(5)]
    assert names(choose(entries, (), Limits(max_size_bytes=25), NOW_S)) == [
        NAMES[4],
        NAMES[3],
        NAMES[2],
    ]


def test_choose_by_size_counts_what_is_kept_and_passes_over_it() -> None:
    entries = [entry(i, size=10, idle_d=i) for i in range(4)]
    limits = Limits(max_size_bytes=20)
    assert names(choose(entries, {NAMES[3], NAMES[2]}, limits, NOW_S)) == [NAMES[1], NAMES[0]]


def test_choose_takes_ages_off_before_it_looks_at_the_size() -> None:
    entries = [entry(0, size=10, age_d=30, idle_d=1), entry(1, size=10, age_d=2, idle_d=9)]
    limits = Limits(max_size_bytes=10, max_age_s=10 * DAY_S)
    assert names(choose(entries, (), limits, NOW_S)) == [NAMES[0]]


def test_choose_entry_of_the_future_is_new() -> None:
    entries = [entry(0, age_d=-5, idle_d=-5)]
    assert choose(entries, (), Limits(max_age_s=0.0, unused_for_s=0.0), NOW_S) == []


_days = st.floats(-2, 60, allow_nan=False)
_entries = st.lists(
    st.tuples(st.integers(0, 100), _days, _days), min_size=0, max_size=len(NAMES)
).map(
    lambda rows: [
        entry(i, size=size, age_d=max(age, idle), idle_d=min(age, idle))
        for i, (size, age, idle) in enumerate(rows)
    ]
)
_limit_days = st.none() | st.floats(0, 60).map(lambda days: days * DAY_S)
_limits = st.builds(Limits, st.none() | st.integers(0, 600), _limit_days, _limit_days)
_kept = st.sets(st.sampled_from(NAMES))


@given(_entries, _kept, _limits)
def test_choose_never_takes_what_is_kept_and_each_once(
    entries: list[Candidate], kept: set[str], limits: Limits
) -> None:
    gone = names(choose(entries, kept, limits, NOW_S))
    assert not kept & set(gone)
    assert len(gone) == len(set(gone))
    assert set(gone) <= {one.name for one in entries}


@given(_entries, _kept, _limits)
def test_choose_leaves_what_the_limits_allow_or_only_what_is_kept(
    entries: list[Candidate], kept: set[str], limits: Limits
) -> None:
    gone = set(names(choose(entries, kept, limits, NOW_S)))
    left = [one for one in entries if one.name not in gone]
    free = [one for one in left if one.name not in kept]
    if limits.max_age_s is not None:
        assert all(NOW_S - one.created_s <= limits.max_age_s for one in free)
    if limits.unused_for_s is not None:
        assert all(NOW_S - one.used_s <= limits.unused_for_s for one in free)
    if limits.max_size_bytes is not None and free:
        assert sum(one.size_bytes for one in left) <= limits.max_size_bytes


@given(_entries, _kept, st.integers(0, 600))
def test_choose_by_size_takes_nothing_that_could_stay(
    entries: list[Candidate], kept: set[str], size: int
) -> None:
    gone = names(choose(entries, kept, Limits(max_size_bytes=size), NOW_S))
    sizes = {one.name: one.size_bytes for one in entries}
    if gone:  # the last one was still needed
        before_last = sum(sizes.values()) - sum(sizes[name] for name in gone[:-1])
        assert before_last > size
    used = {one.name: one.used_s for one in entries}
    left = [used[name] for name in sizes if name not in gone and name not in kept]
    assert all(used[name] <= min(left, default=NOW_S * 2) for name in gone)


@given(_entries, _kept, _limits)
def test_choose_twice_takes_nothing_more(
    entries: list[Candidate], kept: set[str], limits: Limits
) -> None:
    gone = set(names(choose(entries, kept, limits, NOW_S)))
    left = [one for one in entries if one.name not in gone]
    assert choose(left, kept, limits, NOW_S) == []
