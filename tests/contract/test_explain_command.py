"""`hotstart cache explain KEY LOCATION` as a user runs it: what it prints, and its exit codes."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from hotstart.cache.description import Description, to_text
from hotstart.cache.directory import DirectoryStore
from hotstart.cache.entry import EntryMeta, encode, entry_name
from hotstart.cache.explain import PREFIX
from hotstart.cache.store import ObjectStat, open_store
from hotstart.launcher.asked_facts import asked_facts
from hotstart.launcher.cli import main
from hotstart.launcher.outcome import Outcome
from hotstart.launcher.record import RunRecord
from tests.unit.test_differences import described

pytestmark = pytest.mark.contract

KEYS = [f"jit_step-{digit * 64}" for digit in "abc"]
FLAGGED = described(flags={"XLA_FLAGS": ["--xla_a=2"]})


@pytest.fixture(params=["directory", "gcs"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A cache with an entry that has no description, and two that have."""
    where = str(tmp_path / "cache")
    if request.param == "gcs":
        where = request.getfixturevalue("bucket") + "/cache"
    add(where, 0, None)
    add(where, 1, described())
    add(where, 2, FLAGGED)
    return where


def add(location: str, index: int, description: Description | None) -> None:
    parts = "" if description is None else to_text(description)
    data = encode(KEYS[index], b"payload", EntryMeta(parts=parts))
    assert open_store(location).create(entry_name(KEYS[index]), data)
    time.sleep(0.02)  # the store's clock orders them


def explain(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["cache", "explain", *arguments])


def test_explain_command_says_what_differs_from_the_nearest_earlier_entry(location: str) -> None:
    shown = explain("jit_step", location)
    assert (shown.exit_code, shown.stderr) == (0, "")
    assert shown.stdout == (
        f"{KEYS[2]} was compiled\n"
        "  flag: XLA_FLAGS: --xla_a is 2 and was not set\n"
        f"  against {KEYS[1]} ({entry_name(KEYS[1])}):\n"
        "    it is the only earlier key of this module of which that is known\n"
        "    components of the key that differ: XLA flags\n"
    )


@pytest.mark.parametrize("name", [KEYS[2], "c" * 64, "cccccc", "jit_step-cccccc"])
def test_explain_command_takes_a_key_or_its_beginning(location: str, name: str) -> None:
    explained = json.loads(explain(name, location, "--json").stdout)
    [program] = explained["programs"]
    assert (explained["schema"], explained["location"]) == (1, location)
    assert (program["key"], program["status"]) == (KEYS[2], "changed")
    assert [(c["kind"], c["before"], c["after"]) for c in program["causes"]] == [
        ("flag", None, "2")
    ]


