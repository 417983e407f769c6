"""One command starts a gang of two and leaves a record, logs and a report, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime

import pytest

from hotstart.launcher.events import EVENTS
from tests.support.launch import Finished, Site, site

pytestmark = pytest.mark.e2e

SCRIPT = """
    import os, sys
    import jax, jax.numpy as jnp
    from hotstart.launcher import context

    print("platform", os.environ["JAX_PLATFORMS"], "ray" in sys.modules)
    total = jax.jit(lambda x: jnp.tanh(x).sum())(jnp.zeros((4, 4)))
    print("process", jax.process_index(), "of", jax.process_count(), "has", float(total))
    print("to standard error", file=sys.stderr)
    context.step(1)
    sys.stdout.write("no newline at the end")
"""
JOB = """
    name: two
    script: train.py
    args: [--rate, 0.5]
    workers: 2
    resources_per_worker: {CPU: 0.5}
    cache: {location: cache}
    env: {COLOR: blue}
"""


@pytest.fixture(scope="module")
def launched() -> Iterator[tuple[Site, Finished]]:
    """One launch with the Ray that it starts itself; several tests look at what came of it."""
    with site() as here:
        here.write("train.py", SCRIPT)
        here.write("job.yaml", JOB)
        finished = here.launch("job.yaml", "--json")
        here.assert_clean()
        yield here, finished


def test_launch_two_workers_exits_zero_and_prints_the_report(
    launched: tuple[Site, Finished],
) -> None:
    here, finished = launched
    assert finished.exit_code == 0, finished.shown
    report = finished.report
    [attempt] = report["attempts"]
    assert (report["schema"], report["state"], report["exit_code"]) == (1, "done", 0)
    assert [report["run"]] == here.run_names()
    assert report["cache"] == {
        "location": str(here.folder / "cache"),
        "source": "job.yaml:6",
        "mode": "read-write",
    }
    assert (attempt["attempt"], attempt["outcome"]) == (1, "done")
    assert attempt["reason"] == "all 2 workers exited with code 0"
    assert attempt["first_worker"] is None
    assert [w["process_index"] for w in attempt["workers"]] == [0, 1]
    assert [w["last_step"] for w in attempt["workers"]] == [1, 1]
    assert [w["warnings"] for w in attempt["workers"]] == [[], []]
    assert [w["cache"]["compiled_before_enable"] for w in attempt["workers"]] == [0, 0]
    assert [w["cache"]["errors"] for w in attempt["workers"]] == [0, 0]


def test_launch_two_workers_tells_machines_what_happens(launched: tuple[Site, Finished]) -> None:
    here, finished = launched
    events = finished.events
    assert [e["event"] for e in events if e["event"] != "steps"] == [
        "run_started",
        "attempt_started",
        "attempt_ready",
        "first_step",
        "attempt_ended",
        "report",
        "run_ended",
    ]
    for event in events:
        assert tuple(event) == ("schema", "event", "at", "run", *EVENTS[event["event"]])
        assert (event["schema"], [event["run"]]) == (1, here.run_names())
    times = [datetime.fromisoformat(event["at"]) for event in events]
    assert times == sorted(times)
    of = {event["event"]: event for event in events}
    assert (of["run_started"]["restart"], of["run_started"]["epoch"]) == (False, 1)
    assert (of["attempt_started"]["process_count"], of["attempt_started"]["host_count"]) == (2, 1)
    assert 0 < of["attempt_ready"]["seconds"] <= of["first_step"]["seconds"]
    ended = of["attempt_ended"]
    assert (ended["outcome"], ended["first_worker"], ended["max_step"]) == ("done", None, 1)
    assert (of["run_ended"]["state"], of["run_ended"]["exit_code"]) == ("done", 0)
    [summed] = of["run_ended"]["attempts"]
    caches = [w["cache"] for w in finished.report["attempts"][0]["workers"]]
    assert summed["compiled"] == sum(cache["compiled"] for cache in caches) > 0
    # Seen from the record it was the same.
    recorded = here.run("status", "latest", "--json", "--follow").events
    assert [e["event"] for e in recorded] == [
        *("run_started", "attempt_started", "first_step", "attempt_ended", "report", "run_ended")
    ]
    assert recorded[-1]["attempts"] == [summed]
    assert recorded[-2]["report"] == finished.report


def test_launch_two_workers_times_every_phase_in_order(launched: tuple[Site, Finished]) -> None:
    [attempt] = launched[1].report["attempts"]
    for worker in attempt["workers"]:
        assert list(worker["phases"]) == [
            "process_start",
            "import_jax",
            "cache_enabled",
            "distributed",
            "user_code",
            "first_compile",
            "first_step",
        ]
        seconds = list(worker["phases"].values())
        assert seconds == sorted(seconds)
        assert seconds[0] > 0
    slowest = max(w["phases"]["first_step"] for w in attempt["workers"])
    assert attempt["seconds_to_first_step"] == slowest


def test_launch_two_workers_compiles_each_program_and_stores_it(
    launched: tuple[Site, Finished],
) -> None:
    here, finished = launched
    [attempt] = finished.report["attempts"]
    for worker in attempt["workers"]:
        counts = worker["cache"]
        assert counts["requests"] == counts["compiled"] + counts["hits"] > 0
        assert counts["compiled"] == 0 or counts["compile_s"] > 0
    assert sum(w["cache"]["written_bytes"] for w in attempt["workers"]) > 0
    assert any((here.folder / "cache").iterdir())


def test_launch_two_workers_prefixes_output_and_keeps_it_by_worker(
    launched: tuple[Site, Finished],
) -> None:
    here, finished = launched
    [run] = here.run_names()
    for index in (0, 1):
        said = [
            line.removeprefix(f"[{index}] ")
            for line in finished.stderr.splitlines()
            if line.startswith(f"[{index}] ")
        ]
        assert said == [
            "platform cpu False",
            f"process {index} of 2 has 0.0",
            "to standard error",
            "no newline at the end",
        ]
        assert here.log(run, 1, index) == "\n".join(said)


def test_launch_two_workers_later_reports_say_the_same(launched: tuple[Site, Finished]) -> None:
    here, finished = launched
    assert here.report("latest") == finished.report
    assert here.report(finished.report["run"]) == finished.report


def test_dry_run_prints_job_environment_and_placement_and_starts_nothing() -> None:
    with site() as here:
        here.write("train.py", SCRIPT)
        here.write("job.yaml", JOB)
        finished = here.launch("job.yaml", "workers=4", "workers_per_host=2", "--dry-run")
        assert finished.exit_code == 0, finished.shown
        assert finished.stderr == ""
        job, _, rest = finished.stdout.partition("# environment of each worker")
        assert "workers: 4\n" in job
        assert f"script: {here.folder}/train.py\n" in job
        assert f"location: {here.folder}/cache\n" in job
        assert rest.splitlines()[1:] == [
            "#   COLOR=blue",
            "#   HOTSTART_ATTEMPT=<attempt, from 1>",
            "#   HOTSTART_CHECKPOINT_DIR=<run_dir>/<run>/checkpoints",
            "#   HOTSTART_PROCESS_COUNT=4",
            "#   HOTSTART_PROCESS_INDEX=<process, from 0>",
            "#   HOTSTART_RUN=<run>",
            "#   JAX_CPU_COLLECTIVES_IMPLEMENTATION=gloo",
            "#   JAX_PLATFORMS=cpu",
            "#   PYTHONUNBUFFERED=1",
            "# taken out of it: HOTSTART_SIGNING_KEYS, JAX_COMPILATION_CACHE_DIR, "
            "JAX_COORDINATOR_ADDRESS, JAX_COORDINATOR_BIND_ADDRESS, JAX_LOCAL_DEVICE_IDS, "
            "JAX_NUM_PROCESSES, JAX_PROCESS_ID",
            "# placement (spread)",
            "#   host 0: process 0, 1; {CPU: 1}",
            "#   host 1: process 2, 3; {CPU: 1}",
        ]
        assert not here.hotstart_home.exists()
        assert not (here.folder / "cache").exists()
        assert here.left_behind() == []


def test_dry_run_as_json_says_where_each_setting_comes_from() -> None:
    with site() as here:
        here.write("train.py", SCRIPT)
        here.write("job.yaml", JOB)
        finished = here.launch("job.yaml", "workers=1", "--dry-run", "--json")
        shown = json.loads(finished.stdout)
        assert shown["job"]["workers"] == 1
        assert shown["origins"]["cache.location"] == "job.yaml:6"
        assert shown["placement"] == [{"host_index": 0, "processes": [0], "bundle": {"CPU": 0.5}}]
        assert here.left_behind() == []
        assert not here.hotstart_home.exists()
