"""Two collectors at once, which want all of it, against processes that use the cache."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from hotstart.cache.entry import EntryMeta, encode, entry_name
from hotstart.cache.pins import BY_KEY, PinFacts, pin
from hotstart.cache.store import open_store
from tests.support.collecting import KEYS, payload
from tests.support.recorded_runs import record_run

pytestmark = pytest.mark.emulator

ROOT = Path(__file__).resolve().parents[2]
RUN_S = 3.0 if not os.environ.get("HOTSTART_LONG") else 60.0
PINNED, NEEDED = KEYS[:2], KEYS[2:4]


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
        ["collect", str(tmp_path / "runs")],
        ["collect", str(tmp_path / "runs")],
        ["use", "1"],
        ["use", "2"],
        # A directory's own bound keeps what is pinned; of runs it knows nothing.
        ["watch", *PINNED, *(NEEDED if kind == "gcs" else [])],
    ]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.support.collecting", role, location, str(stop), *more],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for role, *more in roles
    ]
    try:
        time.sleep(RUN_S)  # how long they are at it; they end by themselves
        _wait_for_use(store)
        stop.touch()
        told = [_told(process) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    collected, used, [watched] = told[:2], told[2:4], told[4:]
    assert [one["problems"] for one in collected + used] == [[], [], [], []]
    assert [one["errors"] for one in used] == [0, 0]
    assert watched["missing"] == []
    assert watched["looks"] > 0
    assert all(one["rounds"] > 0 for one in collected)
    assert sum(one["deleted"] for one in collected) > 0
    assert all(one["misses"] > 0 for one in used)


def _wait_for_use(store: Any) -> None:
    """Until the users have begun, however slow the machine is."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if any(stat.modified_s > 0 for stat in store.list("entries/") if _is_used(stat.name)):
            return
        time.sleep(0.05)
    raise AssertionError("nobody has used the cache")


def _is_used(name: str) -> bool:
    return name not in {entry_name(key) for key in PINNED + NEEDED}


def _told(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    told: dict[str, Any] = json.loads(out)
    return told