def test_explain_command_says_where_nothing_is_known(location: str) -> None:
    first = explain(KEYS[0], location).stdout
    assert first == f"{KEYS[0]} was compiled\n  no earlier key of jit_step is known in this cache\n"
    second = json.loads(explain(KEYS[1], location, "--json").stdout)["programs"][0]
    assert second["status"] == "undescribed"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either a key, and where its cache is, or --run RUN"),
        (["jit_step", "--run", "latest"], "give either a key, and where its cache is, or --run"),
        (["jit_step", "--attempt", "1"], "--attempt and --run-dir go with --run RUN"),
        (["jit_stop", "LOCATION"], "no entry of jit_stop in LOCATION; the modules there are jit_s"),
        (["jit_step", "/no/where"], "/no/where: there is no such directory"),
        (["--run", "latest", "--run-dir", "/no/where"], "no runs in /no/where; launch one with"),
    ],
)
def test_explain_command_asked_wrongly_is_one_line_and_2(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    where = str(tmp_path / "cache")
    add(where, 0, None)
    shown = explain(*(where if a == "LOCATION" else a for a in arguments))
    assert shown.exit_code == 2
    assert shown.stderr.startswith(f"hotstart: {message.replace('LOCATION', where)}")
    assert shown.stderr.count("\n") == 1


@pytest.fixture
def run_dir(tmp_path: Path) -> str:
    """A run of two attempts: the second asked for another key, and once more for an old one."""
    where, runs = str(tmp_path / "cache"), str(tmp_path / "runs")
    add(where, 1, described())
    record = RunRecord.create(open_store(runs), "job-1", "script: x.py\n", {}, 1.0)
    base, flagged = to_text(described()), to_text(FLAGGED)
    asked = {
        1: {0: [request(KEYS[0], "unstored", base), request(KEYS[1], "compiled", base)]},
        2: {
            0: [request(KEYS[0], "unstored", base), request(KEYS[1], "hit")],
            1: [request(KEYS[0], "hit"), request(KEYS[2], "compiled", flagged)],
        },
    }
    for number, answers in asked.items():
        cache = {"location": where, "mode": "read-write", "source": "job.yaml:1"}
        record.start_attempt(number, {"process_count": 2, "cache": cache})
        early = asked_facts({0: answers[0][:1]})
        late = asked_facts(answers)
        assert early is not None
        assert late is not None
        record.keep_asked(number, late)
        record.keep_asked(number, early)  # the larger one counts, whichever came last
        record.end_attempt(number, Outcome("done", "all is well", None), {})
    return runs


def request(key: str, outcome: str, parts: str = "") -> dict[str, Any]:
    return {"key": key, "order": KEYS.index(key), "outcome": outcome, "parts": parts}


def test_explain_command_for_a_run_says_why_each_program_was_compiled(run_dir: str) -> None:
    shown = explain("--run", "latest", "--run-dir", run_dir)
    assert shown.exit_code == 0, shown.output
    lines = shown.stdout.splitlines()
    assert lines[0] == f"run job-1, attempt 2; cache {Path(run_dir).parent / 'cache'}"
    assert lines[1:4] == [
        f"{KEYS[0]} was compiled, by process 0",
        "  nothing has changed since attempt 1: attempt 1 did not hand it to the cache: it "
        "compiled faster than cache.min_compile_time_s, calls back into Python, or failed to "
        "compile",
        f"{KEYS[2]} was compiled, by process 1",
    ]
    assert lines[4] == "  flag: XLA_FLAGS: --xla_a is 2 and was not set"
    assert lines[-1] == (
        "processes differ: process 1 asks for another jit_step than process 0: "
        "XLA_FLAGS: --xla_a is 2 for process 1 and not set for process 0"
    )


def test_explain_command_for_one_attempt_as_json_and_for_none(run_dir: str) -> None:
    first = json.loads(
        explain("--run", "job-1", "--run-dir", run_dir, "--attempt", "1", "--json").stdout
    )
    assert (first["run"], first["attempt"], first["recorded"]) == ("job-1", 1, True)
    assert [program["status"] for program in first["programs"]] == ["first", "first"]
    none = explain("--run", "job-1", "--run-dir", run_dir, "--attempt", "7")
    assert (none.exit_code, none.stderr) == (
        2,
        "hotstart: run job-1 has no attempt 7; it has 1, 2\n",
    )


def test_explain_command_goes_on_where_the_cache_is_gone(run_dir: str, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "cache")
    explained = json.loads(explain("--run", "latest", "--run-dir", run_dir, "--json").stdout)
    assert explained["problem"] == f"{tmp_path / 'cache'}: there is no such directory"
    [_, changed] = explained["programs"]
    assert (changed["status"], changed["nearest"]["where"]) == ("changed", "attempt 1")


def test_report_of_several_attempts_lists_their_cache_once(
    run_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stock, listed = DirectoryStore.list, []

    def watched(store: DirectoryStore, prefix: str) -> Iterator[ObjectStat]:
        listed.append(prefix)
        return stock(store, prefix)

    monkeypatch.setattr(DirectoryStore, "list", watched)
    shown = CliRunner().invoke(main, ["report", "latest", "--run-dir", run_dir, "--json"])
    assert all(attempt["misses"] for attempt in json.loads(shown.stdout)["attempts"])
    assert listed.count(PREFIX) == 1


def test_report_has_a_line_for_each_miss(run_dir: str) -> None:
    shown = CliRunner().invoke(main, ["report", "latest", "--run-dir", run_dir, "--json"])
    attempts = json.loads(shown.stdout)["attempts"]
    assert [m["text"] for m in attempts[1]["misses"]][1:] == [
        "jit_step compiled (process 1): XLA_FLAGS: --xla_a is 2 and was not set",
        "processes differ: process 1 asks for another jit_step than process 0: "
        "XLA_FLAGS: --xla_a is 2 for process 1 and not set for process 0",
    ]
    text = CliRunner().invoke(main, ["report", "latest", "--run-dir", run_dir]).stdout
    assert "--xla_a is 2 and was not set" in text
