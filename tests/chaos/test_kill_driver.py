"""The driver gets kill -9: nothing of the run is left, and `restart` goes on from elsewhere."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.support.launch import STEPS, Site, is_running, ray_nodes, site, wait_for_step

pytestmark = pytest.mark.chaos

JOB = """
    script: train.py
    workers: 2
    resources_per_worker: {CPU: 1}
"""


def lose_driver(here: Site) -> str:
    """Launch, kill the driver at step 2, and see that all of it goes; the run's name."""
    here.write("train.py", STEPS)
    here.write("job.yaml", JOB)
    launched = here.start_launch()
    pids = wait_for_step(launched, 2, workers=2)
    launched.signal(signal.SIGKILL)
    launched.popen.wait()
    here.assert_clean(within_s=5.0)
    everyone = [pid for p in pids.values() for pid in (p.worker, p.child)]
    assert [pid for pid in everyone if is_running(pid)] == []
    [run] = here.run_names()
    return run


def states(here: Site) -> list[list[str]]:
    """Name, state and attempts as `hotstart runs` shows them."""
    finished = here.run("runs")
    assert finished.exit_code == 0, finished.shown
    return [line.split()[:3] for line in finished.stdout.splitlines()[1:]]


def test_kill_driver_with_its_own_ray_leaves_nothing_and_restarts_warm(tmp_path: Path) -> None:
    with site() as here:
        run = lose_driver(here)
        assert states(here) == [[run, "lost", "1"]]
        finished = here.run("restart", run, "--address", "local", "--json", folder=tmp_path)
        here.assert_clean()
        assert finished.exit_code == 0, finished.shown
        assert states(here) == [[run, "done", "2"]]
        first, second = finished.report["attempts"]
        assert (first["outcome"], second["outcome"]) == (None, "done")
        assert second["attempt"] == 2
        assert [w["last_step"] for w in second["workers"]] == [4, 4]
        assert [w["cache"]["compiled"] for w in second["workers"]] == [0, 0]
        assert "resumed at 2\n" in here.log(run, 2, 0)


def test_kill_driver_on_a_running_cluster_leaves_nothing() -> None:
    with ray_nodes(1, cpus=2) as nodes, nodes.site() as here:
        run = lose_driver(here)
        assert states(here) == [[run, "lost", "1"]]
