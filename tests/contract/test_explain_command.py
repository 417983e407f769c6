"""`hotstart cache explain KEY LOCATION` as a user runs it: what it prints, and its exit codes."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from hotstart.cache.description import Description, to_text
from hotstart.cache.entry import EntryMeta, encode, entry_name
from hotstart.cache.store import open_store
from hotstart.launcher.cli import main
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
