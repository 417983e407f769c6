"""Two hosts with node directories of their own: compiled once, read once, handed on, read ahead."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.gcs_proxy import Fault, GcsProxy
from tests.support.hosts import (
    NAMES,
    TOTAL,
    Hosts,
    begun,
    compiled,
    expected_total,
    gets,
    hosts,
    totals,
)
from tests.support.launch import Finished, Site, await_true

pytestmark = pytest.mark.e2e

ONCE = {name: 1 for name in sorted(NAMES)}
LONG = os.environ.get("HOTSTART_LONG") == "1"


@pytest.fixture
def here(two: Hosts) -> Iterator[Site]:
    two.empty()
    with two.site() as made:
        yield made
        made.assert_clean(5.0)


def launch(here: Site, hosts: Hosts, bucket: str, *more: str) -> Finished:
    options = (f"cache.location={bucket}/cache", "--json", *more)
    finished = here.launch("job.yaml", *options, env=hosts.environ)
    assert finished.exit_code == 0, finished.shown
    return finished


def workers(finished: Finished, name: str) -> list[int]:
    """A counter of each worker's cache in the last attempt."""
    return [worker["cache"][name] for worker in finished.report["attempts"][-1]["workers"]]


def agents(finished: Finished) -> list[dict[str, Any]]:
    return finished.report["attempts"][-1]["hosts"]


def kept_on(hosts: Hosts, program: str) -> list[Path]:
    """Where the entry of a program lies in any node directory."""
    entries = [path for host in range(len(hosts.homes)) for path in hosts.entries(host)]
    return [path for path in entries if path.name.endswith(f"-jit_{program}")]


def uploaded(proxy: GcsProxy) -> set[str]:
    """The programs whose entries were put into the bucket."""
    names = (request.object_name for request in proxy.requests("POST", "/entries/"))
    return {name.rpartition("-jit_")[2] for name in names}


def summed(finished: Finished, name: str) -> int:
    return sum(host[name] for host in agents(finished))


def test_gang_cold_then_warm_compiles_once_and_reads_once(
    two: Hosts, here: Site, proxy: GcsProxy, bucket: str
) -> None:
    cold = launch(here, two, bucket)
    assert compiled(cold.stderr) == ONCE, cold.shown
    assert totals(cold.stderr) == [TOTAL] * 4
    assert sum(workers(cold, "compiled")) == len(NAMES)
    assert (summed(cold, "uploads"), summed(cold, "reads")) == (len(NAMES), 0)
    assert summed(cold, "from_peers") > 0
    two.empty()
    proxy.reset()
    warm = launch(here, two, bucket)
    assert compiled(warm.stderr) == {}, warm.shown
    assert totals(warm.stderr) == [TOTAL] * 4
    read = gets(proxy)
    assert sorted(name.rpartition("-jit_")[2] for name in read) == sorted(NAMES)
    assert set(read.values()) == {1}
    assert (summed(warm, "reads"), summed(warm, "from_peers")) == (len(NAMES), len(NAMES))
    assert (summed(warm, "uploads"), summed(warm, "errors")) == (0, 0)
    assert workers(warm, "hits") == workers(warm, "requests") == [5, 5, 6, 6]
    assert [len(two.entries(host)) for host in (0, 1)] == [len(NAMES)] * 2


def test_gang_warm_without_reading_ahead_reads_each_entry_once(
    two: Hosts, here: Site, proxy: GcsProxy, bucket: str
) -> None:
    launch(here, two, bucket, "cache.read_ahead=false", "cache.load_ahead=false")
    two.empty()
    proxy.reset()
    warm = launch(here, two, bucket, "cache.read_ahead=false", "cache.load_ahead=false")
    assert compiled(warm.stderr) == {}, warm.shown
    assert totals(warm.stderr) == [TOTAL] * 4
    assert set(gets(proxy).values()) == {1}
    # Only the second host asks for `upper_1`, so nobody hands that on.
    assert (summed(warm, "reads"), summed(warm, "from_peers")) == (len(NAMES), len(NAMES) - 1)


def test_gang_on_three_hosts_reads_each_entry_once(proxy: GcsProxy, bucket: str) -> None:
    with hosts(3, {"STORAGE_EMULATOR_HOST": proxy.url}) as three, three.site() as here:
        options = ("workers=3", "workers_per_host=1")
        cold = launch(here, three, bucket, *options)
        assert compiled(cold.stderr) == ONCE, cold.shown
        three.empty()
        proxy.reset()
        warm = launch(here, three, bucket, *options)
        assert compiled(warm.stderr) == {}, warm.shown
        assert totals(warm.stderr) == [pytest.approx(expected_total(3), abs=0.02)] * 3
        assert list(gets(proxy).values()) == [1] * len(NAMES)
        assert summed(warm, "from_peers") == 2 * len(NAMES)


