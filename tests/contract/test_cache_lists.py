"""`hotstart cache ls`, `stats` and `show` as a user runs them, over a directory and a bucket."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from hotstart.cache.entry import HEAD_BYTES, EntryMeta, encode, entry_name
from hotstart.cache.leases import StoreLeases
from hotstart.cache.pins import BY_KEY, PinFacts, pin
from hotstart.cache.signing import Key, Keyring, Seal
from hotstart.cache.store import open_store
from hotstart.launcher.cli import main
from tests.support.gcs_proxy import GcsProxy
from tests.support.recorded_runs import KEYS, META, NAMES, entry, fill, record_run

pytestmark = pytest.mark.contract

OTHER_KEY = "jit_other-" + "0" * 64
OTHER = EntryMeta(9.0, "0.9.0", "0.9.0", "gpu", "host-b/3")
SIZE = len(entry(0))


@pytest.fixture(params=["directory", "gcs"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A cache with two entries of `jit_step`, and a larger one of `jit_other` by an older JAX."""
    where = str(tmp_path / "cache")
    if request.param == "gcs":
        where = request.getfixturevalue("bucket") + "/cache"
    store = open_store(where)
    fill(store, 0, 1)
    store.create(entry_name(OTHER_KEY), encode(OTHER_KEY, b"x" * 5000, OTHER))
    return where


