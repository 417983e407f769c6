"""What is said at a start of lifecycle rules that cut a run short."""

from __future__ import annotations

from typing import Any

import pytest

from hotstart.launcher.bucket_lifetime import Lived, warning_of

pytestmark = pytest.mark.unit

DAY_S = 86_400.0


def rule(age: int, *prefixes: str) -> dict[str, Any]:
    matches = {"matchesPrefix": list(prefixes)} if prefixes else {}
    return {"action": {"type": "Delete"}, "condition": {"age": age, **matches}}


def lived(days: float, cache: str = "gs://b/cache", run: str = "gs://b/runs/r-1") -> Lived:
    return Lived(cache, run, days * DAY_S)


@pytest.mark.parametrize(
    ("rules", "of"),
    [
        ([], lived(100)),
        ([rule(10, "cache/entries/")], lived(0)),
        ([rule(10, "cache/entries/")], lived(10)),
        ([rule(10, "tmp/")], lived(100)),
        ([rule(90, "runs/")], lived(45)),
        ([rule(90, "runs/r-1/logs/")], lived(1)),
        ([rule(1)], lived(5, cache="/a/folder", run="/a/run")),
        ([rule(1)], lived(5, cache="gs://c/cache", run="gs://c/runs/r-1")),
        ([rule(1, "runs/r-10/")], lived(5)),
    ],
)
def test_rules_that_leave_the_run_alone_are_not_told(rules: list[Any], of: Lived) -> None:
    assert warning_of("b", rules, of) is None


def test_rule_shorter_than_the_runs_age_is_told_with_what_mends_it() -> None:
    assert warning_of("b", [rule(10, "cache/entries/")], lived(12.5)) == (
        "a lifecycle rule of gs://b deletes entries after 10 days, and the run is 12 days old: "
        "what is gone is compiled again; see hotstart bucket check gs://b/cache --run-length 14d"
    )


@pytest.mark.parametrize("of", [lived(0), lived(0, run="gs://b/r-1"), lived(0, cache="/tmp/c")])
def test_rule_for_the_whole_bucket_is_told_at_once_for_it_takes_the_record(of: Lived) -> None:
    warning = warning_of("b", [rule(10)], of)
    assert warning is not None
    assert warning.startswith(
        "a lifecycle rule of gs://b deletes the run's record, checkpoints and logs 10 days after "
        "they were written, and without its record it can't be restarted; see "
    )


def test_rule_of_the_runs_own_is_told_when_the_run_is_half_as_old() -> None:
    warning = warning_of("b", [rule(90, "runs/")], lived(46))
    assert warning is not None and "record, checkpoints and logs 90 days after" in warning


def test_both_troubles_of_one_bucket_are_one_line() -> None:
    warning = warning_of("b", [rule(3)], lived(4))
    assert warning is not None
    assert "can't be restarted; and one deletes entries after 3 days, and the run is" in warning
    assert "\n" not in warning


def test_cache_at_the_root_of_its_bucket_is_known() -> None:
    warning = warning_of("b", [rule(3, "entries/")], lived(4, cache="gs://b", run="/runs/r-1"))
    assert warning is not None
    assert warning.endswith("see hotstart bucket check gs://b --prefix '' --run-length 5d")
