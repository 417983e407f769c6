"""GPUs, labels and slices that Ray only believes in: what each worker is told of its devices."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.changing_cluster import ChangingCluster, changing_cluster
from tests.support.launch import Finished, Launched

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(os.environ.get("HOTSTART_LONG") != "1", reason="takes minutes"),
]

SCRIPT = """
    import json, os, pathlib, time
    import jax
    from hotstart.launcher import context

    names = ("CUDA_VISIBLE_DEVICES", "HOTSTART_HOME", "MEGASCALE_COORDINATOR_ADDRESS",
             "MEGASCALE_PORT", "MEGASCALE_NUM_SLICES", "MEGASCALE_SLICE_ID")
    told = {name: os.environ[name] for name in names if name in os.environ}
    told["host"] = told.pop("HOTSTART_HOME").rpartition("-")[2]
    told["jax_cuda_visible_devices"] = jax.config.jax_cuda_visible_devices
    told["attempt"], told["count"] = context.attempt(), jax.process_count()
    print("told", json.dumps(told))
    context.step(1)
    while not (pathlib.Path(__file__).parent / f"go-{context.attempt()}").exists():
        time.sleep(0.05)
"""
GPU = """
    script: train.py
    platform: gpu
    workers: 4
    workers_per_host: 2
    resources_per_worker: {GPU: 2}
    env: {JAX_PLATFORMS: cpu}
    timeouts: {placement_s: 30}
"""
TPU = """
    script: train.py
    platform: tpu
    tpu: {topology: 2x2x2, generation: v4}
    workers: {min: 2, max: 4}
    env: {JAX_PLATFORMS: cpu, TPU_SKIP_MDS_QUERY: "1"}
"""


def told(output: str, attempt: int = 1) -> list[dict[str, Any]]:
    """What each worker of an attempt was told, by process index."""
    found = re.findall(r"^\[(\d)\] told (.+)$", output, re.MULTILINE)
    everything = [(int(index), json.loads(text)) for index, text in found]
    return [t for _, t in sorted(everything, key=lambda x: x[0]) if t.pop("attempt") == attempt]


def column(finished: Finished, name: str) -> list[Any]:
    assert finished.exit_code == 0, finished.shown
    return [worker.get(name) for worker in told(finished.stdout)]


@pytest.fixture(scope="module")
def gpus() -> Iterator[ChangingCluster]:
    small = {"num_cpus": 2, "num_gpus": 2, "labels": {"zone": "small"}}
    large = {"num_cpus": 4, "num_gpus": 4, "labels": {"zone": "large"}}
    with changing_cluster(a=small, b=large, c={**large, "resources": {"rack": 1}}) as running:
        yield running


def test_gpus_of_a_host_are_shared_out_among_its_workers(gpus: ChangingCluster) -> None:
    with gpus.nodes.site() as here:
        here.write("train.py", SCRIPT)
        here.write("job.yaml", GPU)
        here.write("go-1", "")
        finished = here.launch()
        assert column(finished, "CUDA_VISIBLE_DEVICES") == ["0,1", "2,3", "0,1", "2,3"]
        assert column(finished, "jax_cuda_visible_devices") == ["0,1"] * 4
        assert sorted(column(finished, "host")) == ["b", "b", "c", "c"]


@pytest.mark.parametrize(
    ("overrides", "hosts"),
    [
        (("workers=2", "labels.zone=small", "resources_per_worker.GPU=1"), ["a"] * 2),
        (("workers=2", "labels.zone='!large'", "resources_per_worker.GPU=1"), ["a"] * 2),
        (("workers=2", "resources_per_worker.rack=0.5"), ["c"] * 2),
        (
            ("workers=4", "placement=pack", "resources_per_worker.GPU=1", "labels.zone=large"),
            ["pack"],
        ),
    ],
)
def test_hosts_are_those_of_the_labels_and_resources(
    gpus: ChangingCluster, overrides: tuple[str, ...], hosts: list[str]
) -> None:
    with gpus.nodes.site() as here:
        here.write("train.py", SCRIPT)
        here.write("job.yaml", GPU)
        here.write("go-1", "")
        found = column(here.launch("job.yaml", *overrides), "host")
        if hosts == ["pack"]:
            assert len(found) == 4
            assert len(set(found)) == 1
        else:
            assert found == hosts


def test_hosts_that_no_label_fits_are_told_of(gpus: ChangingCluster) -> None:
    with gpus.nodes.site() as here:
        here.write("train.py", SCRIPT)
        here.write("job.yaml", GPU)
        finished = here.launch("job.yaml", "labels.zone=b", "timeouts.placement_s=1")
        assert finished.exit_code == 1, finished.shown
        assert finished.stderr == (
            "hotstart: needs 2 x {CPU: 2, GPU: 4} on as many hosts labeled zone=b; the cluster has "
            "3 hosts with {CPU: 10, GPU: 10}, of which {CPU: 10, GPU: 10} are free; lacking: 2 x "
            "{CPU: 2, GPU: 4} free (3 of the hosts are labeled otherwise); gave up after 1 s "
            "(timeouts.placement_s)\n"
        )


def slice_host(name: str, number: int) -> dict[str, Any]:
    labels = {
        "ray.io/accelerator-type": "TPU-V4",
        "ray.io/tpu-topology": "2x2x2",
        "ray.io/tpu-pod-type": "v4-16",
        "ray.io/tpu-slice-name": name,
        "ray.io/tpu-worker-id": str(number),
    }
    resources = {"TPU": 4.0, name: 1.0} | ({"TPU-v4-16-head": 1.0} if number == 0 else {})
    return {"num_cpus": 1, "resources": resources, "labels": labels}


def wait_for_all(launched: Launched, attempt: int, workers: int) -> list[dict[str, Any]]:
    launched.wait_for(rf'told .*"attempt": {attempt},', count=workers, timeout_s=120)
    return told(launched.output(), attempt)


def test_slices_are_taken_whole_and_numbered_as_their_hosts_are() -> None:
    nodes = {  # the hosts of a slice come in any order
        "a1": slice_host("one", 1),
        "b0": slice_host("two", 0),
        "a0": slice_host("one", 0),
        "b1": slice_host("two", 1),
    }
    with changing_cluster(**nodes) as cluster, cluster.nodes.site() as here:
        here.write("train.py", SCRIPT)
        here.write("job.yaml", TPU)
        launched = here.start_launch()
        workers = wait_for_all(launched, 1, 4)
        hosts = [worker["host"] for worker in workers]
        assert hosts in (["a0", "a1", "b0", "b1"], ["b0", "b1", "a0", "a1"])
        assert [worker["MEGASCALE_SLICE_ID"] for worker in workers] == ["0", "0", "1", "1"]
        assert {worker["MEGASCALE_NUM_SLICES"] for worker in workers} == {"2"}
        assert len({worker["MEGASCALE_COORDINATOR_ADDRESS"] for worker in workers}) == 1
        cluster.lose("b0")  # the other host of its slice is of no use alone
        workers = wait_for_all(launched, 2, 2)
        assert [worker["host"] for worker in workers] == ["a0", "a1"]
        assert not any(name.startswith("MEGASCALE") for worker in workers for name in worker)
        here.write("go-2", "")
        finished = launched.wait()
        assert finished.exit_code == 0, finished.shown
        assert [a["process_count"] for a in here.report()["attempts"]] == [4, 2]
