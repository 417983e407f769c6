"""`hotstart cache gc`, `pin` and `unpin` as a user runs them, over a directory and a bucket."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from hotstart.cache.announcements import COLLECTIONS
from hotstart.cache.collect import collect, list_stored
from hotstart.cache.janitor import Condemned
from hotstart.cache.pins import BY_KEY, PinFacts, pin, source_of_run
from hotstart.cache.signing import Key, Keyring
from hotstart.cache.store import Store, open_store
from hotstart.launcher.cli import main
from hotstart.launcher.errors import UsageError
from hotstart.launcher.identity import OwnerIdentity
from hotstart.launcher.live_needs import LiveNeeds
from hotstart.launcher.run_needs import needed_by
from tests.support.gcs_proxy import GcsProxy
from tests.support.memory_store import MemoryStore
from tests.support.recorded_runs import (
    KEYS,
    NAMES,
    entry,
    fill,
    manifest,
    record_run,
    save_manifest,
)

pytestmark = pytest.mark.contract

SIZE = len(entry(0))


@pytest.fixture(params=["directory", "gcs"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    where = str(tmp_path / "cache")
    if request.param == "gcs":
        where = request.getfixturevalue("bucket") + "/cache"
    return where


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The run directory that commands look at where none is named."""
    monkeypatch.setenv("HOTSTART_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    return str(tmp_path / "home" / "runs")


def cache(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["cache", *arguments])


def gc(*arguments: str) -> dict[str, Any]:
    done = cache("gc", *arguments, "--json")
    assert (done.exit_code, done.stderr) == (0, "")
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


def left(store: Store) -> list[str]:
    return [stat.name for stat in store.list("entries/")]


def test_gc_of_everything_keeps_pinned_ones_and_those_of_live_runs(
    location: str, run_dir: str
) -> None:
    store = open_store(location)
    fill(store, 0, 1, 2, 3, 4)
    pin(store, NAMES[0], BY_KEY, PinFacts("me", 1.0))
    # Their caches are elsewhere, so that only what they asked for is theirs.
    record_run(run_dir, "ends-not", "/other", [KEYS[1]], state="running")
    record_run(run_dir, "is-lost", "/other", [KEYS[2]], state="lost")
    record_run(run_dir, "on-host-b", "/other", [KEYS[3]], state="elsewhere")
    record_run(run_dir, "is-done", "/other", [KEYS[4]], state="done")
    facts = gc(location, "--max-size", "1")
    assert left(store) == NAMES[:4]
    assert facts["kept"] == {
        NAMES[0]: "pinned",
        NAMES[1]: "needed by run ends-not",
        NAMES[2]: "needed by run is-lost",
        NAMES[3]: "needed by run on-host-b",
    }
    assert facts["live_runs"] == ["ends-not", "is-lost", "on-host-b"]
    [gone] = facts["condemned"]
    assert (gone["name"], gone["fate"], gone["size_bytes"]) == (NAMES[4], "deleted", SIZE)
    assert (facts["deleted"], facts["deleted_bytes"]) == (1, SIZE)


def test_gc_keeps_what_a_live_run_may_have_made_and_no_manifest_names(
    location: str, run_dir: str
) -> None:
    store = open_store(location)
    fill(store, 0)
    record_run(run_dir, "begins", location, state="running")
    facts = gc(location, "--max-size", "1")
    assert facts["kept"] == {NAMES[0]: "may be of run begins, which has not ended"}
    assert left(store) == [NAMES[0]]


def test_gc_keeps_what_the_manifest_of_a_live_runs_job_names(tmp_path: Path, run_dir: str) -> None:
    location = str(tmp_path / "cache")
    store = open_store(location)
    fill(store, 0, 1)
    for name in NAMES[:2]:
        os.utime(tmp_path / "cache" / name, (1000, 1000))  # long before the run
    save_manifest(store, location, [KEYS[0]])
    record_run(run_dir, "begins", location, state="running")
    facts = gc(location, "--max-age", "1d")
    assert facts["kept"] == {NAMES[0]: "needed by run begins"}
    assert left(store) == [NAMES[0]]


class Hooked(MemoryStore):
    """Does something just before its second announcement."""

    def __init__(self, hook: Callable[[], None]) -> None:
        super().__init__()
        self._hook = hook
        self._announced = 0

    def create(self, name: str, data: bytes) -> bool:
        if name.startswith(COLLECTIONS):
            self._announced += 1
            if self._announced == 2:
                self._hook()
        return super().create(name, data)


def collected(store: Store, run_dir: str) -> list[str]:
    """The fates of the first four, one a batch, once it was chosen that all of them go."""
    run_dirs = [run_dir]
    runs = LiveNeeds(run_dirs, Keyring(), store)
    stored = list_stored(store)

    def spare(names: Sequence[str]) -> dict[str, str]:
        return dict.fromkeys(needed_by(runs.now()), "")

    condemned = [Condemned(name, "old") for name in NAMES[:4]]
    return [one.fate for one in collect(store, stored, condemned, spare=spare)]


def test_collect_keeps_what_a_run_needs_that_begins_meanwhile(
    run_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hotstart.cache.collect.BATCH", 1)
    store = Hooked(lambda: record_run(run_dir, "new", "/other", [*KEYS[:2]], state="running"))
    fill(store, 0, 1, 2, 3)
    # The first had gone before the run was there.
    assert collected(store, run_dir) == ["deleted", "needed meanwhile", "deleted", "deleted"]


def test_collect_keeps_what_a_run_needs_that_is_restarted_meanwhile(
    run_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hotstart.cache.collect.BATCH", 1)
    record = record_run(run_dir, "again", "/other", [KEYS[1]], state="done")
    record_run(run_dir, "over", "/other", [KEYS[2]], state="done")
    owner = asdict(OwnerIdentity.of_this_process())
    store = Hooked(lambda: record.create_fact(f"owner/{2:08d}/{0:08d}", owner))
    fill(store, 0, 1, 2, 3)
    assert collected(store, run_dir) == ["deleted", "needed meanwhile", "deleted", "deleted"]


def test_collect_keeps_what_a_live_run_asks_for_meanwhile(
    run_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hotstart.cache.collect.BATCH", 1)
    record = record_run(run_dir, "grows", "/other", state="running")
    store = Hooked(lambda: record.keep_manifest(1, manifest([KEYS[3]])))
    fill(store, 0, 1, 2, 3)
    assert collected(store, run_dir) == ["deleted", "deleted", "deleted", "needed meanwhile"]


def test_collect_stops_where_a_run_begins_whose_needs_are_not_told(
    run_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hotstart.cache.collect.BATCH", 1)

    def begins() -> None:
        record = record_run(run_dir, "odd", "/other", [KEYS[3]], state="running")
        [stat] = record.store.list("odd/attempts/00001/manifest/")
        record.store.delete(stat.name, stat.generation)
        record.store.create(stat.name, b"no manifest")

    store = Hooked(begins)
    fill(store, 0, 1, 2, 3)
    with pytest.raises(UsageError, match="run odd in .* has not ended, and what it needs can't"):
        collected(store, run_dir)
    assert left(store) == NAMES[1:4]
    assert list(store.list(COLLECTIONS)) == []


def test_gc_takes_a_run_as_ended_that_is_named_so(location: str, run_dir: str) -> None:
    store = open_store(location)
    fill(store, 0)
    record_run(run_dir, "is-lost", location, [KEYS[0]], state="lost")
    unknown = cache("gc", location, "--max-size", "1", "--ended", "is-list")
    assert unknown.exit_code == 2
    assert unknown.stderr == "hotstart: --ended: there is no run is-list; the runs are: is-lost\n"
    assert gc(location, "--max-size", "1", "--ended", "is-lost")["deleted"] == 1
    assert left(store) == []


def test_gc_dry_run_tells_all_and_changes_nothing(location: str, run_dir: str) -> None:
    store = open_store(location)
    fill(store, 0, 1)
    pin(store, NAMES[1], BY_KEY, PinFacts("me", 1.0))
    before = [(stat.name, stat.generation) for stat in store.list("")]
    told = cache("gc", location, "--max-size", "1", "--dry-run")
    assert told.exit_code == 0
    lines = told.stdout.splitlines()
    assert lines[0].startswith(f"  {NAMES[0]}: {SIZE} B, all are {2 * SIZE} bytes; used last 0.0 ")
    assert lines[1:] == [
        f"{location}: 1 of 2 entries would be deleted, {SIZE} B of {2 * SIZE} B; 1 stay, 1 of "
        "them kept by pins or live runs",
        "what stays is more than 1 B: it is kept",
        "ages are by this host's clock; without --dry-run they are by the store's",
    ]
    assert [(stat.name, stat.generation) for stat in store.list("")] == before


def test_gc_of_a_directory_goes_by_last_use(tmp_path: Path, run_dir: str) -> None:
    location = str(tmp_path / "cache")
    store = open_store(location)
    fill(store, 0, 1)
    made_s = (tmp_path / "cache" / NAMES[0]).stat().st_mtime
    day_s = 86400
    os.utime(tmp_path / "cache" / NAMES[0], (made_s - 1 * day_s, made_s - 30 * day_s))
    os.utime(tmp_path / "cache" / NAMES[1], (made_s - 12 * day_s, made_s - 20 * day_s))
    facts = gc(location, "--unused-for", "10d")
    assert [one["why"] for one in facts["condemned"]] == ["not used for 12.0 days"]
    assert left(store) == [NAMES[0]]


def test_gc_of_a_bucket_goes_by_what_asked_for_an_entry_last(bucket: str, run_dir: str) -> None:
    location = f"{bucket}/cache"
    store = open_store(location)
    fill(store, 0, 1, 2)
    last_s = max(stat.modified_s for stat in store.list("entries/"))
    # A manifest of the cache, and the record of a run that is done: both younger than 1 and 2.
    while True:
        save_manifest(store, location, [KEYS[0]])
        [saved] = list(store.list("manifests/"))
        if saved.modified_s > last_s:
            break
        store.delete(saved.name, saved.generation)
    record_run(run_dir, "is-done", "/other", [KEYS[1]], state="done")
    facts = gc(location, "--max-size", str(2 * SIZE))
    assert [one["name"] for one in facts["condemned"]] == [NAMES[2]]


def test_gc_of_a_bucket_costs_a_request_an_object_and_few_more(
    bucket: str, proxy: GcsProxy, run_dir: str
) -> None:
    location = f"{bucket}/cache"
    fill(open_store(location), 0, 1, 2)
    proxy.reset()
    gc(location, "--max-age", "0s")
    sent = [request.method for request in proxy.requests()]
    # Entries and pins; the store's clock, and the announcement: small objects that are made, looked
    # up and deleted; pins again; three listings of what is no entry.
    assert sorted(sent) == ["DELETE"] * (2 + 3) + ["GET"] * (2 + 1 + 1 + 1 + 3) + ["POST"] * 2


def test_gc_sweeps_what_is_no_entry_and_a_dry_run_shows_it(tmp_path: Path, run_dir: str) -> None:
    location = str(tmp_path / "cache")
    store = open_store(location)
    fill(store, 0)
    names = ["autotune/v1/kind/results", f"{COLLECTIONS}left", "leases/v1/alone"]
    for name in names:
        store.create(name, b"12345")
        os.utime(tmp_path / "cache" / name, (1000, 1000))
    days = round((time.time() - 1000) / 86400, 1)
    told = cache("gc", location, "--max-age", "5d", "--dry-run")
    assert told.stdout.splitlines()[:2] == [
        f"  {names[0]}: 5 B, {days} days old",
        f"  {names[1]}: 5 B, a collector left it {days} days ago",
    ]
    assert "2 of 2 other objects would be deleted, 10 B" in told.stdout
    facts = gc(location, "--max-age", "5d")
    assert [(one["name"], one["fate"]) for one in facts["swept"]] == [
        (names[0], "deleted"),
        (names[1], "deleted"),
    ]
    assert [stat.name for stat in store.list("")] == [NAMES[0], names[2]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "gc: nothing to go by; give --max-size, --max-age or --unused-for"),
        (["--max-size", "5 apples"], "--max-size: '5 apples' is no size; give one like 50GiB, "),
        (["--max-age", "10"], "--max-age: '10' is no duration; give a number and s, m, h, d or w"),
        (["--unused-for", "-3d"], "--unused-for: '-3d' is no duration; give a number and s, m, h"),
        (["--max-age", "1d", "--run-dir", "s3://x"], "s3://x: unknown scheme s3://; give a "),
    ],
)
def test_gc_bad_usage_is_told_in_one_line_and_deletes_nothing(
    tmp_path: Path, run_dir: str, arguments: list[str], message: str
) -> None:
    store = open_store(str(tmp_path / "cache"))
    fill(store, 0)
    refused = cache("gc", str(tmp_path / "cache"), *arguments)
    assert refused.exit_code == 2
    assert refused.stderr.startswith(f"hotstart: {message}")
    assert refused.stderr.count("\n") == 1
    assert left(store) == [NAMES[0]]


def test_gc_refuses_where_a_live_runs_needs_are_signed_with_another_key(
    tmp_path: Path, run_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(str(tmp_path / "cache"))
    fill(store, 0)
    record_run(
        run_dir, "other", "/x", [KEYS[0]], state="running", keyring=Keyring((Key(b"\x02" * 32),))
    )
    monkeypatch.setenv("HOTSTART_SIGNING_KEYS", "hotstart-key-1-" + "ab" * 32)
    refused = cache("gc", str(tmp_path / "cache"), "--max-size", "1")
    assert refused.exit_code == 2
    assert (
        "run other in " in refused.stderr and "give --ended other if it is over" in refused.stderr
    )
    assert left(store) == [NAMES[0]]


def test_pin_by_the_beginning_of_a_key_keeps_it_until_unpin(location: str, run_dir: str) -> None:
    store = open_store(location)
    fill(store, 0, 1)
    at = ["--location", location]
    pinned = cache("pin", KEYS[0][:14], "--why", "the release", *at)
    assert (pinned.exit_code, pinned.stdout) == (0, f"{location}: 1 pinned, 0 of them before\n")
    assert cache("pin", KEYS[0], *at).stdout == f"{location}: 1 pinned, 1 of them before\n"
    gc(location, "--max-size", "1")
    assert left(store) == [NAMES[0]]
    assert cache("unpin", "a" * 64, *at).stdout == f"{location}: 1 unpinned\n"
    assert cache("unpin", KEYS[0], *at).stdout == f"{location}: 0 unpinned\n"
    gc(location, "--max-size", "1")
    assert left(store) == []


def test_unpin_of_an_entry_that_is_gone_takes_its_pin(location: str, run_dir: str) -> None:
    store = open_store(location)
    for index in (0, 1):
        pin(store, NAMES[index], BY_KEY, PinFacts("me", 1.0))
    at = ["--location", location]
    unclear = cache("unpin", "jit_step", *at)
    assert unclear.exit_code == 2
    assert unclear.stderr == (
        f"hotstart: 'jit_step' may be any of 2 pins by key: {KEYS[0]}, {KEYS[1]}; give more\n"
    )
    assert cache("unpin", KEYS[0][:12], *at).stdout == f"{location}: 1 unpinned\n"
    assert cache("unpin", NAMES[1], *at).stdout == f"{location}: 1 unpinned\n"
    assert list(store.list("pins/")) == []


def test_unpin_of_what_is_neither_there_nor_pinned_names_what_is_pinned(
    tmp_path: Path, run_dir: str
) -> None:
    location = str(tmp_path / "cache")
    pin(open_store(location), NAMES[0], BY_KEY, PinFacts("me", 1.0))
    refused = cache("unpin", "jit_stop", "--location", location)
    assert refused.exit_code == 2
    assert refused.stderr == (
        f"hotstart: no entry 'jit_stop': {location} has none at all; pinned by key are: {KEYS[0]}\n"
    )


def test_unpin_of_a_run_that_is_gone_takes_its_pins_and_else_says_whose_there_are(
    location: str, run_dir: str
) -> None:
    store = open_store(location)
    pin(store, NAMES[0], source_of_run("lm-1"), PinFacts("me", 1.0))
    at = ["--location", location]
    other = cache("unpin", "--run", "lm-2", *at)
    assert (other.exit_code, other.stdout) == (
        0,
        f"{location}: 0 unpinned of run lm-2\npins here are of: lm-1\n",
    )
    latest = cache("unpin", "--run", "latest", *at)
    assert latest.exit_code == 2
    assert latest.stderr.startswith("hotstart: no runs in ")
    assert latest.stderr.endswith(f"; pins in {location} are of: lm-1\n")
    record_run(run_dir, "lm-1", "/other", [KEYS[0]], state="done")  # its entry is gone
    assert cache("unpin", "--run", "latest", *at).stdout == (
        f"{location}: 1 unpinned of run lm-1\n"
    )
    assert list(store.list("pins/")) == []


def test_pin_of_a_run_and_of_a_key_are_two(location: str, run_dir: str) -> None:
    store = open_store(location)
    fill(store, 0, 1, 2)
    record_run(run_dir, "lm-1", "/other", [KEYS[0], KEYS[1], KEYS[5]], state="done")
    at = ["--location", location]
    done = cache("pin", "--run", "latest", *at, "--json")
    assert json.loads(done.stdout) == {
        "location": location,
        "run": "lm-1",
        "pinned": NAMES[:2],
        "new": 2,
        "gone": [],
        "unsure": {},
        "absent": [NAMES[5]],
    }
    assert done.exit_code == 1
    cache("pin", KEYS[0], *at)
    unpinned = cache("unpin", "--run", "lm-1", *at)
    assert unpinned.stdout == f"{location}: 2 unpinned of run lm-1\n"
    gc(location, "--max-size", "1")
    assert left(store) == [NAMES[0]]


def test_pin_says_what_a_collector_was_about_to_delete_and_left_in_part(
    location: str, run_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hotstart.cache.announcements.WAIT_S", 0.0)
    store = open_store(location)
    store.create(NAMES[0], b"bad, and its replacement has been deleted")
    fill(store, 1)
    said = {"who": "her@there", "names": NAMES[:2]}
    store.create(f"{COLLECTIONS}dead", json.dumps(said).encode())
    pinned = cache("pin", KEYS[0], KEYS[1], "--location", location)
    assert pinned.exit_code == 1
    assert pinned.stdout == (
        f"{location}: 1 pinned, 0 of them before\n  {NAMES[0]}: gone meanwhile, and not pinned\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "pin: give either keys or --run RUN"),
        (["jit_step", "--run", "x"], "pin: give either keys or --run RUN"),
        (["jit_step"], "'jit_step' may be any of 2 entries: "),
        (["jit_stop"], "no entry 'jit_stop' in "),
        (["--run", "nobody"], "no run 'nobody' in "),
    ],
)
def test_pin_bad_usage_is_told_in_one_line(
    tmp_path: Path, run_dir: str, arguments: list[str], message: str
) -> None:
    fill(open_store(str(tmp_path / "cache")), 0, 1)
    refused = cache("pin", *arguments, "--location", str(tmp_path / "cache"))
    assert refused.exit_code == 2
    assert refused.stderr.startswith(f"hotstart: {message}")
    assert refused.stderr.count("\n") == 1


def test_pin_of_an_unknown_key_names_the_nearest(tmp_path: Path, run_dir: str) -> None:
    fill(open_store(str(tmp_path / "cache")), 0)
    refused = cache("pin", "jit_stop", "--location", str(tmp_path / "cache"))
    assert f"the nearest are {KEYS[0]}; see `hotstart cache ls" in refused.stderr


def test_pin_of_a_run_of_another_cache_says_so(tmp_path: Path, run_dir: str) -> None:
    fill(open_store(str(tmp_path / "cache")), 0)
    record_run(run_dir, "lm-1", "/other", [KEYS[4]], state="done")
    refused = cache("pin", "--run", "lm-1", "--location", str(tmp_path / "cache"))
    assert refused.exit_code == 2
    assert "asked for 1 programs, of which none is in" in refused.stderr


def test_collect_keeps_what_a_restart_with_other_settings_asks_for_meanwhile(
    run_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had ended, and asked for something else until then."""
    monkeypatch.setattr("hotstart.cache.collect.BATCH", 1)
    record = record_run(run_dir, "again", "/other", [KEYS[5]], state="done")
    owner = asdict(OwnerIdentity.of_this_process())

    def restart() -> None:
        record.create_fact(f"owner/{2:08d}/{0:08d}", owner)
        record.start_attempt(2, {})
        record.keep_manifest(2, manifest([KEYS[1]]))

    store = Hooked(restart)
    fill(store, 0, 1, 2, 3)
    assert collected(store, run_dir) == ["deleted", "needed meanwhile", "deleted", "deleted"]
