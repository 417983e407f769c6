"""How the cache's cost grows with workers and keys: requests at the bucket and CPU seconds.

No JAX in it; `growth_gang.py` says what is real. Each cell is one cold start and one warm one
with empty node directories, in a bucket prefix of its own. The network has no delay here, for
nothing is timed but CPU.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tests.bench.results import Bound, Condition, Result
from tests.bench.rows import Row, Tell
from tests.bench.stage import ROOT, Options, Stage, open_stage
from tests.support.gcs_proxy import ProxiedRequest

WORKERS = (2, 4, 8, 16, 32)
KEYS = (10, 100, 1000)
PLOT = ROOT / "docs" / "growth.svg"
_GANG = ROOT / "tests" / "bench" / "growth_gang.py"
_WORKERS_PER_HOST = 4


@dataclass(frozen=True)
class Cell:
    """One size of gang and job: requests of both starts, and CPU seconds in all its caches.

    `class_a` are those that Google's price list calls so; deletes cost nothing.
    """

    workers: int
    hosts: int
    keys: int
    cold_requests: int
    cold_class_a: int
    cold_deletes: int
    cold_cpu_s: float
    warm_requests: int
    warm_cpu_s: float
    compiled: int


def measure(options: Options, tell: Tell) -> Sequence[Result]:
    """All cells: CPU seconds are the median of the rounds, requests the most of any.

    The largest job is measured once: it takes minutes, and its requests don't vary.
    """
    cells = []
    with open_stage(options, tell, rtt_ms=0.0) as stage:
        for keys in KEYS:
            rounds = options.rounds if keys < KEYS[-1] else 1
            for workers in WORKERS:
                taken = [
                    measure_cell(stage, workers, keys, f"{workers}-{keys}-{number}")
                    for number in range(rounds)
                ]
                cells.append(_combined(taken))
                tell(f"{cells[-1]}")
    return [as_result(cells)]


def measure_cell(stage: Stage, workers: int, keys: int, name: str) -> Cell:
    """One cold and one warm start of a gang."""
    hosts = max(2, workers // _WORKERS_PER_HOST)
    starts = []
    for _ in range(2):
        with stage.fresh_folder() as folder:
            starts.append(_start(stage, f"gs://ours/{name}", folder, hosts, workers, keys))
    (cold, cold_seen), (warm, warm_seen) = starts
    if cold["compiled"] != keys or warm["compiled"] or cold["errors"] or warm["errors"]:
        raise RuntimeError(f"{workers} workers, {keys} keys: cold {cold}, warm {warm}")
    return Cell(
        workers=workers,
        hosts=hosts,
        keys=keys,
        cold_requests=len(cold_seen),
        cold_class_a=sum(request.billed_as == "A" for request in cold_seen),
        cold_deletes=sum(request.billed_as == "free" for request in cold_seen),
        cold_cpu_s=cold["cpu_s"],
        warm_requests=len(warm_seen),
        warm_cpu_s=warm["cpu_s"],
        compiled=cold["compiled"],
    )


def as_result(cells: Sequence[Cell]) -> Result:
    """The row: all requests of the largest job at the most workers, against the fewest.

    Further conditions: each warm start alone, exactly; and each cold one, where every host may
    ask once more, to tell an absent entry from an absent bucket.
    """
    by_size = {(cell.workers, cell.keys): cell for cell in cells}
    conditions = []
    for keys in KEYS:
        few, many = by_size[WORKERS[0], keys], by_size[WORKERS[-1], keys]
        warm = many.warm_requests / few.warm_requests
        conditions.append(Condition(f"warm ratio of {keys} keys", warm, Bound("==", 1.0)))
        more = float(many.cold_requests - few.cold_requests)
        hosts = Bound("<=", float(many.hosts - few.hosts))
        conditions.append(Condition(f"more cold requests of {keys} keys", more, hosts))
    few, many = by_size[WORKERS[0], KEYS[-1]], by_size[WORKERS[-1], KEYS[-1]]
    smallest = by_size[WORKERS[0], KEYS[0]]
    return replace(
        _ROW,
        ours=float(many.cold_requests + many.warm_requests),
        theirs=float(few.cold_requests + few.warm_requests),
        conditions=tuple(conditions),
        beside={
            "cold_requests_a_key": many.cold_requests / many.keys,
            "warm_requests_a_key": many.warm_requests / many.keys,
            "smallest_requests": smallest.cold_requests + smallest.warm_requests,
            "warm_cpu_ms_a_worker_and_key": 1000 * many.warm_cpu_s / many.workers / many.keys,
            "cells": [asdict(cell) for cell in cells],
        },
    )


def plot(cells: Sequence[dict[str, Any]], path: Path = PLOT) -> bool:
    """Draw requests and CPU seconds over workers; False where matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "growth"  # the same picture for the same numbers
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.6))
    for keys, color in zip(KEYS, ("tab:blue", "tab:orange", "tab:green"), strict=True):
        mine = [cell for cell in cells if cell["keys"] == keys]
        workers = [cell["workers"] for cell in mine]
        for start, style in (("cold", "--"), ("warm", "-")):
            for axes, unit in ((left, "requests"), (right, "cpu_s")):
                values = [cell[f"{start}_{unit}"] for cell in mine]
                label = f"{keys} keys, {start}"
                axes.plot(workers, values, style, color=color, marker=".", label=label)
    for axes, title in ((left, "requests at the bucket"), (right, "CPU seconds in the cache")):
        axes.set(xscale="log", yscale="log", title=title, xlabel="workers", xticks=WORKERS)
        axes.set_xticklabels([str(count) for count in WORKERS])
        axes.minorticks_off()
    right.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.02, 1.0))
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
    return True


def _start(
    stage: Stage, location: str, folder: Path, hosts: int, workers: int, keys: int
) -> tuple[dict[str, Any], list[ProxiedRequest]]:
    ended = subprocess.run(
        [sys.executable, str(_GANG), location, str(folder)] + [str(hosts), str(workers), str(keys)],
        env={**stage.environment(), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    if ended.returncode:
        raise RuntimeError(f"{workers} workers, {keys} keys: {ended.stderr[-3000:]}")
    return json.loads(ended.stdout), stage.proxy.requests()


def _combined(cells: Sequence[Cell]) -> Cell:
    return replace(
        cells[0],
        cold_requests=max(cell.cold_requests for cell in cells),
        warm_requests=max(cell.warm_requests for cell in cells),
        cold_cpu_s=statistics.median(cell.cold_cpu_s for cell in cells),
        warm_cpu_s=statistics.median(cell.warm_cpu_s for cell in cells),
    )


_ROW = Result(
    "growth",
    "requests at the bucket of a cold and a warm start, 32 workers on 8 hosts, 1,000 keys, no JAX",
    "2 workers on 2 hosts, the same keys",
    "requests",
    Bound("<=", 1.02),
)
ROWS: tuple[Row, ...] = (Row(_ROW, measure, limit_s=1800),)
