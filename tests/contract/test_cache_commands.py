"""`hotstart cache verify` as a user runs it: what it prints, and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from hotstart.cache.entry import EntryMeta, encode, entry_name
from hotstart.cache.keyring import create_key_file
from hotstart.cache.signing import UNSEALED, Seal
from hotstart.cache.store import open_store
from hotstart.launcher.cli import main

pytestmark = pytest.mark.contract

KEYS = [f"jit_step-{digit * 64}" for digit in "abc"]


@pytest.fixture(params=["directory", "gcs"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A cache with a sound entry and a damaged one."""
    where = str(tmp_path / "cache")
    if request.param == "gcs":
        where = request.getfixturevalue("bucket") + "/cache"
    store = open_store(where)
    store.create(entry_name(KEYS[0]), entry(0))
    store.create(entry_name(KEYS[1]), entry(1)[:-1])
    return where


def entry(index: int, seal: Seal = UNSEALED) -> bytes:
    return encode(KEYS[index], b"payload", EntryMeta(), seal)


def verify(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["cache", "verify", *arguments])


def test_verify_command_tells_deletes_and_is_clean_then(location: str) -> None:
    name = entry_name(KEYS[1])
    size_bytes = 2 * len(entry(0)) - 1
    what = f"{name}: {len(entry(1)) - 1} bytes, truncated or padded"
    first = verify(location)
    assert (first.exit_code, first.stderr) == (1, "")
    assert first.stdout == (
        f"{location}: 2 entries, {size_bytes} bytes: 1 sound, 1 not\n"
        f"  damaged: {name}: {what}\n"
        "--delete takes out what is damaged or misplaced\n"
    )
    deleted = verify(location, "--delete")
    assert deleted.exit_code == 0
    assert deleted.stdout == (
        f"{location}: 2 entries, {size_bytes} bytes: 1 sound, 1 not, 1 of them deleted\n"
        f"  damaged: {name}: {what} (gone)\n"
    )
    clean = verify(location)
    assert clean.exit_code == 0
    assert clean.stdout == f"{location}: 1 entries, {len(entry(0))} bytes: 1 sound, 0 not\n"


def test_verify_command_as_json(location: str) -> None:
    found = verify(location, "--json")
    assert found.exit_code == 1
    facts = json.loads(found.stdout)
    [problem] = facts.pop("problems")
    size_bytes = 2 * len(entry(0)) - 1
    assert facts == {
        "location": location,
        "entries": 2,
        "size_bytes": size_bytes,
        "signed_with": [],
    }
    assert (problem["name"], problem["problem"]) == (entry_name(KEYS[1]), "damaged")


def test_verify_command_checks_signatures_where_there_is_a_key(
    location: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOTSTART_SIGNING_KEYS", "hotstart-key-1-" + "ab" * 32)
    found = verify(location, "--json")
    problems = {p["name"]: p["problem"] for p in json.loads(found.stdout)["problems"]}
    assert problems == {entry_name(KEYS[0]): "unsigned", entry_name(KEYS[1]): "damaged"}


def test_verify_command_takes_a_key_file_where_the_environment_names_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HOTSTART_SIGNING_KEYS", raising=False)
    monkeypatch.delenv("HOTSTART_SIGNING_KEY_FILE", raising=False)
    location, key_file = str(tmp_path / "cache"), str(tmp_path / "signing.key")
    keyring = create_key_file(key_file)
    open_store(location).create(entry_name(KEYS[0]), entry(0, Seal(keyring, location)))
    open_store(location).create(entry_name(KEYS[1]), entry(1))
    found = verify(location, "--signing-key-file", key_file, "--json")
    facts = json.loads(found.stdout)
    assert facts["signed_with"] == list(keyring.ids)
    assert [(p["name"], p["problem"]) for p in facts["problems"]] == [
        (entry_name(KEYS[1]), "unsigned")
    ]
    refused = verify(location, "--signing-key-file", str(tmp_path / "none.key"))
    assert refused.exit_code == 2
    assert "none.key cannot be read" in refused.stderr


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("s3://bucket", "s3://bucket: unknown scheme s3://; give a directory or gs://bucket/"),
        ("", "the location is empty; give a directory or gs://bucket/prefix"),
        ("/nowhere/at/all", "/nowhere/at/all: there is no such directory"),
    ],
)
def test_verify_command_of_no_location_says_so(where: str, message: str) -> None:
    refused = verify(where)
    assert refused.exit_code == 2
    assert refused.stderr.startswith(f"hotstart: {message}")


def test_verify_command_of_a_bucket_that_is_not_there_says_so(bucket: str) -> None:
    refused = verify(f"{bucket}-not/cache")
    assert refused.exit_code == 2
    assert f"there is no bucket {bucket}-not; create it" in refused.stderr
