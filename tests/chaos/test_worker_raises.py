"""A worker whose program fails ends at once, though the others know nothing of it."""

from __future__ import annotations

import time

import pytest

from tests.support.launch import site

pytestmark = pytest.mark.chaos

SCRIPT = """
    import atexit, sys, time
    from jax.experimental import multihost_utils
    from hotstart.launcher import context
    import jax

    multihost_utils.sync_global_devices("all here")
    atexit.register(print, "the program's own")
    if context.attempt() == 1:
        if jax.process_index() == 1:
            print("failing", flush=True)
            {failing}
        time.sleep(600)
"""
JOB = """
    script: train.py
    workers: 2
    resources_per_worker: {CPU: 0.5}
    restarts: {failures: 1, backoff_s: 0}
"""


@pytest.mark.parametrize(
    ("failing", "code"), [('raise ValueError("boom")', 1), ("sys.exit(7)", 7), ("1 / 0", 1)]
)
def test_worker_that_fails_while_its_peers_are_busy_is_restarted_at_once(
    failing: str, code: int
) -> None:
    with site() as here:
        here.write("train.py", SCRIPT.format(failing=failing))
        here.write("job.yaml", JOB)
        launched = here.start_launch("job.yaml", "--json")
        launched.wait_for(r"^\[1\] failing")
        failed_at = time.monotonic()
        launched.wait_for("attempt 2 started", timeout_s=20.0)
        took_s = time.monotonic() - failed_at
        finished = launched.wait()
        assert finished.exit_code == 0, finished.shown
        first, second = finished.report["attempts"]
        assert (first["outcome"], second["outcome"]) == ("failed", "done")
        assert first["reason"].endswith(f"exited with code {code}"), first["reason"]
        assert finished.stderr.count("the program's own") == 3
        assert took_s < 8.0
        here.assert_clean(5.0)
