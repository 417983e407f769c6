"""Jobs that take a range of workers: what is there at each attempt, warm at sizes that ran."""

from __future__ import annotations

import collections
import os
import re
import signal

import pytest

from tests.support.changing_cluster import COUNTED, changing_cluster
from tests.support.launch import Launched, Site, pids_in

pytestmark = pytest.mark.e2e

JOB = """
    script: train.py
    workers: {min: 2, max: 4}
    workers_per_host: 2
    resources_per_worker: {CPU: 0.5}
    restarts: {failures: 2, backoff_s: 0, standby: false}
"""


def begun(output: str) -> dict[int, dict[str, int]]:
    """By attempt, how often each program began to be compiled by any process."""
    found: dict[int, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    pattern = r"^\[\d\] compiling in attempt (\d) (?:jit_)?(\w+)$"
    for attempt, name in re.findall(pattern, output, re.MULTILINE):
        found[int(attempt)][name] += 1
    return {attempt: dict(names) for attempt, names in found.items()}


def wait_for(launched: Launched, step: int, attempt: int, workers: int) -> None:
    """Block until all of an attempt's workers, so many, have done a step."""
    line = rf"^\[\d\] step {step} attempt {attempt} of {workers} total {workers}$"
    launched.wait_for(line, count=workers)


def sizes(here: Site) -> list[tuple[int, int]]:
    """Workers and hosts of each attempt, from the report."""
    attempts = here.report()["attempts"]
    assert all(a["workers_wanted"] == {"min": 2, "max": 4} for a in attempts)
    return [(a["process_count"], a["host_count"]) for a in attempts]


def test_gang_shrinks_with_the_cluster_and_is_warm_when_it_has_grown_again() -> None:
    with changing_cluster(head={}, spare={}) as cluster, cluster.nodes.site() as here:
        here.write("train.py", COUNTED)
        here.write("job.yaml", JOB)
        launched = here.start_launch()
        wait_for(launched, 1, attempt=1, workers=4)
        cluster.lose("spare")
        wait_for(launched, 1, attempt=2, workers=2)
        cluster.add("again")
        wait_for(launched, 20, attempt=2, workers=2)  # nothing is interrupted
        os.kill(pids_in(launched.output())[0].worker, signal.SIGKILL)
        wait_for(launched, 1, attempt=3, workers=4)
        here.write("go-3", "")
        finished = launched.wait()
        assert finished.exit_code == 0, finished.shown
        compiled = begun(finished.stdout)
        assert set(compiled) == {1, 2}, finished.shown  # attempt 3 compiled nothing at all
        assert compiled[1]["total"] == compiled[2]["total"] == 1
        assert set(compiled[1].values()) == {1}, finished.shown
        assert sizes(here) == [(4, 2), (2, 1), (4, 2)], finished.shown
        assert "attempt 2 (2 of 2 to 4 workers): failed" in finished.stdout
