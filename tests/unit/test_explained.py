"""What is said of an attempt's misses, from its record and the cache's entries."""

from __future__ import annotations

from typing import Any

import pytest

from hotstart.cache.description import to_text
from hotstart.cache.explain import Known
from hotstart.launcher.asked_facts import AskedProgram, asked_facts, read_asked, size_of
from hotstart.launcher.explained import explain_attempt
from hotstart.launcher.unfound import Circumstances
from tests.unit.test_differences import described

pytestmark = pytest.mark.unit

KEYS = [f"jit_f-{digit * 64}" for digit in "abc"]
BASE = to_text(described())
UNWRITTEN = f"cannot write entries/v1/{'a' * 64}-jit_f in gs://b, going on without: 403"
FLAGGED = to_text(described(flags={"XLA_FLAGS": ["--xla_a"]}))


def asked(key: str, parts: str = "", **outcomes: Any) -> AskedProgram:
    ranges = {k: tuple((i, i) for i in v) for k, v in outcomes.items()}
    return AskedProgram(key, 0, ranges, parts)


def explained(attempts: dict[int, list[AskedProgram]], **around: Any) -> dict[str, Any]:
    return explain_attempt(max(attempts), attempts, {}, Circumstances(**around))


def test_explain_attempt_with_hits_alone_has_no_programs() -> None:
    assert explained({1: [asked(KEYS[0], hit=[0, 1])]}) == {"programs": [], "disagreements": []}


def test_explain_attempt_finds_the_nearest_in_the_record_where_the_store_has_none() -> None:
    attempts = {1: [asked(KEYS[0], BASE, compiled=[0])], 2: [asked(KEYS[1], FLAGGED, compiled=[1])]}
    [program] = explained(attempts)["programs"]
    assert (program["status"], program["nearest"]["where"]) == ("changed", "attempt 1")
    assert program["summary"] == "XLA_FLAGS: --xla_a is on and was not set"
    assert program["processes"] == [[1, 1]]


def test_explain_attempt_takes_no_entry_for_earlier_that_it_made_itself() -> None:
    entries = {"jit_f": [Known(KEYS[0], 1.0, "entry"), Known(KEYS[1], 2.0, "entry")]}
    own = [asked(KEYS[0], BASE, compiled=[0]), asked(KEYS[1], FLAGGED, compiled=[0])]
    found = explain_attempt(1, {1: own}, entries, Circumstances())
    assert [p["status"] for p in found["programs"]] == ["first", "first"]


def test_explain_attempt_takes_no_entry_for_earlier_that_is_newer_than_what_it_made() -> None:
    newer, made = Known(KEYS[2], 3.0, "later", described()), f"jit_g-{'d' * 64}"
    entries = {"jit_f": [newer], "jit_g": [Known(made, 2.0, "entry")]}
    own = [asked(KEYS[0], FLAGGED, compiled=[0]), asked(made, BASE, compiled=[0])]
    found = explain_attempt(1, {1: own}, entries, Circumstances())
    assert [p["status"] for p in found["programs"]] == ["first", "first"]


def test_explain_attempt_of_which_nothing_is_stored_says_that_an_entry_may_be_newer() -> None:
    entries = {"jit_f": [Known(KEYS[2], 3.0, "entry", described())]}
    own = [asked(KEYS[0], FLAGGED, compiled=[0])]
    [program] = explain_attempt(1, {1: own}, entries, Circumstances())["programs"]
    assert program["nearest"]["choice"] == (
        "it is the only earlier key of this module of which that is known; it may be newer than "
        "this attempt, of which no entry is there to compare with"
    )
    before = {1: [asked(KEYS[2], hit=[0])], 2: own}
    [program] = explain_attempt(2, before, entries, Circumstances())["programs"]
    assert program["nearest"]["choice"].endswith("of which that is known")


