"""Cold starts of four workers: how often XLA compiles, and what CPU time that takes.

Both are seen by `probed.py` from below everything that hotstart replaces, at the XLA client.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.bench.results import Bound, Measure, Result, Sample, once
from tests.bench.rows import Row, paired
from tests.bench.stage import BYTELM, PROBED, Stage, probed, read_probes

_WORKERS = 4


def cold_compilations(stage: Stage) -> tuple[Measure, Measure]:
    """Counted at every start here; the distinct modules are counted in one stock run."""

    def ours() -> Sample:
        compiles = _compiles(_launch_cold(stage))
        spans = [compile["processes"] > 1 for compile in compiles]
        return _counts(spans.count(True), spans.count(False))

    def theirs() -> Sample:
        with stage.fresh_folder() as folder:
            probes = folder / "probes"
            script = [*stage.options.bytelm(), "--checkpoint-dir", str(folder / "checkpoints")]
            arguments = probed(BYTELM, script, probes, ["compiles"])
            stage.plain_first_step_s(PROBED, arguments, str(folder / "cache"), count=_WORKERS)
            compiles = _compiles(read_probes(probes))
        distinct = {(compile["processes"] > 1, compile["digest"]) for compile in compiles}
        spans = [span for span, _ in distinct]
        return _counts(spans.count(True), spans.count(False))

    stage.ray  # noqa: B018 - running before the first command
    return ours, once(theirs)


def cold_compile_cpu(stage: Stage) -> tuple[Measure, Measure]:
    """All four workers' seconds against those of one process that has all four devices.

    One process with one device would compile other programs, without collectives.
    """

    def ours() -> Sample:
        compiles = _compiles(_launch_cold(stage))
        return Sample(sum(c["cpu_s"] for c in compiles), {"compilations": len(compiles)})

    def theirs() -> Sample:
        with stage.fresh_folder() as folder:
            probes = folder / "probes"
            script = [*stage.options.bytelm(), "--checkpoint-dir", str(folder / "checkpoints")]
            arguments = probed(BYTELM, script, probes, ["compiles"])
            devices = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={_WORKERS}"}
            cache = str(folder / "cache")
            stage.plain_first_step_s(PROBED, arguments, cache, count=1, environ=devices)
            compiles = _compiles(read_probes(probes))
        return Sample(sum(c["cpu_s"] for c in compiles), {"compilations": len(compiles)})

    stage.ray  # noqa: B018 - running before the first command
    return ours, theirs


def _launch_cold(stage: Stage) -> list[dict[str, Any]]:
    """`hotstart launch` of the watched script with an empty cache; what its workers saw."""
    with stage.fresh_folder() as folder:
        keys = probed_job(stage, BYTELM, stage.options.bytelm(), folder / "probes", ["compiles"])
        cache = {"location": str(folder / "cache")}
        job = stage.job("bench", {**keys, "workers": _WORKERS, "cache": cache})
        stage.first_step_s(job, folder / "home")
        return read_probes(folder / "probes", _WORKERS)


def probed_job(
    stage: Stage, script: Path, arguments: Sequence[str], output: Path, probes: Sequence[str]
) -> dict[str, Any]:
    """The keys of a job that runs the script watched."""
    return {"script": str(PROBED), "args": probed(script, arguments, output, probes)}


def _compiles(probes: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [compile for probe in probes for compile in probe["compiles"]]


def _counts(spanning: int, local: int) -> Sample:
    return Sample(float(spanning + local), {"global": spanning, "process_local": local})


ROWS: tuple[Row, ...] = (
    paired(
        Result(
            "cold_compilations",
            "cold, 4 workers: backend compilations, the most of any round",
            "distinct StableHLO modules, device ids normalized, of an independent stock run",
            "compilations",
            Bound("==", 1.0),
        ),
        cold_compilations,
        combine=max,
    ),
    paired(
        Result(
            "cold_compile_cpu",
            "cold, 4 workers: CPU seconds of all processes while they compile",
            "stock, one process alone with 4 devices, likewise",
            "s",
            Bound("<=", 1.15),
        ),
        cold_compile_cpu,
    ),
)