@pytest.fixture(autouse=True)
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The run directory that commands look at where none is named."""
    monkeypatch.setenv("HOTSTART_HOME", str(tmp_path / "home"))
    for name in ("JAX_COMPILATION_CACHE_DIR", "HOTSTART_JOB__CACHE__LOCATION"):
        monkeypatch.delenv(name, raising=False)
    return str(tmp_path / "home" / "runs")


def cache(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["cache", *arguments])


def facts(*arguments: str) -> dict[str, Any]:
    done = cache(*arguments, "--json")
    assert (done.exit_code, done.stderr) == (0, ""), done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def keys(*arguments: str) -> list[str]:
    return [row["key"] for row in facts("ls", *arguments)["entries"]]


def test_ls_tells_by_names_alone(location: str) -> None:
    found = facts("ls", location)["entries"]
    assert [row["key"] for row in found] == [OTHER_KEY, KEYS[0], KEYS[1]]
    row = found[1]
    assert row.pop("modified_s") > 0
    assert row == {
        "name": NAMES[0],
        "kind": "entry",
        "module": "jit_step",
        "key": KEYS[0],
        "size_bytes": SIZE,
        "pins": [],
    }


def test_ls_long_adds_what_heads_say(location: str) -> None:
    row = facts("ls", location, "--long", "--module", "jit_o*")["entries"][0]
    assert (row["compile_s"], row["jax"], row["jaxlib"]) == (9.0, "0.9.0", "0.9.0")
    assert (row["platform"], row["writer"], row["key"]) == ("gpu", "host-b/3", OTHER_KEY)


def test_ls_sorts_and_filters(location: str) -> None:
    assert keys(location, "--sort", "size", "--limit", "1") == [OTHER_KEY]
    assert keys(location, "--sort", "name", "--reverse") == [KEYS[1], KEYS[0], OTHER_KEY]
    assert keys(location, "--sort", "compile")[0] == OTHER_KEY
    assert keys(location, "--larger-than", "2KB") == [OTHER_KEY]
    assert keys(location, "--jax", "0.10.2") == [KEYS[0], KEYS[1]]
    assert keys(location, "--writer", "host-b") == [OTHER_KEY]
    assert keys(location, "--older-than", "1d") == []
    assert len(keys(location, "--newer-than", "1d")) == 3
    pin(open_store(location), NAMES[1], BY_KEY, PinFacts("me", 1.0))
    assert keys(location, "--pinned") == [KEYS[1]]


def test_ls_hides_replacements_strays_and_leases_but_for_all(location: str) -> None:
    store = open_store(location)
    store.create(f"{NAMES[0]}~1", entry(0))
    store.create("entries/v1/notes.txt", b"hello")
    leases = StoreLeases(store, renew_in_background=False)
    assert leases.claim(KEYS[2])
    assert len(keys(location)) == 3
    found = facts("ls", location, "--all")
    kinds = {row["name"]: row["kind"] for row in found["entries"]}
    assert kinds[f"{NAMES[0]}~1"] == "replacement"
    assert kinds["entries/v1/notes.txt"] == "stray"
    [lease] = found["leases"]
    assert (lease["entry"], lease["epoch"], lease["released"]) == (
        NAMES[2].rpartition("/")[2],
        1,
        False,
    )
    text = cache("ls", location, "--all").stdout
    assert f"replacement {NAMES[0]}~1" in text
    assert f"lease  {NAMES[2].rpartition('/')[2]}  epoch 1, last sign " in text
    leases.release(KEYS[2])
    assert facts("ls", location, "--all")["leases"] == []


def test_ls_prints_a_table(location: str) -> None:
    pin(open_store(location), NAMES[1], BY_KEY, PinFacts("me", 1.0))
    lines = cache("ls", location, "--long").stdout.splitlines()
    assert lines[0].split() == ["MODULE", "KEY", "SIZE", "AGE", "COMPILE", "JAX", "WRITER"]
    assert lines[1].split()[:2] == ["jit_other", "000000000000"]
    assert lines[1].split()[-3:] == ["9.0s", "0.9.0", "host-b/3"]
    assert lines[3].endswith("host-a/17  pinned")
    assert lines[4].startswith(f"{location}: 3 entries, ")


def test_ls_of_a_damaged_head_says_so_and_goes_on(location: str) -> None:
    open_store(location).create(NAMES[2], b"rubbish")
    rows = {row["name"]: row for row in facts("ls", location, "--long")["entries"]}
    assert "too few for a header" in rows[NAMES[2]]["problem"]
    assert rows[NAMES[0]]["compile_s"] == META.compile_s


def test_ls_of_an_empty_entry_in_a_bucket_says_so(bucket: str) -> None:
    open_store(f"{bucket}/cache").create(NAMES[0], b"")
    [row] = facts("ls", f"{bucket}/cache", "--long")["entries"]
    assert row["problem"] == "0 bytes are too few for a header"


def test_ls_costs_two_lists_and_long_a_small_read_an_entry(bucket: str, proxy: GcsProxy) -> None:
    location = f"{bucket}/cache"
    key = "jit_big-" + "1" * 64
    store = open_store(location)
    fill(store, 0, 1)
    store.create(entry_name(key), encode(key, os.urandom(300_000), META))
    proxy.reset()
    facts("ls", location)
    assert [request.object_name for request in proxy.requests()] == ["", ""]
    proxy.reset()
    facts("ls", location, "--long")
    sent = proxy.requests()
    assert len(sent) == 5
    assert max(request.response_bytes for request in sent) == HEAD_BYTES


def test_ls_location_is_what_launch_would_choose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("home/cache", "jax", "job"):
        fill(open_store(str(tmp_path / name)), 0)
    assert facts("ls")["location"] == str(tmp_path / "home" / "cache")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "jax"))
    assert facts("ls")["location"] == str(tmp_path / "jax")
    monkeypatch.setenv("HOTSTART_JOB__CACHE__LOCATION", str(tmp_path / "job"))
    assert facts("ls")["location"] == str(tmp_path / "job")


def test_stats_count_by_module_version_writer_and_what_is_stale(
    location: str, run_dir: str
) -> None:
    store = open_store(location)
    pin(store, NAMES[0], BY_KEY, PinFacts("me", 1.0))
    record_run(run_dir, "lm-1", "/other", [KEYS[1], KEYS[5]], state="running")
    record_run(run_dir, "lm-2", "/other", [KEYS[0]], state="done")
    found = facts("stats", location, "--jax", "0.10.2")
    other = len(encode(OTHER_KEY, b"x" * 5000, OTHER))
    two, one, last = (
        {"entries": 2, "size_bytes": 2 * SIZE},
        {"entries": 1, "size_bytes": SIZE},
        {"entries": 1, "size_bytes": other},
    )
    assert found == {
        "location": location,
        "entries": 3,
        "size_bytes": 2 * SIZE + other,
        "by_module": {"jit_other": last, "jit_step": two},
        "by_age": {"up to 1 day": {"entries": 3, "size_bytes": 2 * SIZE + other}},
        "by_version": {"0.9.0": last, "0.10.2": two},
        "by_platform": {"gpu": last, "cpu": two},
        "by_writer": {"host-b": last, "host-a": two},
        "jax": "0.10.2",
        "stale": last,
        "unreadable": {"entries": 0, "size_bytes": 0},
        "pinned": one,
        "needed_by_live_runs": one,
        "live_runs": {"lm-1": one},
    }
    text = cache("stats", location, "--jax", "0.10.2").stdout
    assert "stale, not of JAX 0.10.2: 1 entries, 5." in text
    assert "by writer\n  host-b: 1 entries" in text


def test_stats_quick_reads_no_entry(bucket: str, proxy: GcsProxy) -> None:
    location = f"{bucket}/cache"
    fill(open_store(location), 0, 1)
    proxy.reset()
    found = facts("stats", location, "--quick")
    assert [request.object_name for request in proxy.requests()] == ["", ""]
    assert found["entries"] == 2
    assert "by_version" not in found


def test_show_by_the_beginning_of_a_key_tells_all(location: str, run_dir: str) -> None:
    store = open_store(location)
    pin(store, NAMES[0], BY_KEY, PinFacts("me@here", 12.0, "the release"))
    record_run(run_dir, "lm-1", "/other", [KEYS[0]], state="done")
    store.create(f"{NAMES[0]}~1", b"bad")
    found = facts("show", KEYS[0][:12], "--location", location)
    first, second = found["objects"]
    assert first.pop("modified_s") > 0
    assert (first.pop("generation"), first.pop("digest")) != ("", "")
    assert first == {
        "name": NAMES[0],
        "size_bytes": SIZE,
        "key": KEYS[0],
        "compile_s": 1.5,
        "jax": "0.10.2",
        "jaxlib": "0.10.2",
        "platform": "cpu",
        "writer": "host-a/17",
        "payload_bytes": 180,
        "problem": None,
        "signature": {"state": "none", "key_id": None, "why": None},
    }
    assert (second["name"], second["problem"]) == (
        f"{NAMES[0]}~1",
        "3 bytes are too few for a header",
    )
    assert found["pins"] == [
        {"source": "key", "who": "me@here", "at_s": 12.0, "why": "the release"}
    ]
    assert found["asked_for_by"] == [{"run": "lm-1", "run_dir": run_dir, "state": "done"}]
    text = cache("show", "a" * 10, "--location", location).stdout
    assert "  compiled   in 1.5 s by jax 0.10.2, jaxlib 0.10.2 on cpu\n" in text
    assert "  pinned     key by me@here, 1970-01-01 00:00:12 UTC: the release\n" in text
    assert f"  asked for  by run lm-1 (done) in {run_dir}\n" in text


def test_show_tells_the_state_of_a_signature(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    location = str(tmp_path / "cache")
    store = open_store(location)
    ours, other = Key(b"\xab" * 32), Key(b"\x02" * 32)
    store.create(NAMES[0], entry(0, Seal(Keyring((ours,)), location)))
    store.create(NAMES[1], entry(1, Seal(Keyring((other,)), location)))
    store.create(NAMES[2], entry(2))

    def states() -> list[str]:
        return [
            facts("show", KEYS[i], "--location", location)["objects"][0]["signature"]["state"]
            for i in range(3)
        ]

    assert states() == ["unchecked", "unchecked", "none"]
    monkeypatch.setenv("HOTSTART_SIGNING_KEYS", "hotstart-key-1-" + "ab" * 32)
    assert states() == ["verifies", "refused", "none"]
    text = cache("show", KEYS[0], "--location", location).stdout
    assert f"signature  verifies, by the key {ours.id}\n" in text


def test_show_of_a_damaged_entry_says_so(location: str) -> None:
    open_store(location).create(NAMES[3], entry(3)[:-1] + b"?")
    [found] = facts("show", KEYS[3], "--location", location)["objects"]
    assert found["problem"] == f"{NAMES[3]}: the bytes differ from their digest"


def test_show_of_what_may_be_several_names_them(location: str) -> None:
    refused = cache("show", "jit_step", "--location", location)
    assert refused.exit_code == 2
    assert refused.stderr == (
        f"hotstart: 'jit_step' may be any of 2 entries: {KEYS[0]}, {KEYS[1]}; give more of it\n"
    )


def test_show_of_a_whole_key_that_is_not_there_names_the_nearest(location: str) -> None:
    refused = cache("show", "jit_step-" + "a" * 63 + "9", "--location", location)
    assert refused.exit_code == 2
    assert f"the nearest are {KEYS[0]}" in refused.stderr


@pytest.mark.parametrize("command", [["ls"], ["stats"], ["verify"], ["gc", "--max-size", "1"]])
def test_command_of_no_directory_says_so(command: list[str]) -> None:
    refused = cache(*command, "/nowhere/at/all")
    assert refused.exit_code == 2
    assert refused.stderr == "hotstart: /nowhere/at/all: there is no such directory\n"
