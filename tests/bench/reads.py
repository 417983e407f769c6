"""Warm starts: what is asked of the bucket, and what of it the main thread has to wait for."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from tests.bench.compilations import probed_job
from tests.bench.raylets import raylets
from tests.bench.results import Bound, Measure, Result, Sample
from tests.bench.rows import Row, paired
from tests.bench.stage import BYTELM, PROBED, STEP, Stage, probed, read_probes
from tests.bench.starts import PROGRAMS
from tests.support.gcs_proxy import ProxiedRequest

_HOSTS, _WORKERS_PER_HOST = 2, 4
_ENTRIES = "cache/entries/"


def warm_gets(stage: Stage) -> tuple[Measure, Measure]:
    """Eight workers on two hosts whose node directories are empty; the bucket is full.

    What the run asks the bucket besides entries (its record, manifests) is counted beside.
    """
    cluster = stage.enter(
        raylets(_HOSTS, _WORKERS_PER_HOST, stage.environment(), stage.folder / "raylets")
    )
    job = stage.job(
        "bench",
        {
            "script": str(BYTELM),
            "args": [*stage.options.bytelm(), "--batch", "16"],
            "workers": _HOSTS * _WORKERS_PER_HOST,
            "workers_per_host": _WORKERS_PER_HOST,
            "cache": {"location": "gs://ours/cache"},
        },
    )
    seen: list[ProxiedRequest] = []

    def start() -> None:
        for home in cluster.homes:
            shutil.rmtree(home, ignore_errors=True)
        stage.proxy.reset()
        home = stage.folder / "hotstart"
        with stage.launch(job, home, address=cluster.address, environ=cluster.environ) as launched:
            launched.wait_for(STEP)
            launched.finish()
        missing = [home for home in cluster.homes if not (home / "node").is_dir()]
        if missing:
            raise RuntimeError(f"no node directory in {missing}: the hosts are not apart")
        seen[:] = stage.proxy.requests()

    def ours() -> Sample:
        start()
        gets = _gets(seen)
        hits = sum(count for count, status in gets.values() if status == 200)
        others = {"other_requests": len(seen) - sum(count for count, _ in gets.values())}
        misses = sum(count for count, status in gets.values() if status != 200)
        return Sample(hits, {"gets_of_absent": misses, **others})

    def theirs() -> Sample:
        """The distinct keys that were read in the same start, each as one."""
        return Sample(sum(1 for _, status in _gets(seen).values() if status == 200))

    start()
    stage.tell("cold: done")
    return ours, theirs


def main_thread_stall(stage: Stage) -> tuple[Measure, Measure]:
    """Seconds in JAX's read of its cache but for decompressing and loading; the slower process.

    Where executables are loaded ahead, waiting for that counts too.
    """
    programs = ["--programs", str(stage.options.programs)]
    node_dir = stage.folder / "node"
    output = stage.folder / "probes"
    keys = probed_job(stage, PROGRAMS, programs, output, ["reads"])
    cache = {"location": "gs://ours/cache", "node_dir": str(node_dir)}
    job = stage.job("bench", {**keys, "workers": 2, "cache": cache})
    arguments = probed(PROGRAMS, programs, output, ["reads"], "--equal-keys")

    def ours() -> Sample:
        shutil.rmtree(node_dir, ignore_errors=True)
        _empty(output)
        stage.first_step_s(job, stage.folder / "hotstart")
        return _stall(output)

    def theirs() -> Sample:
        _empty(output)
        stage.plain_first_step_s(PROBED, arguments, "gs://stock/cache", count=2)
        return _stall(output)

    stage.ray  # noqa: B018 - running before the first command
    for side, measure in (("ours", ours), ("theirs", theirs)):
        stage.tell(f"cold: {side} {measure().value:.4g} s")
    return ours, theirs


def _stall(output: Path) -> Sample:
    probes = read_probes(output, 2)
    return Sample(
        max(probe["read_s"] - probe["loading_s"] for probe in probes),
        {"loading_s": max(probe["loading_s"] for probe in probes)},
    )


def _empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()


def _gets(seen: list[ProxiedRequest]) -> Mapping[str, tuple[int, int]]:
    """By name of entry: how often its bytes were asked for, and the last answer's status."""
    gets: dict[str, tuple[int, int]] = {}
    for request in seen:
        name = request.object_name
        if request.method == "GET" and _ENTRIES in name and "alt=media" in request.query:
            gets[name] = gets.get(name, (0, 0))[0] + 1, request.status
    return gets


ROWS: tuple[Row, ...] = (
    paired(
        Result(
            "warm_gets",
            "warm, 8 workers on 2 local raylets, empty node directories: GETs of entries at the "
            "bucket, the most of any round",
            "distinct keys among them",
            "requests",
            Bound("<=", 1.0),
        ),
        warm_gets,
        combine=max,
    ),
    paired(
        Result(
            "main_thread_stall",
            "warm bucket, 64 programs, 2 workers, empty node directory: main thread's time in the "
            "cache, decompressing and loading left out",
            "stock JAX on the bucket, patched to have one key a program in all processes",
            "s",
            Bound("<=", 0.10),
        ),
        main_thread_stall,
        limit_s=1500,
    ),
)
