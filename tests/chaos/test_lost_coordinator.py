"""The coordinator, or a host, is lost in the middle of a run of two hosts."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import time

import psutil
import pytest

from hotstart.cache.store import open_store
from tests.support.gcs_proxy import Fault, GcsProxy
from tests.support.hosts import NAMES, TOTAL, Hosts, begun, expected_total, totals
from tests.support.launch import Launched, Site, await_true, is_running, pids_in

pytestmark = pytest.mark.chaos

_PIDFD_GETFD = 438
PATIENCE_S = 60.0
LONGEST_PAUSE_S = 3.0  # between two tries to connect again, and some more
LOST = "the coordinator is lost; this host resolves on its own"
TOTAL_AGAIN = pytest.approx(expected_total(attempts=2), abs=0.02)


def start(here: Site, two: Hosts, bucket: str) -> Launched:
    options = (f"cache.location={bucket}/cache", "--json")
    return here.start_launch("job.yaml", *options, env=two.environ)


def coordinator_port(agent: int) -> int:
    """Where the coordinator in this process listens.

    Its own host's agent is among those who have connected, so it is the port at which this process
    is connected to itself.
    """
    found = psutil.Process(agent).net_connections("tcp")
    ports = {c.laddr.port for c in found if c.status == psutil.CONN_LISTEN}
    own = {c.laddr.port for c in found if c.status == psutil.CONN_ESTABLISHED}
    [port] = {
        c.raddr.port
        for c in found
        if c.status == psutil.CONN_ESTABLISHED
        and c.raddr.port in ports
        and c.laddr.port not in ports
        and c.raddr.port in own
    }
    return port


def coordinator_links(agent: int, port: int) -> dict[int, int]:
    """The coordinator's ends of its connections: peer's port and file descriptor."""
    return {
        c.raddr.port: c.fd
        for c in psutil.Process(agent).net_connections("tcp")
        if c.status == psutil.CONN_ESTABLISHED and c.laddr.port == port
    }


def cut_all(agent: int, port: int) -> None:
    """Cut both hosts' connections, once, and wait until they have made others."""
    links = coordinator_links(agent, port)
    assert len(links) == 2
    for descriptor in links.values():
        cut(agent, descriptor)
    await_true(
        lambda: len(coordinator_links(agent, port).keys() - links.keys()) == 2,
        5.0,
    )


def lose_all(agent: int, port: int) -> None:
    """Cut all connections until nobody makes another."""
    quiet_since = time.monotonic()
    while time.monotonic() - quiet_since < LONGEST_PAUSE_S:
        for descriptor in coordinator_links(agent, port).values():
            cut(agent, descriptor)
            quiet_since = time.monotonic()


def cut(pid: int, descriptor: int) -> None:
    """Shut a socket of another process down, as if the network had."""
    process = os.pidfd_open(pid)
    libc = ctypes.CDLL(None, use_errno=True)
    taken = libc.syscall(_PIDFD_GETFD, process, descriptor, 0)
    os.close(process)
    if taken < 0:
        pytest.skip("not allowed to take another process's socket")
    with socket.socket(fileno=taken) as ours:
        ours.shutdown(socket.SHUT_RDWR)


def test_coordinator_lost_in_the_middle_all_hosts_go_on_and_the_next_attempt_has_it_again(
    two: Hosts, proxy: GcsProxy, bucket: str
) -> None:
    two.empty()
    places = {"middle": [[0, 1, 2, 3], PATIENCE_S], "end": [[0, 1, 2, 3], PATIENCE_S]}
    with two.site(pauses=places) as here:
        launched = start(here, two, bucket)
        launched.wait_for(r"^\[\d\] pausing middle", count=4)
        agent = pids_in(launched.output())[0].agent
        port = coordinator_port(agent)
        lose_all(agent, port)
        here.write("go-middle", "")
        launched.wait_for(r"^\[\d\] pausing end", count=4)
        os.kill(pids_in(launched.output())[3].worker, signal.SIGKILL)
        launched.wait_for(r"attempt 2 started")
        await_true(lambda: len(coordinator_links(agent, port)) == 2, 10.0)
        finished = launched.wait(PATIENCE_S)
        assert finished.exit_code == 0, finished.shown
        assert totals(finished.stderr) == [TOTAL_AGAIN] * 4
        first, second = finished.report["attempts"]
        # By the leases in the bucket, which hosts fall back to.
        assert begun(finished.stderr) == {name: 1 for name in (*NAMES, "again_1")}
        assert sum(worker["cache"]["compiled"] for worker in second["workers"]) == 1
        assert [host["warnings"] for host in first["hosts"]] == [[LOST]] * 2
        assert [host["warnings"] for host in second["hosts"]] == [[]] * 2
        here.assert_clean(5.0)


