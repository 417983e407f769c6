"""Which objects lifecycle rules delete, and how rules are mended."""

from __future__ import annotations

import pytest

from hotstart.cache.entry import entry_name
from hotstart.cache.lifecycle import (
    Deletion,
    Layout,
    class_change_of,
    days_of,
    deletion_of,
    entries_rule,
    mended_rules,
    shortest_age,
)

pytestmark = pytest.mark.unit

LAYOUT = Layout("cache/entries/", "runs/")
DAY_S = 86_400


def delete(age: int, *prefixes: str, **more: object) -> dict[str, object]:
    matches = {"matchesPrefix": list(prefixes)} if prefixes else {}
    return {"action": {"type": "Delete"}, "condition": {"age": age, **matches, **more}}


def test_rule_of_a_layout_catches_the_names_of_entries() -> None:
    rule = deletion_of(entries_rule(Layout.of_cache("team/cache"), 10))
    assert rule == Deletion(10, ("team/cache/entries/",))
    name = f"team/cache/{entry_name('jit_step-' + 'ab' * 32)}"
    assert name.startswith(rule.prefixes)


@pytest.mark.parametrize(
    ("prefix", "layout"),
    [
        ("cache", Layout("cache/entries/", "runs/")),
        ("team/cache", Layout("team/cache/entries/", "team/runs/")),
        ("", Layout("entries/", None)),
        ("xla", Layout("xla/entries/", None)),
        ("mycache", Layout("mycache/entries/", None)),
    ],
)
def test_layout_of_a_cache_knows_the_runs_beside_it(prefix: str, layout: Layout) -> None:
    assert Layout.of_cache(prefix) == layout


@pytest.mark.parametrize(
    ("seconds", "days"), [(1, 1), (DAY_S, 1), (DAY_S + 1, 2), (36 * 3600, 2), (10 * DAY_S, 10)]
)
def test_age_of_a_rule_is_never_shorter_than_the_run(seconds: float, days: int) -> None:
    assert days_of(seconds) == days


@pytest.mark.parametrize(
    "more",
    [
        {"createdBefore": "2026-01-01"},
        {"customTimeBefore": "2026-01-01"},
        {"daysSinceCustomTime": 3},
        {"daysSinceNoncurrentTime": 3},
        {"noncurrentTimeBefore": "2026-01-01"},
        {"numNewerVersions": 2},
        {"isLive": False},
        {"matchesSuffix": [".tmp"]},
        {"matchesStorageClass": ["NEARLINE"]},
    ],
)
def test_rule_that_is_not_about_the_age_of_live_standard_objects_is_left_aside(
    more: dict[str, object],
) -> None:
    rule = delete(1, **more)
    assert deletion_of(rule) is None
    assert mended_rules([rule], LAYOUT, 2 * DAY_S, whole_bucket=True) == [
        rule,
        entries_rule(LAYOUT, 2),
    ]


def test_rule_without_an_age_deletes_at_once() -> None:
    rule = {"action": {"type": "Delete"}, "condition": {"isLive": True}}
    assert deletion_of(rule) == Deletion(0, ("",))


@pytest.mark.parametrize(
    ("prefixes", "catches", "covers", "too_much"),
    [
        (("cache/entries/",), True, True, False),
        (("cache/entries/v1/",), True, False, False),
        (("cache/entries/v1/", "cache/entries/"), True, True, False),
        (("",), True, True, True),
        (("cache/",), True, True, True),
        (("cache/e",), True, True, True),
        (("tmp/",), False, False, False),
        (("cache/leases/",), False, False, False),
        (("runs/",), False, False, True),
        (("runs/bytelm-1/logs/",), False, False, True),
        (("tmp/", "r"), False, False, True),
    ],
)
def test_prefixes_of_a_rule_say_what_it_catches(
    prefixes: tuple[str, ...], catches: bool, covers: bool, too_much: bool
) -> None:
    rule = Deletion(3, prefixes)
    assert rule.catches(LAYOUT.entries) is catches
    assert rule.covers(LAYOUT.entries) is covers
    assert rule.catches_more_than(LAYOUT) is too_much


def test_shortest_age_is_of_what_touches_the_prefix() -> None:
    rules = [delete(9), delete(5, "cache/entries/"), delete(1, "tmp/")]
    assert shortest_age(rules, "cache/entries/") == 5
    assert shortest_age(rules, "runs/") == 9
    assert shortest_age([delete(1, "tmp/")], "runs/") is None


@pytest.mark.parametrize(
    ("rules", "length_days", "mended"),
    [
        ([], 10, [entries_rule(LAYOUT, 10)]),
        ([delete(3, "cache/entries/")], 10, [entries_rule(LAYOUT, 10)]),
        ([delete(30, "cache/entries/")], 10, [entries_rule(LAYOUT, 30)]),
        ([delete(30)], 10, [entries_rule(LAYOUT, 30)]),
        (
            [delete(3, "tmp/"), delete(5, "cache/", "other/")],
            10,
            [delete(3, "tmp/"), delete(5, "other/"), entries_rule(LAYOUT, 10)],
        ),
        ([delete(1, "runs/")], 2, [entries_rule(LAYOUT, 2)]),
        ([delete(7)], None, [entries_rule(LAYOUT, 7)]),
        ([delete(1, "runs/")], None, []),
        ([{"action": {"type": "Delete"}, "condition": {"isLive": True}}], None, []),
    ],
)
def test_mended_rules_delete_entries_alone_and_keep_what_is_of_others(
    rules: list[dict[str, object]], length_days: int | None, mended: list[dict[str, object]]
) -> None:
    length_s = None if length_days is None else float(length_days * DAY_S)
    assert mended_rules(rules, LAYOUT, length_s, whole_bucket=True) == mended
    for rule in map(deletion_of, mended):
        assert rule is not None and not rule.catches_more_than(LAYOUT)


@pytest.mark.parametrize(
    ("rules", "length_days", "mended"),
    [
        ([], 10, [entries_rule(LAYOUT, 10)]),
        ([delete(3, "cache/entries/")], 10, [entries_rule(LAYOUT, 10)]),
        ([delete(30, "cache/entries/v1/")], 10, [entries_rule(LAYOUT, 30)]),
        ([delete(30)], 10, [delete(30), entries_rule(LAYOUT, 10)]),
        ([delete(90, "runs/")], 10, [delete(90, "runs/"), entries_rule(LAYOUT, 10)]),
        (
            [delete(5, "cache/", "cache/entries/", "other/")],
            10,
            [delete(5, "cache/", "other/"), entries_rule(LAYOUT, 10)],
        ),
        ([delete(1, "runs/")], None, [delete(1, "runs/")]),
    ],
)
def test_mended_rules_of_the_cache_alone_leave_every_prefix_that_is_not_of_entries(
    rules: list[dict[str, object]], length_days: int | None, mended: list[dict[str, object]]
) -> None:
    length_s = None if length_days is None else float(length_days * DAY_S)
    assert mended_rules(rules, LAYOUT, length_s, whole_bucket=False) == mended


def test_class_change_is_told_with_what_it_touches() -> None:
    action = {"type": "SetStorageClass", "storageClass": "NEARLINE"}
    rule = {"action": action, "condition": {"age": 30}}
    assert class_change_of(rule) == ("NEARLINE", Deletion(30, ("",)))
    assert class_change_of(delete(3)) is None
    assert deletion_of(rule) is None
