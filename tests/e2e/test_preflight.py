"""Workers that differ are named before user code runs; in strict mode it never does."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version

import pytest

from tests.support.launch import Finished, Site, site

pytestmark = pytest.mark.e2e

SCRIPT = """
    import jax, jax.numpy as jnp
    from hotstart.launcher import context

    print("user code")
    jax.jit(lambda x: jnp.tanh(x).sum())(jnp.zeros((4, 4))).block_until_ready()
    context.step(1)
"""
JOB = """
    name: differs
    script: train.py
    workers: 2
    resources_per_worker: {CPU: 0.5}
    cache: {location: cache}
"""
# Runs in each worker before hotstart does, as a host's own settings would be there.
PLANTED = """
    import os

    if os.environ.get("HOTSTART_PROCESS_INDEX") == "1":
        os.environ["XLA_FLAGS"] = (
            "--xla_cpu_enable_fast_math=true --xla_force_host_platform_device_count=2"
        )
"""
TEXT = "XLA_FLAGS differs: none on process 0, --xla_cpu_enable_fast_math=true on process 1"


@pytest.fixture
def here() -> Iterator[Site]:
    with site() as made:
        made.write("train.py", SCRIPT)
        made.write("job.yaml", JOB)
        made.write("planted/sitecustomize.py", PLANTED)
        yield made
        made.assert_clean(5.0)


def launch(here: Site, *more: str) -> Finished:
    return here.launch("job.yaml", f"env.PYTHONPATH={here.folder}/planted", "--json", *more)


def test_worker_with_another_flag_is_a_warning_and_in_the_report(here: Site) -> None:
    finished = launch(here)

    assert finished.exit_code == 0, finished.shown
    lines = finished.stderr.splitlines()
    warned = [line for line in lines if "warning:" in line]
    assert warned == [
        f"hotstart attempt 1: warning: {text}"
        for text in (TEXT, "local devices differs: 1 on process 0, 2 on process 1")
    ], finished.shown
    [attempt] = finished.report["attempts"]
    found = {difference["name"]: difference for difference in attempt["differences"]}
    host = attempt["workers"][0]["host"]
    assert found["XLA_FLAGS"] == {
        "name": "XLA_FLAGS",
        "text": TEXT,
        "values": [
            {"value": "none", "processes": [0], "hosts": [host]},
            {"value": "--xla_cpu_enable_fast_math=true", "processes": [1], "hosts": [host]},
        ],
    }
    shown = " ".join(here.run("report", "latest").stdout.split())  # it is wrapped
    assert f"warning: {TEXT}" in shown, shown


def test_worker_with_another_flag_in_strict_mode_ends_the_run_before_user_code(
    here: Site,
) -> None:
    finished = launch(here, "cache.strict=true")

    assert finished.exit_code == 4, finished.shown
    assert "user code" not in finished.stderr, finished.shown
    assert len(finished.report["attempts"]) == 1, finished.shown
    [attempt] = finished.report["attempts"]
    assert (attempt["outcome"], attempt["reason"], attempt["first_worker"]) == (
        "cache-required",
        f"strict mode: {TEXT}",
        None,
    )
    assert [difference["text"] for difference in attempt["differences"]] == [TEXT]


def test_equal_workers_in_strict_mode_run_and_another_version_is_said_before_hosts_are_taken(
    here: Site,
) -> None:
    first = here.launch("job.yaml", "cache.strict=true", "--json")
    assert first.exit_code == 0, first.shown
    assert "warning" not in first.stderr, first.shown
    assert "cold" not in first.stderr, first.shown
    assert first.report["attempts"][0]["differences"] == []

    name = "newer/jaxlib-99.0.dist-info"
    here.write(f"{name}/METADATA", "Name: jaxlib\nVersion: 99.0\n")
    second = here.launch("job.yaml", "--json", env={"PYTHONPATH": f"{here.folder}/newer"})
    assert second.exit_code == 0, second.shown
    lines = [line for line in second.stderr.splitlines() if line.startswith("hotstart ")]
    cold = (
        f"hotstart the start will be cold: jaxlib was {version('jaxlib')} when this job last ran "
        "and is 99.0 now"
    )
    assert lines.count(cold) == 1, second.shown
    started = next(i for i, line in enumerate(lines) if line.endswith("attempt 1 started"))
    assert lines.index(cold) < started, second.shown