@pytest.mark.parametrize("process", [0, 3])
def test_agent_killed_in_the_middle_the_run_restarts_warm(
    two: Hosts, proxy: GcsProxy, bucket: str, process: int
) -> None:
    two.empty()
    with two.site(pauses={"end": [[0, 1, 2, 3], PATIENCE_S]}) as here:
        launched = start(here, two, bucket)
        launched.wait_for(r"^\[\d\] pausing end", count=4)
        await_true(lambda: len(proxy.requests("POST", "/entries/")) >= len(NAMES), 20.0)
        pids = pids_in(launched.output())
        os.kill(pids[process].agent, signal.SIGKILL)
        await_true(lambda: not is_running(pids[process].worker), 5.0)
        finished = launched.wait(PATIENCE_S)
        assert finished.exit_code == 0, finished.shown
        assert totals(finished.stderr) == [TOTAL_AGAIN] * 4
        first, second = finished.report["attempts"]
        assert [first["outcome"], second["outcome"]] == ["failed", "done"]
        assert sum(worker["cache"]["compiled"] for worker in second["workers"]) == 1
        here.assert_clean(5.0)


def test_links_cut_while_hosts_wait_are_made_again_and_nobody_compiles_twice(
    two: Hosts, proxy: GcsProxy, bucket: str
) -> None:
    two.empty()
    with two.site(pauses={"whole_2": [[0, 1, 2, 3], PATIENCE_S]}) as here:
        launched = start(here, two, bucket)
        launched.wait_for(r"^\[\d\] pausing whole_2")
        launched.wait_for(r"^\[\d\] step 1", count=4)
        agent = pids_in(launched.output())[0].agent
        cut_all(agent, coordinator_port(agent))
        here.write("go-whole_2", "")
        finished = launched.wait(PATIENCE_S)
        assert finished.exit_code == 0, finished.shown
        assert totals(finished.stderr) == [TOTAL] * 4
        assert begun(finished.stderr) == dict.fromkeys(NAMES, 1), finished.shown
        [attempt] = finished.report["attempts"]
        assert [host["warnings"] for host in attempt["hosts"]] == [[]] * 2
        assert sum(worker["cache"]["compiled"] for worker in attempt["workers"]) == len(NAMES)
        here.assert_clean(5.0)


def test_agent_killed_with_an_upload_pending_the_next_one_does_it(
    two: Hosts, proxy: GcsProxy, bucket: str
) -> None:
    two.empty()
    everybody = [[0, 1, 2, 3], PATIENCE_S]
    with two.site(pauses={"upper_1": everybody, "end": everybody}) as here:
        launched = start(here, two, bucket)
        launched.wait_for(r"^\[\d\] pausing upper_1")  # its lease is in the bucket already
        proxy.inject(Fault("stall", method="POST", object_contains="-jit_upper_1"))
        here.write("go-upper_1", "")
        launched.wait_for(r"^\[\d\] pausing end", count=4)
        await_true(lambda: proxy.faults_left() == 0, 20.0)
        os.kill(pids_in(launched.output())[3].agent, signal.SIGKILL)
        finished = launched.wait(PATIENCE_S)
        assert finished.exit_code == 0, finished.shown
        assert begun(finished.stderr) == dict.fromkeys((*NAMES, "again_1"), 1), finished.shown
        stored = [stat.name for stat in open_store(f"{bucket}/cache").list("entries/")]
        names = sorted(name.rpartition("-jit_")[2] for name in stored)
        assert names == sorted((*NAMES, "again_1"))
        here.assert_clean(5.0)


@pytest.mark.skipif(os.environ.get("HOTSTART_LONG") != "1", reason="takes more than a minute")
def test_agent_that_hangs_is_given_up_and_the_run_restarts(
    two: Hosts, proxy: GcsProxy, bucket: str
) -> None:
    two.empty()
    with two.site(pauses={"whole_2": [[0, 1, 2, 3], PATIENCE_S]}) as here:
        launched = start(here, two, bucket)
        launched.wait_for(r"^\[\d\] pausing whole_2")
        launched.wait_for(r"^\[\d\] step 1", count=4)
        old = pids_in(launched.output())
        os.kill(old[0].agent, signal.SIGSTOP)
        here.write("go-whole_2", "")
        launched.wait_for("attempt 2 started", timeout_s=100.0)
        finished = launched.wait(PATIENCE_S)
        assert finished.exit_code == 0, finished.shown
        assert totals(finished.stderr) == [TOTAL_AGAIN] * 4
        await_true(lambda: not is_running(old[0].agent), 10.0)
        await_true(lambda: not any(is_running(pids.worker) for pids in old.values()), 10.0)
        here.assert_clean(10.0)
