"""What a put costs the first step: a program whose executable is large, in a slow bucket.

The executable is real: a program with 200 MB of random constants in it, compiled, serialized
and stored as JAX does it, by one process. The delay counts from the end of compiling to the
step's result, less the time in `serialize()`, which both sides need.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from tests.bench.compilations import probed_job
from tests.bench.results import Bound, Measure, Result, Sample
from tests.bench.rows import Row, paired
from tests.bench.stage import PROBED, ROOT, Stage, probed, read_probes

SCRIPT = ROOT / "tests" / "bench" / "big_constant.py"
_STEP = r"step 1 value \d+ at ([0-9.]+)"


def put_delay(stage: Stage) -> tuple[Measure, Measure]:
    """Every start has another constant, so that each stores a new entry."""
    seeds = iter(range(1_000_000))
    probes = ["compiles", "writes"]

    def arguments() -> Sequence[str]:
        return ["--megabytes", str(stage.options.put_megabytes), "--seed", str(next(seeds))]

    def ours() -> Sample:
        with stage.fresh_folder() as folder:
            output = folder / "probes"
            keys = probed_job(stage, SCRIPT, arguments(), output, probes)
            cache = {
                "location": "gs://ours/cache",
                "node_dir": str(folder / "node"),
                "flush_timeout_s": 120,
            }
            job = stage.job("bench", {**keys, "workers": 1, "cache": cache})
            with stage.launch(job, folder / "home") as launched:
                _, step = launched.wait_for(_STEP)
                launched.finish()
            return _delay(output, float(step[1]))

    def theirs() -> Sample:
        with stage.fresh_folder() as folder:
            output = folder / "probes"
            watched = probed(SCRIPT, arguments(), output, probes)
            with stage.plain(PROBED, watched, "gs://stock/cache", count=1) as gang:
                (ended,) = gang.wait()
            step = re.search(_STEP, ended.output)
            if ended.exit_code or step is None:
                raise RuntimeError(ended.output[-4000:])
            return _delay(output, float(step[1]))

    stage.ray  # noqa: B018 - running before the first command
    return ours, theirs


def _delay(output: Path, stepped_at: float) -> Sample:
    (probe,) = read_probes(output, 1)
    compiled_at = probe["compiles"][-1]["ended_at"]
    delay_s = stepped_at - compiled_at - probe["serialize_s"]
    return Sample(
        delay_s,
        {
            "serialize_s": probe["serialize_s"],
            "in_write_s": probe["write_s"] - probe["serialize_s"],
        },
    )


ROWS: tuple[Row, ...] = (
    paired(
        Result(
            "put_delay",
            "put of an executable of 200 MB at 50 MB/s: end of compiling to the step's result, "
            "less `serialize()`; one process, random constants",
            "stock JAX on the bucket, likewise",
            "s",
            Bound("<=", 0.02),
        ),
        put_delay,
        megabytes_per_s=50.0,
    ),
)
