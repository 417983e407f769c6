"""Starts of a whole job: command to first step, with a bucket or a local directory behind it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from tests.bench.results import Bound, Measure, Result, Sample
from tests.bench.rows import Row, paired
from tests.bench.stage import BYTELM, PROBED, ROOT, Stage, probed

PROGRAMS = ROOT / "tests" / "bench" / "programs64.py"


def launch_warm(stage: Stage) -> tuple[Measure, Measure]:
    """Both have filled a bucket of their own with one cold start."""
    keys = {"script": str(BYTELM), "args": stage.options.bytelm()}
    ours = launched_from_bucket(stage, keys)

    def theirs() -> Sample:
        stage.proxy.reset()
        with stage.fresh_folder() as checkpoints:
            arguments = [*stage.options.bytelm(), "--checkpoint-dir", str(checkpoints)]
            seconds = stage.plain_first_step_s(BYTELM, arguments, "gs://stock/cache", count=2)
        return Sample(seconds, requests_seen(stage))

    _fill(stage, ours, theirs)
    return ours, theirs


def launch_warm_equal_keys(stage: Stage) -> tuple[Measure, Measure]:
    """Many programs; stock's processes share their keys, so that each finds every program."""
    programs = ["--programs", str(stage.options.programs)]
    ours = launched_from_bucket(stage, {"script": str(PROGRAMS), "args": programs})
    arguments = probed(PROGRAMS, programs, stage.folder / "probes", [], "--equal-keys")

    def theirs() -> Sample:
        stage.proxy.reset()
        seconds = stage.plain_first_step_s(PROBED, arguments, "gs://stock/cache", count=2)
        return Sample(seconds, requests_seen(stage))

    _fill(stage, ours, theirs)
    return ours, theirs


def cold_start(stage: Stage) -> tuple[Measure, Measure]:
    """Four processes, an empty directory each time, and nothing known of an earlier run."""

    def ours() -> Sample:
        with stage.fresh_folder() as folder:
            job = _local_job(stage, folder / "cache")
            return Sample(stage.first_step_s(job, folder / "home"))

    def theirs() -> Sample:
        with stage.fresh_folder() as folder:
            return Sample(_plain_local(stage, folder / "cache"))

    stage.ray  # noqa: B018 - running before the first command
    return ours, theirs


def warm_start(stage: Stage) -> tuple[Measure, Measure]:
    """Four processes; the directory of each side is as its own cold start has left it."""
    job = _local_job(stage, stage.folder / "ours")

    def ours() -> Sample:
        return Sample(stage.first_step_s(job, stage.folder / "hotstart"))

    def theirs() -> Sample:
        return Sample(_plain_local(stage, stage.folder / "stock"))

    _fill(stage, ours, theirs)
    return ours, theirs


def launched_from_bucket(stage: Stage, keys: dict[str, Any], workers: int = 2) -> Measure:
    """`hotstart launch` with an empty node directory each time; the run records stay."""
    node_dir = stage.folder / "node"
    cache = {"location": "gs://ours/cache", "node_dir": str(node_dir)}
    job = stage.job("bench", {**keys, "workers": workers, "cache": cache})

    def measure() -> Sample:
        shutil.rmtree(node_dir, ignore_errors=True)
        stage.proxy.reset()
        seconds = stage.first_step_s(job, stage.folder / "hotstart")
        return Sample(seconds, requests_seen(stage))

    stage.ray  # noqa: B018 - running before the first command
    return measure


def requests_seen(stage: Stage) -> dict[str, float]:
    """What the bucket's network has carried since the last reset."""
    seen = stage.proxy.requests()
    return {
        "requests": len(seen),
        "bytes_up": sum(request.request_bytes for request in seen),
        "bytes_down": sum(request.response_bytes for request in seen),
    }


def _local_job(stage: Stage, cache: Path) -> Path:
    keys = {"script": str(BYTELM), "args": stage.options.bytelm(), "workers": 4}
    return stage.job("bench", {**keys, "cache": {"location": str(cache)}})


def _plain_local(stage: Stage, cache: Path) -> float:
    with stage.fresh_folder() as checkpoints:
        arguments = [*stage.options.bytelm(), "--checkpoint-dir", str(checkpoints)]
        return stage.plain_first_step_s(BYTELM, arguments, str(cache), count=4)


def _fill(stage: Stage, ours: Measure, theirs: Measure) -> None:
    for side, measure in (("ours", ours), ("theirs", theirs)):
        stage.tell(f"cold: {side} {measure().value:.4g} s")


ROWS: tuple[Row, ...] = (
    paired(
        Result(
            "launch_warm",
            "`hotstart launch`, 2 workers, Ray running, warm bucket at 30 ms and 200 MB/s, empty "
            "node directory: command to first step",
            "stock JAX on the bucket (etils), plain processes",
            "s",
            Bound("<=", 0.35),
        ),
        launch_warm,
    ),
    paired(
        Result(
            "launch_warm_equal_keys",
            "the same with 64 programs",
            "stock JAX on the bucket, plain processes, patched so that all processes have one "
            "key a program, as on TPU",
            "s",
            Bound("<=", 0.70),
        ),
        launch_warm_equal_keys,
        limit_s=1500,
    ),
    paired(
        Result(
            "cold_start",
            "4 workers here, Ray running, empty local directory: command to first step",
            "stock JAX, 4 plain processes, one empty local directory",
            "s",
            Bound("<=", 0.40),
        ),
        cold_start,
    ),
    paired(
        Result(
            "warm_start",
            "4 workers here, Ray running, full local directory: command to first step",
            "stock JAX, 4 plain processes, one local directory as a cold start fills it",
            "s",
            Bound("<=", 0.25),
        ),
        warm_start,
    ),
)
