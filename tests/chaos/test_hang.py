"""A gang that is alive and makes no progress: its stacks are kept, and the next attempt starts."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.launch import RayNodes, Site, wait_for_step

pytestmark = pytest.mark.chaos

JOB = """
    script: train.py
    workers: 2
    resources_per_worker: {CPU: 1}
    restarts: {failures: 1, backoff_s: 0}
"""
# In attempt 1 process 1 hangs before its second step, where HANGS says; process 0 is in a
# collective then, a step ahead.
STEPS = """
    import os, threading, time
    import jax, jax.numpy as jnp, numpy as np
    from jax._src import compiler
    from jax.experimental import multihost_utils
    from hotstart.launcher import context

    index, attempt, hangs = context.process_index(), context.attempt(), os.environ["HANGS"]
    print("pids", os.getpid(), os.getppid(), 0, flush=True)
    compile_program = compiler.backend_compile_and_load

    def wait_for_ever():
        threading.Event().wait()

    def compile_for_ever(backend, program, *args, **kwargs):
        if program.operation.attributes["sym_name"].value == "jit_endless" and attempt == 1:
            wait_for_ever()
        return compile_program(backend, program, *args, **kwargs)

    compiler.backend_compile_and_load = compile_for_ever

    def endless(x):
        return x + 1

    for number in range(1, 4):
        if number == 2 and index == 1 and attempt == 1:
            if hangs == "loading":
                wait_for_ever()
            if hangs == "compiling":
                jax.jit(endless)(1.0)
            time.sleep(1)  # its last report, sent each 0.1 s, must not be of a compilation
            print("waits", flush=True)
            while hangs == "stopped":
                time.sleep(0.1)
        context.step(number)
        print("step", number, flush=True)
        multihost_utils.sync_global_devices(f"step {number}")
"""


@pytest.fixture
def here(nodes: RayNodes) -> Iterator[Site]:
    with nodes.site() as made:
        made.write("train.py", STEPS)
        made.write("job.yaml", JOB)
        yield made
        made.assert_clean()


def kept_stacks(here: Site) -> dict[int, str]:
    [run] = here.run_names()
    folder = here.runs / run / "attempts" / "00001" / "stacks"
    return {int(path.name): path.read_text() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize(
    ("hangs", "option", "why"),
    [
        ("loading", "step_s=3", "has done nothing since step 1 for 3 s (timeouts.step_s=3)"),
        (
            "compiling",
            "compile_s=3",
            "has been inside one compilation, or waiting for it, for 3 s (timeouts.compile_s=3)",
        ),
    ],
)
def test_hang_is_explained_and_restarted(here: Site, hangs: str, option: str, why: str) -> None:
    finished = here.launch("job.yaml", f"env={{HANGS: {hangs}}}", f"timeouts.{option}", "--json")
    assert finished.exit_code == 0, finished.shown
    first, second = finished.report["attempts"]
    [run] = here.run_names()
    host, where = second["workers"][0]["host"], here.runs / run / "attempts" / "00001" / "stacks"
    assert (first["outcome"], first["first_worker"]) == ("failed", 1)
    assert first["reason"] == (
        f"no progress: process 1 on {host} {why}; what each worker was doing: {where}"
    )
    assert [w["last_step"] for w in first["workers"]] == [2, 1]
    assert (second["outcome"], [w["last_step"] for w in second["workers"]]) == ("done", [3, 3])
    stacks = kept_stacks(here)
    assert sorted(stacks) == [0, 1]
    assert "sync_global_devices" in stacks[0]
    assert "wait_for_ever" in stacks[1]
    assert all(text.count("most recent call first") > 1 for text in stacks.values())


def test_hang_of_a_stopped_worker_keeps_what_the_others_do_and_is_restarted(here: Site) -> None:
    launched = here.start_launch("job.yaml", "env={HANGS: stopped}", "timeouts.step_s=3", "--json")
    pids = wait_for_step(launched, 1, workers=2)
    launched.wait_for(r"^\[1\] waits")  # no more inside a compilation, which may take longer
    os.kill(pids[1].worker, signal.SIGSTOP)
    finished = launched.wait()
    assert finished.exit_code == 0, finished.shown
    first, second = finished.report["attempts"]
    assert (first["outcome"], first["first_worker"]) == ("failed", 1)
    assert second["outcome"] == "done"
    assert not Path(f"/proc/{pids[1].worker}").exists()
    assert sorted(kept_stacks(here)) == [0]
