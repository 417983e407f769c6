"""Commands of `hotstart cache` on hosts and sources that are not as they should be."""

from __future__ import annotations

import getpass
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from hotstart.cache.bundle import BundleReader
from hotstart.cache.store import open_store
from hotstart.launcher.cli import main
from tests.support.recorded_runs import KEYS, NAMES, fill, record_run

pytestmark = pytest.mark.unit

RUN = "lm-20261124-163001-3f2a"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOTSTART_HOME", str(tmp_path / "home"))


def test_pin_by_a_user_without_a_name_pins(tmp_path, monkeypatch) -> None:
    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 4242")

    monkeypatch.setattr(getpass, "getuser", nobody)
    store = open_store(str(tmp_path / "cache"))
    fill(store, 0)
    done = CliRunner().invoke(main, ["cache", "pin", KEYS[0], "--location", store.url, "--json"])
    assert (done.exit_code, json.loads(done.stdout)["pinned"]) == (0, [NAMES[0]])


def test_import_of_a_bundle_that_fails_to_be_read_midway_says_so(tmp_path, monkeypatch) -> None:
    store = open_store(str(tmp_path / "cache"))
    fill(store, 0, 1)
    bundle = str(tmp_path / "all.tar")
    done = CliRunner().invoke(main, ["cache", "export", store.url, bundle])
    assert done.exit_code == 0, done.output

    def broken(reader):
        raise OSError(5, "Input/output error")
        yield

    monkeypatch.setattr(BundleReader, "members", broken)
    done = CliRunner().invoke(main, ["cache", "import", bundle, str(tmp_path / "b"), "--json"])
    assert (done.exit_code, type(done.exception)) == (1, SystemExit)
    assert f"{bundle} can't be read: Input/output error" in done.output


def pin_run(tmp_path: Path) -> Result:
    arguments = ["--run", RUN, "--run-dir", str(tmp_path / "runs")]
    arguments += ["--location", str(tmp_path / "cache"), "--json"]
    return CliRunner().invoke(main, ["cache", "pin", *arguments])


def test_pin_of_a_run_of_which_entries_are_gone_tells_them(tmp_path) -> None:
    store = open_store(str(tmp_path / "cache"))
    fill(store, 0)
    record_run(str(tmp_path / "runs"), RUN, store.url, KEYS[:2], state="done")
    done = pin_run(tmp_path)
    facts = json.loads(done.stdout)
    assert (done.exit_code, facts["pinned"], facts["absent"]) == (1, NAMES[:1], NAMES[1:2])


def test_pin_of_a_run_whose_needs_cannot_all_be_read_pins_nothing(tmp_path) -> None:
    store = open_store(str(tmp_path / "cache"))
    fill(store, 0)
    record = record_run(str(tmp_path / "runs"), RUN, store.url, KEYS[:1], state="done")
    record.create_fact(f"attempts/00002/manifest/{1:08d}-1", {})
    done = pin_run(tmp_path)
    assert (done.exit_code, type(done.exception)) == (2, SystemExit)
    assert "can't all be read" in done.output
    assert list(store.list("pins/")) == []
