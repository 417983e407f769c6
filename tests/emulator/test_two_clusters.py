"""Two clusters that share a bucket: each program is compiled by one of them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from hotstart.cache.leases import TTL_S
from hotstart.cache.store import open_store
from tests.support.gcs_proxy import GcsProxy
from tests.support.hosts import NAMES, compiled, expected_total, totals, write_programs
from tests.support.launch import Finished, Launched, Site, await_true, pids_in, site

pytestmark = pytest.mark.emulator

ONCE = {name: 1 for name in sorted(NAMES)}
TOTAL = pytest.approx(expected_total(2), abs=0.02)
PATIENCE_S = 120.0


@pytest.fixture
def sites() -> Iterator[tuple[Site, Site]]:
    with site() as one, site() as other:
        for here in (one, other):
            write_programs(here)
        yield one, other
        other.assert_clean(5.0)


def start(here: Site, proxy: GcsProxy, bucket: str) -> Launched:
    options = (f"cache.location={bucket}/cache", "workers=2", "workers_per_host=2", "--json")
    return here.start_launch("job.yaml", *options, env={"STORAGE_EMULATOR_HOST": proxy.url})


def assert_right(finished: Finished) -> None:
    assert finished.exit_code == 0, finished.shown
    assert totals(finished.stderr) == [TOTAL] * 2
    assert len(finished.report["attempts"]) == 1, finished.shown


def leases_left(bucket: str) -> list[str]:
    return [stat.name for stat in open_store(f"{bucket}/cache").list("leases/")]


def wait_until_polled(proxy: GcsProxy, program: str, more: int = 3) -> None:
    """Block until somebody waits for the lease of a program: waiting is listing."""

    def polls() -> int:
        return sum(
            f"-jit_{program}" in request.query and "leases" in request.query
            for request in proxy.requests("GET")
        )

    before = polls()
    await_true(lambda: polls() >= before + more, 60.0, lambda: str(proxy.requests()))


def test_clusters_that_start_together_compile_each_program_once(
    sites: tuple[Site, Site], proxy: GcsProxy, bucket: str
) -> None:
    launched = [start(here, proxy, bucket) for here in sites]
    finished = [one.wait(PATIENCE_S) for one in launched]
    for one in finished:
        assert_right(one)
    by_both = "".join(one.stderr for one in finished)
    assert compiled(by_both) == ONCE, by_both
    assert leases_left(bucket) == []


def test_cluster_waits_for_what_another_compiles(
    sites: tuple[Site, Site], proxy: GcsProxy, bucket: str
) -> None:
    write_programs(sites[0], pauses={"whole_2": [[0, 1], PATIENCE_S]})
    first = start(sites[0], proxy, bucket)
    first.wait_for(r"^\[\d\] pausing whole_2")
    second = start(sites[1], proxy, bucket)
    second.wait_for(r"^\[\d\] step 1", count=2)
    wait_until_polled(proxy, "whole_2")
    sites[0].write("go-whole_2", "")
    one, other = first.wait(PATIENCE_S), second.wait(PATIENCE_S)
    assert_right(one)
    assert_right(other)
    assert compiled(one.stderr + other.stderr) == ONCE, one.shown + other.shown
    assert "compiling jit_whole_2" not in other.stderr
    assert leases_left(bucket) == []


def test_cluster_killed_while_it_compiles_the_other_goes_on(
    sites: tuple[Site, Site], proxy: GcsProxy, bucket: str
) -> None:
    write_programs(sites[0], pauses={"whole_2": [[0, 1], PATIENCE_S]})
    first = start(sites[0], proxy, bucket)
    first.wait_for(r"^\[\d\] pausing whole_2")
    second = start(sites[1], proxy, bucket)
    second.wait_for(r"^\[\d\] step 1", count=2)
    wait_until_polled(proxy, "whole_2")
    os.kill(first.pid, signal.SIGKILL)
    second.wait_for(r"^\[\d\] compiling jit_whole_2", timeout_s=10)  # its death is seen here
    finished = second.wait(PATIENCE_S)
    assert_right(finished)
    expected = {name: count for name, count in ONCE.items() if name != "whole_1"}
    assert compiled(finished.stderr) == expected, finished.shown
    assert leases_left(bucket) == []
    sites[0].assert_clean(10.0)


@pytest.mark.skipif(os.environ.get("HOTSTART_LONG") != "1", reason="takes a minute")
def test_cluster_that_hangs_while_it_compiles_both_end_right(
    sites: tuple[Site, Site], proxy: GcsProxy, bucket: str
) -> None:
    """As a host that cannot be seen: the other waits for its beats alone."""
    write_programs(sites[0], pauses={"whole_2": [[0, 1], PATIENCE_S]})
    first = start(sites[0], proxy, bucket)
    first.wait_for(r"^\[\d\] pausing whole_2")
    second = start(sites[1], proxy, bucket)
    second.wait_for(r"^\[\d\] step 1", count=2)
    wait_until_polled(proxy, "whole_2")
    agent = pids_in(first.output())[0].agent
    os.kill(agent, signal.SIGSTOP)
    try:
        second.wait_for(r"^\[\d\] compiling jit_whole_2", timeout_s=TTL_S + 15)
    finally:
        os.kill(agent, signal.SIGCONT)
    other = second.wait(PATIENCE_S)
    sites[0].write("go-whole_2", "")
    one = first.wait(PATIENCE_S)
    assert_right(one)
    assert_right(other)
    assert compiled(one.stderr + other.stderr) == {**ONCE, "whole_2": 2}, one.shown + other.shown
    assert leases_left(bucket) == []
