"""A restart by standbys: the same program, the same output, and nothing is left of them."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator

import pytest

from tests.e2e.test_existing_script import SURROUNDED
from tests.support.launch import RayNodes, Site, is_running, ray_nodes
from tests.support.standbys import idle_standbys, standby_pids

pytestmark = pytest.mark.e2e

JOB = """
    script: work/train.py
    args: [--rate, 0.5, a b]
    jax_distributed: script
    restarts: {failures: 1, backoff_s: 0}
    cache: {mode: 'off'}
"""
AGAIN = """
import pathlib, os, time
from hotstart.launcher import context

print("pid", os.getpid())
context.step(1)
while context.attempt() == 1:
    if pathlib.Path("fail").exists():
        os._exit(1)
    time.sleep(0.02)
"""


@pytest.fixture(scope="module")
def nodes() -> Iterator[RayNodes]:
    with ray_nodes(1, cpus=4) as running:
        yield running


@pytest.fixture
def here(nodes: RayNodes) -> Iterator[Site]:
    with nodes.site() as made:
        yield made
        made.assert_clean()


def test_standby_runs_a_script_as_a_fresh_worker_does(here: Site) -> None:
    script = here.write("work/train.py", SURROUNDED)
    script.write_text(f"{script.read_text()}\n" + AGAIN.replace("\n", "\n    "))
    for name in ("cache", "conf"):
        here.write(f"work/{name}.py", f"WHO = 'my {name}'\n")
    here.write("work/launcher/__init__.py", "WHO = 'my launcher'\n")
    here.write("work/launcher/launch.py", "WHO = 'my launch'\n")
    here.write("job.yaml", JOB)
    launched = here.start_launch()
    launched.wait_for(r"^\[0\] pid ")
    [run] = here.run_names()
    [kept] = idle_standbys(run, 1)
    here.write("fail", "")
    finished = launched.wait()
    assert finished.exit_code == 0, finished.shown
    first, second = (here.log(run, attempt, 0).splitlines() for attempt in (1, 2))
    facts = json.loads(first[0])
    assert (facts["folder"], facts["loader_names"]) == (str(here.folder), ["__mp_main__"])
    assert json.loads(second[0]) == facts
    assert second[1:] == [f"pid {kept}"]
    assert not is_running(kept)


def test_standby_reports_that_it_stood_by(here: Site) -> None:
    here.write("work/train.py", AGAIN)
    here.write("job.yaml", JOB)
    launched = here.start_launch("job.yaml", "--json")
    launched.wait_for(r"^\[0\] pid ")
    [run] = here.run_names()
    idle_standbys(run, 1)
    here.write("fail", "")
    finished = launched.wait()
    workers = [worker for attempt in finished.report["attempts"] for worker in attempt["workers"]]
    assert [worker["standby"] for worker in workers] == [False, True]
    fresh, stood_by = (worker["phases"]["import_jax"] for worker in workers)
    assert stood_by < fresh


def test_standby_is_not_kept_where_the_job_says_so(here: Site) -> None:
    here.write("work/train.py", AGAIN + "time.sleep(4)\n")
    here.write("job.yaml", JOB)
    launched = here.start_launch("job.yaml", "restarts.standby=false")
    launched.wait_for(r"^\[0\] pid ")
    here.write("fail", "")
    launched.wait_for(r"^\[0\] pid ", count=2)
    [run] = here.run_names()
    seen: set[int] = set()
    while launched.popen.poll() is None:
        seen |= standby_pids(run)
    assert seen == set()
    assert launched.wait().exit_code == 0


def test_standby_ends_with_an_interrupted_run(here: Site) -> None:
    here.write("work/train.py", AGAIN)
    here.write("job.yaml", JOB)
    launched = here.start_launch()
    launched.wait_for(r"^\[0\] pid ")
    [run] = here.run_names()
    [kept] = idle_standbys(run, 1)
    launched.signal(signal.SIGINT)
    assert launched.wait().exit_code == 130
    assert not is_running(kept)
