"""`hotstart doctor` as a user runs it: without a cluster, on one, and on a dead one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.launch import Finished, RayNodes, Site, site

pytestmark = pytest.mark.e2e


@pytest.fixture
def user() -> Iterator[Site]:
    with site() as made:
        yield made
        made.assert_clean()


def lines_of(ended: Finished) -> dict[str, dict[str, object]]:
    return {line["subject"]: line for line in json.loads(ended.stdout)["lines"]}


def test_doctor_without_a_job_or_a_cluster_finds_nothing_and_makes_nothing(user: Site) -> None:
    ended = user.run("doctor", env={"JAX_PLATFORMS": "cpu"})
    assert (ended.exit_code, ended.stderr) == (0, ""), ended.shown
    lines = ended.stdout.splitlines()
    assert lines[-1] == "nothing would stop a launch"
    assert [line.split("  ")[0] for line in lines[:-1]] == ["ok"] * (len(lines) - 1)
    (ray,) = (line for line in lines if line.startswith("ok    ray "))
    assert ", started here for the length of the run, " in ray
    assert "[no --address, no RAY_ADDRESS, and none runs on this machine]" in ray
    (devices,) = (line for line in lines if line.startswith("ok    devices "))
    assert "1 x cpu" in devices
    assert f"{user.hotstart_home}/cache (to be made)" in ended.stdout
    assert "[environment HOTSTART_HOME]" in ended.stdout
    assert not user.hotstart_home.exists()


def test_doctor_on_a_dead_cluster_says_so_and_everything_else(user: Site) -> None:
    user.write("train.py", "")
    user.write("job.yaml", "script: train.py\nplatform: cpu\n")
    env = {"RAY_ADDRESS": "127.0.0.1:1", "JAX_PLATFORMS": "nonsense"}
    ended = user.run("doctor", "job.yaml", "--json", env=env)
    assert (ended.exit_code, ended.stderr) == (1, ""), ended.shown
    found = lines_of(ended)
    stopping = [name for name, line in found.items() if line["stops"]]
    assert stopping == ["ray"]
    assert found["ray"]["source"] == "environment RAY_ADDRESS"
    assert str(found["ray"]["problem"]).startswith("cannot connect to Ray at 127.0.0.1:1: ")
    # The platform is the job's, whatever the environment says.
    assert (found["devices"]["text"], found["devices"]["source"]) == (
        "1 x cpu (cpu)", "job.yaml:2"
    )  # fmt: skip


def test_doctor_takes_a_cluster_by_its_address_and_measures_the_job_by_it(nodes: RayNodes) -> None:
    with nodes.site() as user:
        user.write("train.py", "")
        user.write("job.yaml", "script: train.py\nplatform: gpu\nworkers: 2\n")
        ended = user.run("doctor", "job.yaml", "--address", nodes.address, "--json")
        found = lines_of(ended)
        assert f", {nodes.address}: 1 host with {{CPU: 2}}" in str(found["ray"]["text"])
        assert found["ray"]["source"] == "--address"
        assert "; lacking: " in str(found["ray"]["problem"])
        assert "(none of them has GPU): a launch waits for that" in str(found["ray"]["problem"])
        # Workers run on the cluster, so this machine need not have their devices.
        assert "the cluster, which may have them" in str(found["devices"]["problem"])
        assert ended.exit_code == 0, ended.shown
        user.assert_clean()


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="they are here")
def test_doctor_of_a_job_for_devices_that_are_not_here_stops(user: Site) -> None:
    user.write("train.py", "")
    user.write("job.yaml", "script: train.py\nplatform: gpu\n")
    ended = user.run("doctor", "job.yaml", "--address", "local")
    assert ended.exit_code == 1, ended.shown
    (line,) = (line for line in ended.stdout.splitlines() if line.startswith("STOP"))
    assert line.split() == ["STOP", "devices", "no", "gpu", "on", "this", "machine", "[job.yaml:2]"]


def test_doctor_of_a_job_file_that_is_wrong_is_usage(user: Site) -> None:
    user.write("job.yaml", "scrpt: train.py\n")
    for arguments in (("job.yaml",), ("none.yaml",), ("cache.locaton=x",)):
        ended = user.run("doctor", *arguments)
        assert (ended.exit_code, ended.stdout) == (2, ""), ended.shown
        assert ended.stderr.count("\n") == 1, ended.shown
    assert list(user.temp.iterdir()) == []
