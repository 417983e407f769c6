"""`hotstart restart`: which runs it takes, what it says of the others."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.launch import Finished, RayNodes, Site

pytestmark = pytest.mark.e2e

# Ends at once with the code in a file, if there is one; else waits to be interrupted.
SCRIPT = """
    import pathlib, sys, time
    from hotstart.launcher import context

    context.step(context.attempt())
    print("attempt", context.attempt(), "in", pathlib.Path.cwd())
    code = pathlib.Path("code")
    while not code.exists():
        time.sleep(0.05)
    sys.exit(int(code.read_text()))
"""
JOB = """
    script: train.py
    restarts: {failures: 0}
    cache: {mode: "off"}
"""


@pytest.fixture
def here(nodes: RayNodes) -> Iterator[Site]:
    with nodes.site() as made:
        made.write("train.py", SCRIPT)
        made.write("job.yaml", JOB)
        yield made
        made.assert_clean()


def restart(here: Site, run: str, *more: str, folder: Path | None = None) -> Finished:
    return here.run("restart", run, "--address", here.address, *more, folder=folder)


def refusal(finished: Finished) -> str:
    """The one line of a command that started nothing."""
    assert (finished.exit_code, finished.stdout) == (2, ""), finished.shown
    [line] = finished.stderr.splitlines()
    return line


def test_restart_of_a_failed_run_goes_on_in_its_folder(here: Site, tmp_path: Path) -> None:
    here.write("code", "9")
    failed = here.launch()
    assert failed.exit_code == 1, failed.shown
    [run] = here.run_names()
    assert failed.stdout.endswith(f"hotstart restart it with: hotstart restart {run}\n")
    here.write("code", "0")
    finished = restart(here, "latest", folder=tmp_path)
    assert finished.exit_code == 0, finished.shown
    assert f"[0] attempt 2 in {here.folder}\n" in finished.stdout
    report = here.report(run)
    assert report["state"] == "done"
    assert [a["outcome"] for a in report["attempts"]] == ["failed", "done"]


def test_restart_of_a_done_run_is_refused(here: Site) -> None:
    here.write("code", "0")
    assert here.launch().exit_code == 0
    [run] = here.run_names()
    assert refusal(restart(here, run)) == (
        f"hotstart: run {run} is done; launch the job anew instead"
    )


def test_restart_of_an_unknown_run_names_the_nearest(here: Site) -> None:
    here.write("code", "0")
    assert here.launch().exit_code == 0
    [run] = here.run_names()
    misspelt = run.replace("job", "jbo", 1)
    assert refusal(restart(here, misspelt)) == (
        f"hotstart: no run '{misspelt}' in {here.runs}; the nearest are {run}; see `hotstart "
        "runs`, or name another run directory"
    )


def test_restart_where_no_runs_are_says_where_it_looked(here: Site) -> None:
    assert refusal(restart(here, "latest")) == (
        f"hotstart: no runs in {here.runs}; launch one with `hotstart launch JOB.yaml`, or name "
        "another run directory"
    )


def test_restart_of_a_run_that_is_looked_after_is_refused(here: Site) -> None:
    launched = here.start_launch()
    launched.wait_for(r"^\[0\] attempt 1")
    [run] = here.run_names()
    line = refusal(restart(here, run))
    assert re.fullmatch(
        rf"hotstart: run {run} in {here.runs} is owned by pid {launched.pid} on \S+ "
        r"\(user \S+\) since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC by the store's clock; stop that "
        rf"driver first \(hotstart stop {run}\)",
        line,
    ), line
    launched.signal(signal.SIGINT)
    assert launched.wait(timeout_s=10).exit_code == 130
    here.write("code", "0")
    finished = restart(here, run)
    assert finished.exit_code == 0, finished.shown
    assert [a["outcome"] for a in here.report(run)["attempts"]] == ["interrupted", "done"]
