"""The ways to Ray: a cluster of two hosts that runs already, and one that has no room."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator

import pytest

from tests.support.launch import RayNodes, Site, ray_nodes

pytestmark = pytest.mark.e2e

SCRIPT = """
    import os
    import jax, jax.numpy as jnp
    from jax.experimental import multihost_utils
    from hotstart.launcher import context

    total = multihost_utils.process_allgather(jnp.array([jax.process_index() + 1])).sum()
    print("sum", int(total), "agent", os.getppid())
    context.step(1)
"""
JOB = """
    script: train.py
    workers: 2
    workers_per_host: 1
    resources_per_worker: {CPU: 1}
"""


@pytest.fixture(scope="module")
def nodes() -> Iterator[RayNodes]:
    with ray_nodes(2, cpus=1) as running:
        yield running


@pytest.fixture
def here(nodes: RayNodes) -> Iterator[Site]:
    with nodes.site() as made:
        made.write("train.py", SCRIPT)
        made.write("job.yaml", JOB)
        yield made
        made.assert_clean()


def test_launch_on_two_hosts_puts_one_worker_on_each(here: Site) -> None:
    finished = here.run("launch", "job.yaml", env={"RAY_ADDRESS": here.address})
    assert finished.exit_code == 0, finished.shown
    found = re.findall(r"^\[(\d)\] sum (\d+) agent (\d+)$", finished.stdout, re.MULTILINE)
    assert sorted((index, total) for index, total, _ in found) == [("0", "3"), ("1", "3")]
    assert len({agent for _, _, agent in found}) == 2


def test_launch_takes_the_cluster_that_ray_start_has_noted(here: Site, nodes: RayNodes) -> None:
    noted = here.temp / "ray" / "ray_current_cluster"
    noted.parent.mkdir()
    noted.write_text(nodes.address)
    try:
        finished = here.run("launch", "job.yaml")
    finally:
        noted.unlink()
        noted.parent.rmdir()
    assert finished.exit_code == 0, finished.shown
    agents = re.findall(r"^\[\d\] sum 3 agent (\d+)$", finished.stdout, re.MULTILINE)
    assert len(set(agents)) == 2  # one Ray started here would have put both on one node


def test_launch_that_does_not_fit_says_so_and_gives_up(here: Site) -> None:
    finished = here.launch("job.yaml", "workers=3", "timeouts.placement_s=3", "--json")
    assert finished.exit_code == 1, finished.shown
    needs = (
        "needs 3 x {CPU: 1} on as many hosts; the cluster has 2 hosts with {CPU: 2}, of which "
        "{CPU: 2} are free; lacking: 1 x {CPU: 1} free"
    )
    gave_up = f"{needs}; gave up after 3 s (timeouts.placement_s)"
    assert finished.stderr.splitlines()[-2:] == [
        f"hotstart {needs}; waiting up to 3 s",
        f"hotstart: {gave_up}",
    ]
    _, *notes, waiting, _, ended = finished.events
    assert [e["event"] for e in finished.events] == [
        *("run_started", "note", "note", "waiting_for_hosts", "report", "run_ended")
    ]
    assert all("directory that all 3 hosts share" in note["text"] for note in notes)
    assert (waiting["attempt"], waiting["text"], waiting["left_s"]) == (1, needs, 3.0)
    assert [ended[name] for name in ("state", "exit_code", "reason", "may_restart")] == [
        *("failed", 1, gave_up, True)
    ]
    report = here.report()
    assert (report["state"], report["exit_code"], report["attempts"]) == ("failed", 1, [])


def test_launch_that_waits_for_room_can_be_interrupted(here: Site) -> None:
    launched = here.start_launch("job.yaml", "workers=3")
    launched.wait_for("waiting up to 300 s")
    launched.signal(signal.SIGINT, group=True)
    finished = launched.wait(timeout_s=5)
    assert finished.exit_code == 130, finished.shown
    assert (here.report()["state"], here.report()["attempts"]) == ("interrupted", [])


def test_launch_as_json_prints_nothing_but_events(here: Site) -> None:
    finished = here.launch("job.yaml", "--json")
    assert finished.exit_code == 0, finished.shown
    assert [event["schema"] for event in finished.events] == [1] * len(finished.events)
    assert finished.events[-1]["state"] == "done"


def test_launch_on_a_terminal_without_the_character_goes_on(here: Site) -> None:
    here.write("train.py", "print('caf\u00e9')\n")
    here.write("job.yaml", "script: train.py\nenv: {PYTHONIOENCODING: utf-8}\n")
    finished = here.launch(env={"PYTHONIOENCODING": "ascii"})
    assert finished.exit_code == 0, finished.shown
    assert "[0] caf\\xe9\n" in finished.stdout
    [run] = here.run_names()
    assert here.log(run, 1, 0) == "caf\u00e9\n"