@pytest.mark.parametrize(
    ("before", "around", "says"),
    [
        ({"hit": [0]}, {}, "was there in attempt 1 and was gone"),
        ({"compiled": [0]}, {}, "attempt 1 compiled it, and its entry was not there"),
        ({"unstored": [0]}, {}, "attempt 1 did not hand it to the cache"),
        ({"compiled": [0], "hit": [1, 2]}, {}, "attempt 1 compiled it, and its entry was not"),
        ({"unfinished": [0]}, {}, "attempt 1 ended before it was compiled"),
        ({"compiled": [0]}, {"mode": "read-only"}, "with cache.mode=read-only nothing is stored"),
        ({"hit": [0]}, {"mode": "read-only"}, "was there in attempt 1 and was gone"),
        ({"unstored": [0]}, {"errors": 1, "unsigned": 1}, "attempt 1 did not hand it to the"),
        ({"unfinished": [0]}, {"errors": 1}, "attempt 1 ended before it was compiled"),
        ({"compiled": [0]}, {"mode": "read-only", "errors": 1}, "with cache.mode=read-only"),
        ({"compiled": [0]}, {"warnings": (UNWRITTEN,)}, "its entry was not there: it had not"),
        ({"hit": [0]}, {"unsigned": 2}, "2 objects of the cache were refused as unsigned"),
        ({"hit": [0]}, {"errors": 1, "warnings": (UNWRITTEN,)}, "attempt, perhaps with its entry"),
        (
            {"hit": [0]},
            {"errors": 1, "warnings": (f"entries/v1/{'a' * 64}-jit_f: truncated",)},
            "an entry was there and was of no use: ",
        ),
    ],
)
def test_explain_attempt_with_the_same_key_as_before_says_what_is_known(
    before: dict[str, list[int]], around: dict[str, Any], says: str
) -> None:
    attempts = {1: [asked(KEYS[0], BASE, **before)], 2: [asked(KEYS[0], BASE, compiled=[0])]}
    [program] = explained(attempts, **around)["programs"]
    assert (program["status"], program["causes"]) == ("same", [])
    assert says in program["reason"]
    assert program["summary"] == f"nothing has changed since attempt 1: {program['reason']}"


def test_explain_attempt_names_which_process_disagrees() -> None:
    own = [asked(KEYS[0], BASE, compiled=[0], hit=[2, 3]), asked(KEYS[1], FLAGGED, compiled=[1])]
    [found] = explained({1: own})["disagreements"]
    assert (found["processes"], found["key"]) == ([[1, 1]], KEYS[1])
    assert found["summary"] == (
        "process 1 asks for another jit_f than processes 0, 2-3: "
        "XLA_FLAGS: --xla_a is on for process 1 and not set for processes 0, 2-3"
    )


def test_explain_attempt_with_shapes_that_all_processes_ask_for_has_no_disagreement() -> None:
    own = [asked(KEYS[0], BASE, compiled=[0], hit=[1]), asked(KEYS[1], FLAGGED, hit=[0, 1])]
    assert explained({1: own})["disagreements"] == []


def test_asked_facts_survive_and_leave_out_what_is_odd() -> None:
    good = {"key": KEYS[0], "order": 1, "outcome": "compiled", "parts": BASE}
    odd = [{}, {"key": 7}, {**good, "outcome": "x"}, {**good, "order": -1}, {**good, "key": "a\nb"}]
    facts = asked_facts({0: [good, *odd], 1: [{**good, "outcome": "hit", "parts": 5}]})
    assert facts is not None
    assert size_of(facts) == 4
    [program] = read_asked(facts)
    assert (program.key, program.parts) == (KEYS[0], BASE)
    assert program.outcomes == {"compiled": ((0, 0),), "hit": ((1, 1),)}
    assert asked_facts({0: odd}) is None
    assert read_asked({"version": 1, "programs": [3, {}, {"key": KEYS[0]}]}) == ()
    assert read_asked({"version": 2, "programs": []}) == ()
