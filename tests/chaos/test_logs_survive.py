"""Workers' output is in the bucket also where driver, agents and workers got kill -9."""

from __future__ import annotations

import os
import re
import signal

import pytest

from hotstart.launcher.log_shipping import SHIP_S
from tests.support.hosts import Hosts
from tests.support.launch import Finished, Site, await_true, pids_in

pytestmark = pytest.mark.chaos

SCRIPT = """
    import os, time
    from hotstart.launcher import context

    print("pids", os.getpid(), os.getppid(), 0, flush=True)
    for number in range(1, 100000 if context.attempt() == 1 else 4):
        print("line", number, flush=True)
        context.step(number)
        time.sleep(0.1)
    print("no end of line", end="")
"""
JOB = """
    script: train.py
    workers: 2
    workers_per_host: 1
    resources_per_worker: {CPU: 0.5}
    cache: {mode: "off"}
"""
LATE_S = 10.0  # of a slow machine


def logs(here: Site, runs: str, hosts: Hosts, *more: str) -> Finished:
    finished = here.run("logs", "latest", "--run-dir", runs, *more, env=hosts.environ)
    assert finished.exit_code in (0, 2), finished.shown
    return finished


def last_lines(printed: str) -> dict[str, int]:
    found = re.findall(r"^\[(\d)\] line (\d+)$", printed, re.MULTILINE)
    return {index: int(number) for index, number in found}


def test_logs_of_a_gang_killed_with_its_driver_lack_no_more_than_some_seconds(
    two: Hosts, bucket: str
) -> None:
    two.empty()
    with two.site() as here:
        here.write("train.py", SCRIPT)
        here.write("job.yaml", JOB)
        runs = f"{bucket}/runs"
        launched = here.start_launch("job.yaml", f"run_dir={runs}", env=two.environ)
        launched.wait_for(r"^\[\d\] line 20$", count=2)
        pids = pids_in(launched.output())
        await_true(  # while the job runs
            lambda: sorted(last_lines(logs(here, runs, two).stdout)) == ["0", "1"], 60.0
        )
        launched.signal(signal.SIGKILL)
        for each in pids.values():
            os.kill(each.agent, signal.SIGKILL)
        launched.popen.wait()
        here.assert_clean(within_s=10.0)
        printed = last_lines(launched.output())
        kept = last_lines(logs(here, runs, two).stdout)
        assert sorted(kept) == ["0", "1"]
        for index, number in kept.items():
            assert number >= printed[index] - 10 * (SHIP_S + LATE_S)

        finished = here.run(
            "restart", "latest", "--address", two.address, "--run-dir", runs, env=two.environ
        )
        assert finished.exit_code == 0, finished.shown
        await_true(
            lambda: logs(here, runs, two, "--worker", "1").stdout.endswith(
                "line 3\nno end of line\n"
            ),
            10.0,
        )
        first = logs(here, runs, two, "--attempt", "1", "--worker", "0", "--tail", "1").stdout
        assert first == f"line {kept['0']}\n"
        here.assert_clean(within_s=5.0)
