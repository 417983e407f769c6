"""Every command of docs/runs.md, as it stands there, on one run."""

from __future__ import annotations

import shlex
import signal
from pathlib import Path

import pytest

from tests.support.launch import RayNodes

pytestmark = pytest.mark.e2e

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "runs.md").read_text()
SCRIPT = """
    import pathlib, time
    from hotstart.launcher import context

    print("attempt", context.attempt())
    while not pathlib.Path("end").exists():
        context.step(context.attempt())
        time.sleep(0.05)
"""
JOB = """
    script: train.py
    workers: 2
    resources_per_worker: {CPU: 0.5}
    cache: {mode: "off"}
"""


def commands() -> list[str]:
    block = PAGE.split("```bash\n")[1].split("```")[0]
    return [line.partition("#")[0].strip() for line in block.splitlines()]


def test_run_docs_commands_do_what_the_page_says(nodes: RayNodes) -> None:
    runs, status, follow, tail, stop, again, changed, watch = commands()
    with nodes.site() as here:
        here.write("train.py", SCRIPT)
        here.write("job.yaml", JOB)
        env = {"RAY_ADDRESS": here.address}

        def start(command: str):
            return here.start(*shlex.split(command)[1:], env=env)

        def shown(command: str) -> str:
            finished = start(command).wait()
            assert finished.exit_code == 0, finished.shown
            return finished.stdout

        launched = start("hotstart launch job.yaml")
        launched.wait_for(r"^\[1\] attempt 1$")
        following = start(follow)
        following.wait_for(r"^\[0\] attempt 1$")
        [run] = here.run_names()
        assert f"{run}  running" in shown(runs)
        assert "state: running\n" in shown(status)
        assert shown(tail) == "attempt 1\n"
        assert f"{run} has ended: interrupted, stopped by " in shown(stop)
        assert launched.wait().exit_code == 130
        assert following.wait().exit_code == 0

        restarted = start(again)
        restarted.wait_for(r"^\[1\] attempt 2$")
        restarted.signal(signal.SIGINT)
        assert restarted.wait().exit_code == 130

        restarted = start(changed)
        restarted.wait_for(r"^\[1\] attempt 3$")
        restarted.signal(signal.SIGKILL)
        restarted.wait()
        here.assert_clean(5.0)

        watching = start(watch)
        watching.wait_for(r"^\[1\] attempt 4$")
        here.write("end", "")
        finished = watching.wait()
        assert finished.exit_code == 0, finished.shown
        assert "failures: 10\n" in (here.runs / run / "job" / "00000003.yaml").read_text()
        assert "state: done" in shown(status)
        here.assert_clean(5.0)
