"""A launch whose output is not read, or whose reader goes, is a launch like any other."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.launch import HOTSTART, Site, await_true, is_running, site

pytestmark = pytest.mark.e2e

JOB = """
    script: train.py
    workers: 1
    resources_per_worker: {CPU: 0.5}
    cache: {mode: "off"}
"""
PRINTS = """
    import pathlib
    print("first", flush=True)
    number = 0
    while LOOP:
        print("line", number, "x" * 200)
        number += 1
        if number == 100_000:
            pathlib.Path("far").touch()
"""
DETACHED = """
    import os, subprocess, sys, time
    code = "import time; time.sleep(600)"
    child = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    print("child", child.pid, os.getppid())
    while "stay" in sys.argv:
        time.sleep(0.05)
"""


@pytest.fixture
def here() -> Iterator[Site]:
    with site() as made:
        made.write("job.yaml", JOB)
        yield made


def launch(here: Site) -> subprocess.Popen[bytes]:
    """The command with its standard output in a pipe that nobody reads yet."""
    return subprocess.Popen(
        [str(HOTSTART), "launch", "job.yaml", "--address", "local"],
        env=here.environment(),
        cwd=here.folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def resident_bytes(here: Site) -> int:
    """The largest resident set of any process of the run."""
    sizes = [0]
    for pid, _ in here._processes():
        try:
            pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        except OSError:
            continue
        sizes.append(pages * os.sysconf("SC_PAGE_SIZE"))
    return max(sizes)


def test_launch_output_that_nobody_reads_costs_no_memory_and_ctrl_c_ends_it(here: Site) -> None:
    here.write("train.py", PRINTS.replace("LOOP", "True"))
    process = launch(here)
    assert process.stdout is not None
    try:
        await_true((here.folder / "far").exists, 60)
        assert resident_bytes(here) < 400 << 20
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    finally:
        process.kill()
        process.communicate()
    here.assert_clean(within_s=5.0)


def test_launch_output_whose_reader_has_gone_does_not_change_the_exit_code(here: Site) -> None:
    here.write("train.py", PRINTS.replace("LOOP", "number < 20_000"))
    process = launch(here)
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        process.stdout.readline()
        process.stdout.close()
        code = process.wait(60)
        assert (code, process.stderr.read().decode()) == (0, "")
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
    here.assert_clean(within_s=5.0)
    [run] = here.run_names()
    assert here.log(run, 1, 0).count("line ") == 20_000


def test_launch_child_in_a_session_of_its_own_ends_with_its_worker(here: Site) -> None:
    here.write("train.py", DETACHED)
    finished = here.launch()
    assert finished.exit_code == 0, finished.shown
    [child] = re.findall(r"child (\d+)", finished.stdout)
    assert not is_running(int(child))
    here.assert_clean()


def test_launch_child_in_a_session_of_its_own_ends_with_a_killed_agent(here: Site) -> None:
    here.write("train.py", DETACHED)
    here.write("job.yaml", JOB + "    args: [stay]\n    restarts: {failures: 0, preemptions: 0}\n")
    launched = here.start_launch()
    [found] = launched.wait_for(r"child (\d+) (\d+)")
    child, agent = int(found[1]), int(found[2])
    os.kill(agent, signal.SIGKILL)
    await_true(lambda: not is_running(child), 5)
    launched.wait()
    here.assert_clean(within_s=5.0)
