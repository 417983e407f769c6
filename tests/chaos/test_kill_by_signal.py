"""Ctrl-C and SIGTERM: everything is gone within 5 s, and the run is interrupted."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest

from tests.support.launch import STEPS, Launched, Site, is_running, site, wait_for_step

pytestmark = pytest.mark.chaos

JOB = """
    script: train.py
    workers: 2
    resources_per_worker: {CPU: 1}
"""
GONE_S = 5.0


@pytest.fixture
def here() -> Iterator[Site]:
    with site() as made:
        made.write("train.py", STEPS)
        made.write("job.yaml", JOB)
        yield made


def interrupt(here: Site, launched: Launched, number: signal.Signals, *, group: bool) -> None:
    """Send the signal; the driver must exit with 130 and everything must be gone in time."""
    started = time.monotonic()
    launched.signal(number, group=group)
    finished = launched.wait(timeout_s=20)
    assert finished.exit_code == 130, finished.shown
    here.assert_clean(within_s=max(0.2, GONE_S - (time.monotonic() - started)))
    assert time.monotonic() - started < GONE_S, finished.shown
    print(f"gone {time.monotonic() - started:.2f} s after {number.name}")


def assert_interrupted(here: Site, attempts: list[str]) -> None:
    report = here.report()
    assert (report["state"], report["exit_code"]) == ("interrupted", 130)
    assert [a["outcome"] for a in report["attempts"]] == attempts


@pytest.mark.parametrize(
    ("number", "group", "script_args"),
    [
        (signal.SIGINT, True, "[]"),
        (signal.SIGINT, False, "[deaf]"),
        (signal.SIGTERM, False, "[deaf]"),
    ],
    ids=["ctrl-c", "sigint-deaf", "sigterm-deaf"],
)
def test_kill_by_signal_everything_is_gone_in_time(
    here: Site, number: signal.Signals, group: bool, script_args: str
) -> None:
    launched = here.start_launch("job.yaml", f"args={script_args}")
    pids = wait_for_step(launched, 2, workers=2)
    interrupt(here, launched, number, group=group)
    everyone = [pid for p in pids.values() for pid in (p.worker, p.agent, p.child)]
    assert [pid for pid in everyone if is_running(pid)] == []
    assert_interrupted(here, ["interrupted"])


def test_kill_by_signal_while_ray_starts_is_obeyed_in_time(here: Site) -> None:
    launched = here.start_launch()
    launched.wait_for("^hotstart run ")
    interrupt(here, launched, signal.SIGINT, group=True)
    assert_interrupted(here, [])


def test_kill_by_signal_handler_of_the_script_may_end_it(here: Site) -> None:
    here.write(
        "train.py",
        """
        import signal, sys, time

        def save(number, frame):
            print("saving")
            time.sleep(0.5)
            print("saved")
            sys.exit(0)

        signal.signal(signal.SIGTERM, save)
        print("step 2")
        while True:
            time.sleep(0.05)
        """,
    )
    launched = here.start_launch("job.yaml", "workers=1")
    launched.wait_for(r"^\[0\] step 2$")
    interrupt(here, launched, signal.SIGTERM, group=False)
    [run] = here.run_names()
    assert here.log(run, 1, 0) == "step 2\nsaving\nsaved\n"
    assert_interrupted(here, ["interrupted"])
