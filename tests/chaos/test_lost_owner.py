"""An owner that is cut off, or stopped, and comes back: no two attempts ever write at once."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.elsewhere import needs_root, start_elsewhere
from tests.support.gcs_proxy import GcsProxy
from tests.support.launch import HOTSTART, Launched, RayNodes, Site, await_true, site
from tests.support.netns import forward, needs_netns, network_host
from tests.support.ray_at import RayAt, ray_at

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.skipif(os.environ.get("HOTSTART_LONG") != "1", reason="each takes a minute"),
    needs_root,
]

# Writes who it is, and when, into one folder that all attempts share, until told to end.
SCRIPT = """
    import pathlib, signal, sys, time
    from hotstart.launcher import context

    folder = pathlib.Path(__file__).parent
    attempt = context.attempt()
    signal.signal(signal.SIGTERM, lambda *_: (write("told"), sys.exit(0)))

    def write(what):
        with (folder / "written").open("a") as file:
            file.write(f"{attempt} {time.time()} {what}\\n")

    print("attempt", attempt)
    number = 0
    while not (folder / f"end-{attempt}").exists():
        number += 1
        context.step(number)
        write(number)
        time.sleep(0.1)
"""
JOB = """
    script: train.py
    resources_per_worker: {CPU: 1}
    cache: {mode: "off"}
"""


def written(here: Site) -> dict[int, list[float]]:
    """When each attempt wrote."""
    found: dict[int, list[float]] = {}
    path = here.folder / "written"
    for line in path.read_text().splitlines() if path.exists() else ():
        attempt, at_s, what = line.split()
        assert what != "told", "user code was asked to save"
        found.setdefault(int(attempt), []).append(float(at_s))
    return found


def assert_taken_over(here: Site, old: Launched, new: Launched) -> None:
    """The first attempt had ended before the second began; both drivers end as they should."""
    here.write("end-2", "")
    finished = new.wait(timeout_s=60)
    assert finished.exit_code == 0, finished.shown
    ended = old.wait(timeout_s=60)
    assert ended.exit_code == 130, ended.shown
    assert "another driver has taken the run (exit code 130)" in ended.stdout, ended.shown
    by_attempt = written(here)
    assert sorted(by_attempt) == [1, 2]
    assert max(by_attempt[1]) < min(by_attempt[2])
    print(f"{min(by_attempt[2]) - max(by_attempt[1]):.1f} s between the attempts")


def test_owner_that_is_stopped_and_goes_on_finds_its_workers_ended(nodes: RayNodes) -> None:
    with nodes.site() as here:
        here.write("train.py", SCRIPT)
        here.write("job.yaml", JOB)
        old = here.start_launch()
        old.wait_for("^.*first step after")
        [run] = here.run_names()
        old.signal(signal.SIGSTOP)
        new = start_elsewhere(here, "restart", run, "--address", here.address)
        await_true(lambda: 2 in written(here), 90.0, new.output)
        old.signal(signal.SIGCONT)
        assert_taken_over(here, old, new)
        here.assert_clean(5.0)


@pytest.fixture
def cluster() -> Iterator[RayAt]:
    with ray_at() as place:
        yield place


@needs_netns
def test_owner_that_is_cut_off_is_replaced_and_ends_when_the_link_is_back(
    cluster: RayAt, proxy: GcsProxy, bucket: str
) -> None:
    store_port = int(proxy.url.rpartition(":")[2])
    with network_host() as far, forward(far.outside, store_port) as port, site() as here:
        here.write("train.py", SCRIPT)
        here.write("job.yaml", JOB)
        store = {"STORAGE_EMULATOR_HOST": f"http://{far.outside}:{port}"}
        cluster.start(at=far.outside, environ=store)
        raylet = subprocess.Popen(
            far.command(*cluster.join_command(far.inside)),
            env=cluster.environment(store),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            cluster.wait_for_nodes(2)
            runs = f"{bucket}/runs"
            launch = ["launch", "job.yaml", "--address", cluster.address, f"run_dir={runs}"]
            environment = here.environment({**store, "TMPDIR": str(cluster.temp)})
            old = Launched(far.command(str(HOTSTART), *launch), environment, here.folder)
            here.adopt(old)
            old.wait_for("^.*first step after", timeout_s=90)
            match = re.search(r"^hotstart run (\S+) in", old.output(), re.MULTILINE)
            assert match is not None
            far.cut()
            new = start_elsewhere(
                here, "restart", match[1], "--address", cluster.address, "--run-dir", runs,
                env={**store, "TMPDIR": str(cluster.temp)},
            )  # fmt: skip
            await_true(lambda: 2 in written(here), 120.0, new.output)
            far.mend()
            assert_taken_over(here, old, new)
        finally:
            raylet.kill()
            raylet.wait()
    assert not Path("/var/run/netns", far.name).exists()
