"""A worker's environment: which of the host's, hotstart's and the job's settings it gets."""

from __future__ import annotations

import dataclasses

import pytest

from hotstart.cache.config import CacheConfig
from hotstart.conf.schema import CacheSection, JobConfig, TpuSection
from hotstart.launcher.environ import compose_environ, share_of
from hotstart.launcher.job_plan import worker_environ
from hotstart.launcher.plan import AttemptPlan, Program, WorkerPlan
from hotstart.launcher.slices import WORKER_LABEL, order_of

pytestmark = pytest.mark.unit

OFF = "--xla_gpu_shard_autotuning=false"
PROGRAM = Program("train.py", None, (), (), "/")
PLAN = AttemptPlan(
    "run", 1, 2, "host:1", True, 300.0, PROGRAM, CacheConfig("/cache"), platform="gpu"
)


def flags(host: dict[str, str], job: dict[str, str], **changes: object) -> str | None:
    """`XLA_FLAGS` of a worker on a host, with what the job's `env` says."""
    plan = dataclasses.replace(PLAN, environ=job, **changes)  # type: ignore[arg-type]
    return compose_environ(WorkerPlan(0, 0, 0.0, plan), host).get("XLA_FLAGS")


@pytest.mark.parametrize(
    ("host", "job", "expected"),
    [
        ({}, {}, OFF),
        ({"XLA_FLAGS": "--xla_a=1"}, {}, f"--xla_a=1 {OFF}"),
        ({"XLA_FLAGS": "--xla_a=1"}, {"XLA_FLAGS": "--xla_b=2"}, f"--xla_b=2 {OFF}"),
        ({"XLA_FLAGS": "--xla_gpu_shard_autotuning"}, {}, "--xla_gpu_shard_autotuning"),
        (
            {},
            {"XLA_FLAGS": "--xla_gpu_shard_autotuning=true"},
            "--xla_gpu_shard_autotuning=true",
        ),
    ],
    ids=["none", "the_hosts", "the_jobs", "host_decides", "job_decides"],
)
def test_environ_compile_once_on_gpu_adds_its_flag_to_those_in_force(
    host: dict[str, str], job: dict[str, str], expected: str
) -> None:
    assert flags(host, job) == expected


@pytest.mark.parametrize(
    "changes",
    [
        {"platform": "cpu"},
        {"platform": "tpu"},
        {"cache": None},
        {"cache": CacheConfig("/cache", compile="every")},
    ],
    ids=["cpu", "tpu", "cache_off", "compile_every"],
)
def test_environ_otherwise_leaves_the_flags_alone(changes: dict[str, object]) -> None:
    assert flags({}, {}, **changes) is None
    assert flags({"XLA_FLAGS": "--xla_a=1"}, {}, **changes) == "--xla_a=1"


@pytest.mark.parametrize(
    ("job", "expected"),
    [
        (JobConfig(platform="gpu"), f"<the host's> {OFF}"),
        (JobConfig(platform="gpu", env={"XLA_FLAGS": "--xla_a=1"}), f"--xla_a=1 {OFF}"),
        (JobConfig(platform="gpu", cache=CacheSection(compile="every")), None),
        (JobConfig(platform="gpu", cache=CacheSection(mode="off")), None),
        (JobConfig(platform="cpu"), None),
    ],
)
def test_dry_run_shows_the_flags_that_workers_get(job: JobConfig, expected: str | None) -> None:
    from hotstart.launcher.dry_run import _environ

    assert _environ(job).get("XLA_FLAGS") == expected


def test_worker_environ_holds_no_flags_of_its_own() -> None:
    environ = worker_environ(JobConfig(platform="gpu"), "/checkpoints", "host:1", "1")
    assert environ == {"JAX_PLATFORMS": "cuda", "HOTSTART_CHECKPOINT_DIR": "/checkpoints"}


MIG = "MIG-11111111-aaaa"


