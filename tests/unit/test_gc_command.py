"""`gc` where the store fails in the middle of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from hotstart.cache import collect
from hotstart.cache.errors import TransientError
from hotstart.cache.store import open_store
from hotstart.launcher.cli import main
from tests.support.recorded_runs import NAMES, fill

pytestmark = pytest.mark.unit


def test_gc_that_loses_the_store_midway_tells_what_it_has_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOTSTART_HOME", str(tmp_path / "home"))
    store = open_store(str(tmp_path / "cache"))
    fill(store, 0, 1)
    listings = iter(range(1))
    list_pins = collect.list_pins

    def once(store):
        if next(listings, None) is None:
            raise TransientError("503")
        return list_pins(store)

    monkeypatch.setattr(collect, "list_pins", once)
    monkeypatch.setattr(collect, "BATCH", 1)
    done = CliRunner().invoke(main, ["cache", "gc", store.url, "--max-size", "0", "--json"])

    facts = json.loads(done.stdout)
    assert (done.exit_code, facts["deleted"]) == (1, 1)
    fates = {one["name"]: one["fate"] for one in facts["condemned"]}
    assert fates == {NAMES[0]: "deleted", NAMES[1]: "not deleted: 503"}
    assert [stat.name for stat in store.list("entries/")] == NAMES[1:2]
