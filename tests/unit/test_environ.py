"""A worker's environment: which of the host's, hotstart's and the job's settings it gets."""

from __future__ import annotations

import dataclasses

import pytest

from hotstart.cache.config import CacheConfig
from hotstart.conf.schema import CacheSection, JobConfig
from hotstart.launcher.environ import compose_environ
from hotstart.launcher.launch import worker_environ
from hotstart.launcher.plan import AttemptPlan, Program, WorkerPlan

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