@pytest.mark.parametrize(
    ("devices", "shares"),
    [
        ("0,1,2,3", ["0,1", "2,3"]),
        ("4,6", ["4", "6"]),
        ("GPU-aa, GPU-bb,GPU-cc,GPU-dd", ["GPU-aa,GPU-bb", "GPU-cc,GPU-dd"]),
        (f"{MIG}/1/0,{MIG}/2/0", [f"{MIG}/1/0", f"{MIG}/2/0"]),
        ("0,1,2", ["0", "1,2"]),
        ("7", ["7", "7"]),
        ("0,1,2,3,4,5,6,7", ["0,1", "2,3", "4,5", "6,7"]),
    ],
)
def test_gpus_are_shared_out_in_order(devices: str, shares: list[str]) -> None:
    count = len(shares)
    assert [share_of(devices, index, count) for index in range(count)] == shares
    environs = [
        compose_environ(WorkerPlan(i, i, 0.0, PLAN, count), {"CUDA_VISIBLE_DEVICES": devices})
        for i in range(count)
    ]
    assert [environ["CUDA_VISIBLE_DEVICES"] for environ in environs] == shares


@pytest.mark.parametrize(
    ("host", "job", "platform", "expected"),
    [
        ({}, {}, "gpu", None),
        ({"CUDA_VISIBLE_DEVICES": ""}, {}, "gpu", ""),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, {"CUDA_VISIBLE_DEVICES": "5"}, "gpu", "5"),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, {}, "cpu", "0,1"),
    ],
    ids=["not_told", "none", "job_decides", "another_platform"],
)
def test_gpus_are_left_alone_otherwise(
    host: dict[str, str], job: dict[str, str], platform: str, expected: str | None
) -> None:
    plan = dataclasses.replace(PLAN, environ=job, platform=platform)
    environ = compose_environ(WorkerPlan(0, 0, 0.0, plan, 2), host)
    assert environ.get("CUDA_VISIBLE_DEVICES") == expected


STALE = {"MEGASCALE_NUM_SLICES": "9", "MEGASCALE_SLICE_ID": "8", "MEGASCALE_PORT": "1"}


def slices(process_index: int, **changes: object) -> dict[str, str]:
    """What a worker of a TPU's slices is told of them on a host that has something stale."""
    fields: dict[str, object] = {"process_count": 4, "platform": "tpu", "workers_per_slice": 2}
    plan = dataclasses.replace(PLAN, coordinator="10.0.0.7:4321", **{**fields, **changes})  # type: ignore[arg-type]
    environ = compose_environ(WorkerPlan(process_index, 0, 0.0, plan), STALE)
    return {name: value for name, value in environ.items() if name.startswith("MEGASCALE")}


def test_slices_are_told_of_each_other_anew_at_each_attempt() -> None:
    common = {
        "MEGASCALE_COORDINATOR_ADDRESS": "10.0.0.7",
        "MEGASCALE_PORT": "8081",
        "MEGASCALE_NUM_SLICES": "2",
    }
    ids = [slices(index).pop("MEGASCALE_SLICE_ID") for index in range(4)]
    assert ids == ["0", "0", "1", "1"]
    assert slices(3) == {**common, "MEGASCALE_SLICE_ID": "1"}


def test_one_slice_is_told_of_no_other_and_hosts_without_slices_keep_their_own() -> None:
    assert slices(1, process_count=2) == {}
    assert slices(1, workers_per_slice=0) == STALE


def test_hosts_of_slices_are_ordered_by_their_number_within_each() -> None:
    labels = [{WORKER_LABEL: number} for number in ("1", "0", "3", "2", "10", "9", "8", "11")]
    assert order_of(labels, 4) == [1, 0, 3, 2, 6, 5, 4, 7]
    assert order_of([{}, {}, {}], 1) == [0, 1, 2]


def test_dry_run_shows_what_is_of_the_devices() -> None:
    from hotstart.launcher.dry_run import _environ, _removed

    def tpu(workers: int) -> JobConfig:
        slices, chips = TpuSection("4x4", "v6e"), {"TPU": 4.0}
        return JobConfig(
            platform="tpu",
            workers=workers,
            workers_per_host=1,
            resources_per_worker=chips,
            tpu=slices,
        )

    assert _environ(JobConfig(platform="gpu"))["CUDA_VISIBLE_DEVICES"].startswith("<its share")
    assert "MEGASCALE_SLICE_ID" in _environ(tpu(8))
    assert "MEGASCALE_SLICE_ID" not in _environ(tpu(4))
    assert "MEGASCALE_SLICE_ID" in _removed(tpu(4))
    assert "MEGASCALE_SLICE_ID" not in _removed(JobConfig())
