"""`hotstart status | logs | stop | restart a.b=c` as somebody on another host uses them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.support.elsewhere import needs_root, run_elsewhere, start_elsewhere
from tests.support.launch import RayNodes, Site

pytestmark = pytest.mark.e2e

# Steps until it is told to stop; with an argument, so many steps.
SCRIPT = """
    import signal, sys, time
    from hotstart.launcher import context

    def save(number, frame):
        print("saved on SIGTERM")
        sys.exit(0)

    signal.signal(signal.SIGTERM, save)
    print("attempt", context.attempt(), "with", sys.argv[1:])
    for number in range(1, int(sys.argv[1]) + 1):
        context.step(number)
        print("line", number)
        time.sleep(0.1)
"""
JOB = """
    script: train.py
    args: [100000]
    workers: 2
    resources_per_worker: {CPU: 0.5}
    cache: {mode: "off"}
"""


@pytest.fixture
def here(nodes: RayNodes) -> Iterator[Site]:
    with nodes.site() as made:
        made.write("train.py", SCRIPT)
        made.write("job.yaml", JOB)
        yield made
        made.assert_clean(5.0)


@needs_root
def test_run_commands_on_another_host_see_follow_stop_and_change_a_run(here: Site) -> None:
    launched = here.start_launch()
    launched.wait_for(r"^\[\d\] line 5$", count=2)
    [run] = here.run_names()
    following = start_elsewhere(here, "logs", run, "-f")

    status = run_elsewhere(here, "status", run, "--json").report
    assert (status["state"], status["exit_code"]) == ("running", None)
    assert status["owner"]["pid"] == launched.pid
    assert (status["owner"]["process_alive"], status["owner"]["beat_moved"]) == (None, True)
    assert status["next"] == [f"hotstart logs {run} -f", f"hotstart stop {run}"]
    attempt = status["attempt"]
    assert (attempt["attempt"], attempt["process_count"]) == (1, 2)
    assert [(w["process_index"], w["phase"]) for w in attempt["workers"]] == [
        (0, "first_step"),
        (1, "first_step"),
    ]

    refused = run_elsewhere(here, "restart", run, "--address", here.address)
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert f"is owned by pid {launched.pid} on " in refused.stderr
    assert refused.stderr.endswith(f"stop that driver first (hotstart stop {run})\n")

    stopped = run_elsewhere(here, "stop", run)
    assert stopped.exit_code == 0, stopped.shown
    assert re.fullmatch(
        rf"{run} has ended: interrupted, stopped by \S+ on elsewhere \(hotstart stop\); "
        rf"restart it with: hotstart restart {run}\n",
        stopped.stdout,
    ), stopped.shown
    assert launched.wait(timeout_s=20).exit_code == 130
    followed = following.wait(timeout_s=20)
    assert followed.exit_code == 0, followed.shown
    lines = followed.stdout.splitlines()
    for index in (0, 1):
        mine = [line for line in lines if line.startswith(f"[{index}] ")]
        assert mine[0] == f"[{index}] attempt 1 with ['100000']"
        assert mine[-1] == f"[{index}] saved on SIGTERM"
        numbers = [int(m[1]) for line in mine if (m := re.search(r"line (\d+)$", line))]
        assert numbers == list(range(1, len(numbers) + 1))

    again = run_elsewhere(here, "stop", run, "--json")
    assert (again.exit_code, again.report["how"]) == (0, "over")

    restarted = run_elsewhere(here, "restart", run, "args=[3]", "--address", here.address)
    assert restarted.exit_code == 0, restarted.shown
    assert "[0] attempt 2 with ['3']\n" in restarted.stdout
    revised = yaml.safe_load((here.runs / run / "job" / "00000002.yaml").read_text())
    assert revised["args"] == ["3"]
    tail = here.run("logs", run, "--worker", "1", "--tail", "2")
    assert (tail.exit_code, tail.stdout) == (0, "line 2\nline 3\n")
    first = here.run("logs", run, "--attempt", "1", "--worker", "0", "--tail", "1")
    assert first.stdout == "saved on SIGTERM\n"
    done = here.run("status", run)
    assert "state: done (exit code 0): all 2 workers exited with code 0\n" in done.stdout
    assert f"next: hotstart report {run}\n" in done.stdout


def refusal(here: Site, *arguments: str) -> str:
    finished = here.run(*arguments)
    assert (finished.exit_code, finished.stdout) == (2, ""), finished.shown
    [line] = finished.stderr.splitlines()
    return line


def test_run_commands_asked_for_what_is_not_there_say_so_in_one_line(
    here: Site, tmp_path: Path
) -> None:
    launched = here.launch("job.yaml", "args=[1]")
    assert launched.exit_code == 0, launched.shown
    [run] = here.run_names()
    where = f"run {run} in {here.runs}"
    assert refusal(here, "logs", run, "--attempt", "7") == (
        f"hotstart: {where} has no logs of attempt 7; there are 1"
    )
    assert refusal(here, "logs", run, "--worker", "7") == (
        f"hotstart: attempt 1 of run {run} has no log of worker 7; its workers are 0 to 1"
    )
    assert refusal(here, "restart", run, "run_dir=/elsewhere") == (
        "hotstart: command line: run_dir: the run is there, and a restart is of the same run; "
        "launch the job anew instead"
    )
    assert refusal(here, "restart", run, "worker=3").startswith(
        "hotstart: command line: unknown key worker; did you mean workers? Valid keys:"
    )
    assert refusal(here, "restart", run, "--wait-cluster", "5") == (
        "hotstart: --wait-cluster is for --watch; without it nothing is waited for"
    )
    assert refusal(here, "status", "nosuch").startswith("hotstart: no run 'nosuch' in ")
    empty = here.run("logs", "latest", "--run-dir", str(tmp_path))
    assert (empty.exit_code, empty.stdout) == (2, "")
    assert not (here.runs / run / "job").exists()