def test_entry_that_its_host_has_lost_comes_from_the_bucket(
    two: Hosts, proxy: GcsProxy, bucket: str
) -> None:
    two.empty()
    with two.site(pauses={"local": [[2, 3], 60]}) as here:
        options = (f"cache.location={bucket}/cache", "--json", "cache.deadline_s=5")
        launched = here.start_launch("job.yaml", *options, env=two.environ)
        launched.wait_for(r"^\[[23]\] pausing local", count=2)
        await_true(lambda: "local_1" in uploaded(proxy), 20)
        launched.wait_for(r"^\[[01]\] local done", count=2)
        await_true(lambda: bool(kept_on(two, "local_1")), 20)
        [entry] = kept_on(two, "local_1")
        entry.unlink()
        here.write("go-local", "")
        finished = launched.wait()
        assert finished.exit_code == 0, finished.shown
        assert compiled(finished.stderr) == ONCE, finished.shown
        assert totals(finished.stderr) == [TOTAL] * 4
        assert list(gets(proxy).values()) == [1]
        assert summed(finished, "reads") == 1


def test_read_that_fails_on_one_host_is_left_to_the_other(
    two: Hosts, here: Site, proxy: GcsProxy, bucket: str
) -> None:
    launch(here, two, bucket)
    two.empty()
    proxy.reset()
    # As many as the first host's tries in its deadline, or one more, which the other then retries.
    proxy.inject(Fault("stall", object_contains="-jit_last_1", times=3))
    options = ("cache.read_ahead=false", "cache.load_ahead=false", "cache.deadline_s=3")
    finished = launch(here, two, bucket, *options)
    assert compiled(finished.stderr) == {}, finished.shown
    assert totals(finished.stderr) == [TOTAL] * 4
    assert summed(finished, "errors") == 1
    assert list(gets(proxy).values()) == [1] * len(NAMES)


@pytest.mark.parametrize("trouble", ["no folder", "full"])
def test_host_whose_node_directory_takes_nothing_reads_the_bucket(
    two: Hosts, here: Site, proxy: GcsProxy, bucket: str, trouble: str
) -> None:
    launch(here, two, bucket)
    two.empty()
    proxy.reset()
    node = two.homes[1] / "node"
    if trouble == "no folder":
        node.parent.mkdir()
        node.write_text("in its place")
        finished = launch(here, two, bucket)
    else:
        node.mkdir(parents=True)
        mount = ["mount", "-t", "tmpfs", "-o", "size=8k", "none", str(node)]
        if subprocess.run(mount, capture_output=True).returncode != 0:
            pytest.skip("cannot mount a small file system here")
        try:
            finished = launch(here, two, bucket)
        finally:
            subprocess.run(["umount", "-l", str(node)], check=True)
    assert compiled(finished.stderr) == {}, finished.shown
    assert totals(finished.stderr) == [TOTAL] * 4
    assert summed(finished, "errors") + sum(workers(finished, "errors")) > 0
    assert sum(workers(finished, "read_bytes")) > 0


@pytest.mark.parametrize("place", ["before", "middle"])
def test_process_that_comes_late_compiles_nothing_alone(
    two: Hosts, proxy: GcsProxy, bucket: str, place: str
) -> None:
    two.empty()
    late_s = 60 if LONG and place == "middle" else 9
    with two.site(pauses={place: [[3], late_s]}) as here:
        finished = launch(here, two, bucket)
        assert finished.seconds > late_s
        assert compiled(finished.stderr) == ONCE, finished.shown
        assert totals(finished.stderr) == [TOTAL] * 4
        assert len(finished.report["attempts"]) == 1


@pytest.mark.skipif(not LONG, reason="takes a minute")
def test_process_a_minute_late_to_the_first_collective_costs_an_attempt_and_no_compilation(
    two: Hosts, proxy: GcsProxy, bucket: str
) -> None:
    """Gloo gives up after 30 s, whatever the cache does."""
    two.empty()
    with two.site(pauses={"before": [[3], 60]}) as here:
        finished = launch(here, two, bucket)
        again = pytest.approx(expected_total(attempts=2), abs=0.02)
        assert totals(finished.stderr) == [again] * 4, finished.shown
        assert begun(finished.stderr) == dict.fromkeys((*NAMES, "again_1"), 1), finished.shown
        outcomes = [attempt["outcome"] for attempt in finished.report["attempts"]]
        assert outcomes == ["failed", "done"]
        assert finished.seconds < 60
