"""A launch and a restart on a bucket whose lifecycle rules cut the run short."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hotstart.cache.lifecycle import Layout, entries_rule
from tests.support.gcs_emulator import GcsEmulator, create_bucket
from tests.support.gcs_json_api import GcsJsonApi, gcs_json_api
from tests.support.launch import Site, await_true, site

pytestmark = pytest.mark.e2e

JOB = """
    script: train.py
    workers: 1
    restarts: {failures: 0}
    cache: {location: gs://lifetime/cache}
"""
TRAIN = """
    import pathlib, time
    from hotstart.launcher import context
    # The rules are looked at beside the start.
    until = time.monotonic() + 60
    while not pathlib.Path(f"seen-{context.attempt()}").exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert context.attempt() == 2, "the first attempt fails"
"""
DAY_S = 86_400


@pytest.fixture
def user() -> Iterator[Site]:
    with site() as made:
        yield made


@pytest.fixture
def api(emulator: GcsEmulator) -> Iterator[GcsJsonApi]:
    """A bucket whose rules are kept by a stand-in, and its objects by the emulator."""
    with gcs_json_api(emulator.url) as running:
        create_bucket(emulator.url, "lifetime")
        running.add("lifetime")
        yield running


def grow_older(runs: Path, run: str, days: float) -> None:
    fact = runs / run / "created"
    created = json.loads(fact.read_text())
    created["created_s"] = time.time() - days * DAY_S
    fact.write_text(json.dumps(created))


def test_rule_shorter_than_the_run_is_one_line_at_its_restart_and_none_at_its_launch(
    user: Site, api: GcsJsonApi
) -> None:
    env = {"STORAGE_EMULATOR_HOST": api.url}
    api.buckets["lifetime"]["lifecycle"] = {"rule": [entries_rule(Layout.of_cache("cache"), 10)]}
    user.write("job.yaml", JOB)
    user.write("train.py", TRAIN)

    launching = user.start_launch(env=env)
    await_true(lambda: api.requests != [], 60, launching.output)
    user.write("seen-1", "")
    launched = launching.wait()
    assert launched.exit_code == 1, launched.shown
    assert "lifecycle" not in launched.stdout
    assert api.requests == [("GET", "b/lifetime")]

    (run,) = user.run_names()
    grow_older(user.runs, run, 12.5)
    restarting = user.start("restart", run, "--address", "local", env=env)
    restarting.wait_for("lifecycle")
    user.write("seen-2", "")
    restarted = restarting.wait()
    assert restarted.exit_code == 0, restarted.shown
    assert [line for line in restarted.stdout.splitlines() if "lifecycle" in line] == [
        "hotstart warning: a lifecycle rule of gs://lifetime deletes entries after 10 days, and "
        "the run is 12 days old: what is gone is compiled again; see hotstart bucket check "
        "gs://lifetime/cache --run-length 14d"
    ]
