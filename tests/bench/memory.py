"""What a worker holds in memory, beside a plain process that does the same."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tests.bench.compilations import probed_job
from tests.bench.results import Measure, Result, Sample
from tests.bench.rows import Row, paired
from tests.bench.stage import BYTELM, PROBED, Stage, probed, read_probes

_STEPS = 3


def memory(stage: Stage) -> tuple[Measure, Measure]:
    """Resident at the end of three steps with every program cached; the larger of two."""
    script = stage.options.bytelm(_STEPS)
    cache = stage.folder / "cache"

    def ours() -> Sample:
        with stage.fresh_folder() as folder:
            output = folder / "probes"
            keys = probed_job(stage, BYTELM, script, output, [])
            job = stage.job("bench", {**keys, "workers": 2, "cache": {"location": str(cache)}})
            stage.first_step_s(job, folder / "home")
            return _resident(output)

    def directory(index: int) -> str:
        return str(stage.folder / f"plain-{index}")

    def theirs() -> Sample:
        with stage.fresh_folder() as folder:
            output = folder / "probes"
            arguments: Sequence[str] = [*script, "--checkpoint-dir", str(folder / "checkpoints")]
            watched = probed(BYTELM, arguments, output, [], "--all-write")
            stage.plain_first_step_s(PROBED, watched, directory, count=2)
            return _resident(output)

    stage.ray  # noqa: B018 - running before the first command
    for side, measure in (("ours", ours), ("theirs", theirs)):
        stage.tell(f"cold: {side} {measure().value:.4g} MB")
    return ours, theirs


def _resident(output: Path) -> Sample:
    probes = read_probes(output, 2)
    return Sample(
        max(probe["vmrss"] for probe in probes) / 1e6,
        {"peak_mb": max(probe["vmhwm"] for probe in probes) / 1e6},
    )


ROWS: tuple[Row, ...] = (
    paired(
        Result(
            "memory",
            "a worker's resident memory after 3 steps, all programs cached",
            "plain JAX process, likewise",
            "MB",
        ),
        memory,
    ),
)
