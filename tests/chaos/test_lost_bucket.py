"""The bucket goes away, or is taken away, in the middle of a run."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.support.gcs_proxy import Fault, GcsProxy
from tests.support.hosts import NAMES, TOTAL, Hosts, begun, totals
from tests.support.launch import Finished, Site

pytestmark = pytest.mark.chaos

LONG = pytest.mark.skipif(os.environ.get("HOTSTART_LONG") != "1", reason="each takes 10 s")
PATIENCE_S = 60.0
MIDDLE = [[0, 1, 2, 3], PATIENCE_S]


@pytest.fixture
def here(two: Hosts) -> Iterator[Site]:
    two.empty()
    with two.site(pauses={"middle": MIDDLE}) as made:
        yield made
        made.assert_clean(5.0)


def run(
    here: Site, hosts: Hosts, proxy: GcsProxy, bucket: str, status: int, *options: str
) -> Finished:
    """A run whose bucket is lost when all workers have done their first step."""
    launched = here.start_launch(
        "job.yaml", f"cache.location={bucket}/cache", "--json", *options, env=hosts.environ
    )
    launched.wait_for(r"^\[\d\] pausing middle", count=4)
    methods = ("GET", "POST", "DELETE")
    proxy.inject(*(Fault("status", method=m, status=status, times=10**6) for m in methods))
    here.write("go-middle", "")
    return launched.wait(PATIENCE_S)


@pytest.mark.parametrize("status", [404, pytest.param(403, marks=LONG)])
def test_bucket_lost_in_the_middle_the_run_ends_right_and_nothing_is_compiled_twice(
    two: Hosts, here: Site, proxy: GcsProxy, bucket: str, status: int
) -> None:
    finished = run(here, two, proxy, bucket, status)

    assert finished.exit_code == 0, finished.shown
    assert totals(finished.stderr) == [TOTAL] * 4
    assert begun(finished.stderr) == dict.fromkeys(NAMES, 1), finished.shown
    [attempt] = finished.report["attempts"]
    assert all(host["errors"] > 0 for host in attempt["hosts"])
    # A refusal is an answer: nothing is sent again, and nothing waited for.
    assert [host["retries"] for host in attempt["hosts"]] == [0, 0]
    assert [host["outages"] for host in attempt["hosts"]] == [0, 0]


@LONG
def test_bucket_that_is_out_from_the_middle_on_costs_few_deadlines(
    two: Hosts, here: Site, proxy: GcsProxy, bucket: str
) -> None:
    finished = run(here, two, proxy, bucket, 503, "cache.deadline_s=1.5")

    assert finished.exit_code == 0, finished.shown
    assert totals(finished.stderr) == [TOTAL] * 4
    assert begun(finished.stderr) == dict.fromkeys(NAMES, 1), finished.shown
    [attempt] = finished.report["attempts"]
    assert sum(host["retries"] for host in attempt["hosts"]) > 0
    assert sum(host["retry_s"] for host in attempt["hosts"]) > 0.0
    assert [host["outages"] for host in attempt["hosts"]] == [1, 1]


def test_bucket_lost_in_the_middle_of_a_strict_run_ends_it_with_exit_code_4(
    two: Hosts, here: Site, proxy: GcsProxy, bucket: str
) -> None:
    finished = run(here, two, proxy, bucket, 404, "cache.strict=true")

    assert finished.exit_code == 4, finished.shown
    reason = finished.report["reason"]
    assert reason.startswith("strict mode: process "), finished.shown
    assert "the cache is required and cannot be used: " in reason, finished.shown
    assert f"there is no bucket {bucket}; create it" in reason, finished.shown
    said = [line for line in finished.stderr.splitlines() if "the cache is required" in line]
    assert said == [
        f"hotstart attempt 1 cache-required: {reason}",
        f"hotstart {reason} (exit code 4)",
    ]
