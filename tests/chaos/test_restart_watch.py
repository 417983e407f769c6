"""`restart --watch`: the driver is killed, then the whole cluster; the run ends all the same."""

from __future__ import annotations

import os
import signal

import pytest

from tests.support.launch import STEPS, await_true, is_running, site, wait_for_step
from tests.support.ray_at import ray_at

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.skipif(os.environ.get("HOTSTART_LONG") != "1", reason="takes a minute"),
]
JOB = """
    script: train.py
    workers: 2
    resources_per_worker: {CPU: 1}
"""
# Waits at step 2 in the first two attempts, at step 3 in the third.
PATIENT = STEPS.replace("while number == 2 and attempt == 1:", "while number == attempt + 1 < 4:")


def test_restart_watch_waits_for_the_owner_and_takes_over_when_it_is_killed() -> None:
    with site() as here:
        here.write("train.py", STEPS)
        here.write("job.yaml", JOB)
        launched = here.start_launch()
        wait_for_step(launched, 2, workers=2)
        [run] = here.run_names()
        watching = here.start("restart", run, "--watch", "--address", "local", "--json")
        watching.wait_for(f"hotstart watch {run}: another driver looks after the run")
        launched.signal(signal.SIGKILL)
        launched.popen.wait()
        finished = watching.wait(timeout_s=120)
        assert finished.exit_code == 0, finished.shown
        assert f"hotstart watch {run}: the run is done: " in finished.stderr
        _, second = finished.report["attempts"]
        assert [w["last_step"] for w in second["workers"]] == [4, 4]
        assert [w["cache"]["compiled"] for w in second["workers"]] == [0, 0]
        here.assert_clean(5.0)


def test_restart_watch_outlives_its_drivers_and_the_cluster() -> None:
    with ray_at() as cluster, site() as here:
        here.write("train.py", PATIENT)
        here.write("job.yaml", JOB)
        cluster.start()
        launched = here.start("launch", "job.yaml", "--address", cluster.address)
        wait_for_step(launched, 2, workers=2)
        [run] = here.run_names()
        watching = here.start("restart", run, "--watch", "--address", cluster.address)
        watching.wait_for("another driver looks after the run")
        launched.signal(signal.SIGKILL)
        launched.popen.wait()
        pids = wait_for_step(watching, 3, workers=2)

        cluster.kill()
        await_true(lambda: not any(is_running(p.worker) for p in pids.values()), 10.0)
        watching.wait_for("waiting for the cluster: cannot connect to Ray at", timeout_s=120)
        cluster.start()
        finished = watching.wait(timeout_s=120)
        assert finished.exit_code == 0, finished.shown
        report = here.report(run)
        assert (report["state"], len(report["attempts"])) == ("done", 3)
        last = report["attempts"][-1]
        assert [w["last_step"] for w in last["workers"]] == [4, 4]
        assert [w["cache"]["compiled"] for w in last["workers"]] == [0, 0]
        assert "resumed at 3\n" in here.run("logs", run, "--worker", "0").stdout
