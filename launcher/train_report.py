"""What the workers of a Ray Train run have done, kept beside its checkpoints.

    STORAGE_PATH/NAME/hotstart/attempt-00001/worker-00000.json

One file a worker and attempt, that its worker alone writes. A run that is fitted again under its
name goes on counting attempts. Works over pyarrow's filesystems, which Ray Train stores with;
nothing here imports Ray.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from hotstart.cache.counters import CacheStats

_FOLDER = "hotstart"
_ATTEMPT = re.compile(r"attempt-(\d{5,})")
_WORKER = re.compile(r"worker-\d{5,}\.json")
_STATS = {f.name for f in dataclasses.fields(CacheStats)}


@dataclass(frozen=True, order=True)
class Place:
    """Which worker of which attempt; attempts count from 1, processes from 0."""

    attempt: int
    process_index: int
    process_count: int


@dataclass(frozen=True)
class WorkerReport:
    """One worker of one attempt.

    state: `done`, `failed` (its function raised, or its group was ended), or `running`: what a
        worker that was killed leaves.
    phases: seconds from the start of its worker group to `cache_enabled`, `distributed` (on CPU),
        `user_code`.
    stats: the cache's counters of that process; `requests`, `hits` and `compiled` first of all.
    """

    place: Place
    host: str
    pid: int
    state: str
    location: str
    phases: dict[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    stats: CacheStats = field(default_factory=CacheStats)

    @property
    def misses(self) -> int:
        """Requests that no stored executable answered."""
        return self.stats.requests - self.stats.hits


@dataclass(frozen=True)
class TrainReport:
    """All workers of all attempts, in order."""

    workers: tuple[WorkerReport, ...]

    @property
    def attempts(self) -> int:
        """The number of the latest attempt; 0 where there is none."""
        return max((w.place.attempt for w in self.workers), default=0)

    def of_attempt(self, attempt: int) -> tuple[WorkerReport, ...]:
        """The workers of one attempt, by process index."""
        return tuple(w for w in self.workers if w.place.attempt == attempt)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"workers": [_to_dict(w) for w in self.workers]}

    def __str__(self) -> str:
        head = ("attempt", "worker", "state", "requests", "hits", "misses", "compiled", "compile s")
        rows = [
            (
                *(w.place.attempt, w.place.process_index, w.state, w.stats.requests),
                *(w.stats.hits, w.misses, w.stats.compiled, f"{w.stats.compile_s:.1f}"),
            )
            for w in self.workers
        ]
        widths = [max(len(str(row[i])) for row in [head, *rows]) for i in range(len(head))]
        lines = [
            "  ".join(str(cell).rjust(width) for cell, width in zip(row, widths, strict=True))
            for row in [head, *rows]
        ]
        return "\n".join(lines)


def read_report(result: Any, filesystem: Any = None) -> TrainReport:
    """The report of a run: `result` is what `fit()` returned, or a path or URI of its folder.

    `filesystem` is pyarrow's, where the run was given one and `result` is a path. Blocks on
    reading one small file a worker and attempt. A file that is no report, or is half written, is
    left out; a run without any has an empty report.
    """
    filesystem, root = _opened(result, filesystem)
    found = [
        report
        for attempt in sorted(attempts_in(filesystem, root))
        for report in _workers(filesystem, f"{root}/{_FOLDER}/attempt-{attempt:05d}")
    ]
    return TrainReport(tuple(sorted(found, key=lambda w: w.place)))


def attempts_in(filesystem: Any, root: str) -> list[int]:
    """The numbers of the attempts that a run's folder has something of."""
    names = [info.base_name for info in _listed(filesystem, f"{root}/{_FOLDER}")]
    return [int(match[1]) for name in names if (match := _ATTEMPT.fullmatch(name))]


def write_worker(filesystem: Any, root: str, report: WorkerReport) -> None:
    """Write one worker's report over its last one. Blocks; raises what `filesystem` raises."""
    place = report.place
    folder = f"{root}/{_FOLDER}/attempt-{place.attempt:05d}"
    path = f"{folder}/worker-{place.process_index:05d}.json"
    data = json.dumps(_to_dict(report)).encode()
    filesystem.create_dir(folder, recursive=True)
    if filesystem.type_name != "local":  # an object appears when it is complete
        with filesystem.open_output_stream(path) as stream:
            stream.write(data)
        return
    with filesystem.open_output_stream(f"{path}.new") as stream:
        stream.write(data)
    filesystem.move(f"{path}.new", path)


def _opened(result: Any, filesystem: Any) -> tuple[Any, str]:
    path = getattr(result, "path", None)
    if path is not None and hasattr(result, "filesystem"):
        return result.filesystem, str(path).rstrip("/")
    if filesystem is not None:
        return filesystem, str(result).rstrip("/")
    from pyarrow import fs

    filesystem, root = fs.FileSystem.from_uri(str(result))
    return filesystem, root.rstrip("/")


def _listed(filesystem: Any, folder: str) -> list[Any]:
    from pyarrow import fs

    return list(filesystem.get_file_info(fs.FileSelector(folder, allow_not_found=True)))


def _workers(filesystem: Any, folder: str) -> Iterator[WorkerReport]:
    for info in _listed(filesystem, folder):
        if not _WORKER.fullmatch(info.base_name):
            continue
        try:
            with filesystem.open_input_stream(info.path) as stream:
                yield _from_dict(json.loads(stream.read()))
        except (OSError, ValueError, KeyError, TypeError):
            continue


def _to_dict(report: WorkerReport) -> dict[str, Any]:
    place = dataclasses.asdict(report.place)
    facts = dataclasses.asdict(report)
    return {**place, **{k: v for k, v in facts.items() if k != "place"}}


def _from_dict(facts: dict[str, Any]) -> WorkerReport:
    stats = {k: v for k, v in facts["stats"].items() if k in _STATS}
    stats["compiled_before_enable_names"] = tuple(stats["compiled_before_enable_names"])
    return WorkerReport(
        place=Place(facts["attempt"], facts["process_index"], facts["process_count"]),
        host=facts["host"],
        pid=facts["pid"],
        state=facts["state"],
        location=facts["location"],
        phases=facts["phases"],
        warnings=tuple(facts["warnings"]),
        stats=CacheStats(**stats),
    )
