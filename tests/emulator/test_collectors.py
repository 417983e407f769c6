"""Two collectors at once, which want all of it, against processes that use or keep entries."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hotstart.cache.announcements import COLLECTIONS
from hotstart.cache.entry import EntryMeta, encode, entry_name
from hotstart.cache.pins import BY_KEY, PinFacts, pin
from hotstart.cache.store import open_store
from tests.support.collecting import NEEDED, PINNED, payload
from tests.support.recorded_runs import record_run

pytestmark = pytest.mark.emulator

ROOT = Path(__file__).resolve().parents[2]
TIMES = 20 if os.environ.get("HOTSTART_LONG") else 1


@pytest.mark.parametrize("kind", ["directory", "gcs"])
def test_collectors_at_once_lose_nothing_kept_and_readers_see_misses_alone(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    location = str(tmp_path / "cache")
    if kind == "gcs":
        location = request.getfixturevalue("bucket") + "/cache"
    store = open_store(location)
    for key in PINNED + NEEDED:
        assert store.create(entry_name(key), encode(key, payload(key), EntryMeta()))
    for key in PINNED:
        pin(store, entry_name(key), BY_KEY, PinFacts("me", 1.0))
    record_run(str(tmp_path / "runs"), "lm-1", "/other", NEEDED, state="running")
    stop = tmp_path / "stop"
    roles = [
        ["collect", 6, str(tmp_path / "runs")],
        ["collect", 6, str(tmp_path / "runs")],
        ["use", 40, "1"],
        ["use", 40, "2"],
        ["watch", 20, *PINNED, *NEEDED],
        ["pin", 3],
        ["restart", 3, str(tmp_path / "runs")],
    ]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.support.collecting"]
            + [str(role), str(int(rounds) * TIMES), location, str(stop), *more],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for role, rounds, *more in roles
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "enough\n"
        stop.touch()
        told = [_told(process) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    collected, used, [watched], kept = told[:2], told[2:4], told[4:5], told[5:]
    assert [one["problems"] for one in collected + used] == [[], [], [], []]
    assert [one["errors"] for one in used] == [0, 0]
    assert watched["missing"] == []
    assert [one["problems"] for one in kept] == [[], []]
    assert all(one["kept"] > 0 for one in kept)
    assert list(store.list(COLLECTIONS)) == []
    assert sum(one["deleted"] for one in collected) > 0
    assert all(one["misses"] > 0 for one in used)


def _told(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    told: dict[str, Any] = json.loads(out)
    return told
