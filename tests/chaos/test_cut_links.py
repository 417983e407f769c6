"""Hosts with addresses of their own whose links are cut, and restored: nothing hangs for ever."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from tests.support.changing_cluster import COUNTED
from tests.support.launch import Launched, Site
from tests.support.own_addresses import OwnAddresses, is_possible, own_addresses

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.skipif(os.environ.get("HOTSTART_LONG") != "1", reason="takes minutes"),
]

JOB = """
    script: train.py
    workers: 2
    workers_per_host: 1
    resources_per_worker: {CPU: 1}
    restarts: {failures: 2, backoff_s: 0, standby: false}
"""


@pytest.fixture(scope="module")
def spread() -> Iterator[OwnAddresses]:
    if not is_possible():
        pytest.skip("may not make network namespaces here")
    with own_addresses(4) as running:  # each that is cut off for good is done without
        yield running


def started(here: Site, *more: str) -> Launched:
    here.write("train.py", COUNTED)
    here.write("job.yaml", JOB)
    return here.start_launch("job.yaml", *more)


def wait_for(launched: Launched, step: int, attempt: int, workers: int) -> None:
    line = rf"^\[\d\] step {step} attempt {attempt} of {workers} total {workers}$"
    launched.wait_for(line, count=workers, timeout_s=120)


def hosts_of(launched: Launched, attempt: int) -> list[int]:
    """The host of each process of an attempt, by process index."""
    pattern = rf"^\[(\d)\] attempt {attempt} on host-(\d)$"
    found = launched.wait_for(pattern, count=2, timeout_s=120)
    return [int(host) for _, host in sorted((m[1], m[2]) for m in found)]


def test_link_cut_for_seconds_costs_no_attempt(spread: OwnAddresses) -> None:
    with spread.nodes.site() as here:
        launched = started(here)
        wait_for(launched, 1, attempt=1, workers=2)
        one, other = hosts_of(launched, 1)
        for host in (one, other):
            spread.cut(host)
            time.sleep(3)
            spread.restore(host)
        wait_for(launched, 20, attempt=1, workers=2)
        here.write("go-1", "")
        finished = launched.wait()
        assert finished.exit_code == 0, finished.shown
        assert [a["outcome"] for a in here.report()["attempts"]] == ["done"], finished.shown
        here.assert_clean(10)


@pytest.mark.parametrize("process", [1, 0])
def test_link_cut_for_good_the_next_attempt_takes_the_spare_host(
    spread: OwnAddresses, process: int
) -> None:
    with spread.nodes.site() as here:
        launched = started(here)
        wait_for(launched, 1, attempt=1, workers=2)
        lost = hosts_of(launched, 1)[process]
        cut_at = time.monotonic()
        spread.cut(lost)
        wait_for(launched, 1, attempt=2, workers=2)
        assert time.monotonic() - cut_at < 60
        assert lost not in hosts_of(launched, 2)
        spread.restore(lost)  # what is left of the first attempt there ends
        here.write("go-2", "")
        finished = launched.wait()
        assert finished.exit_code == 0, finished.shown
        outcomes = [a["outcome"] for a in here.report()["attempts"]]
        assert outcomes == ["preempted", "done"], finished.shown
        here.assert_clean(30)
