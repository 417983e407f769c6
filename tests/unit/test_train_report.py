"""The report of a Ray Train run: files beside its checkpoints, over pyarrow's filesystems."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from pyarrow import fs

from hotstart.cache.counters import CacheStats
from hotstart.launcher.train_report import (
    Place,
    TrainReport,
    WorkerReport,
    attempts_in,
    read_report,
    write_worker,
)
from hotstart.launcher.train_worker import next_attempt

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]


def worker(attempt: int, index: int, **stats: int) -> WorkerReport:
    return WorkerReport(
        place=Place(attempt, index, 2),
        host="h",
        pid=7,
        state="done",
        location="gs://b/cache",
        phases={"cache_enabled": 0.5},
        warnings=("slow",),
        stats=CacheStats(**stats),  # type: ignore[arg-type]
    )


@pytest.fixture(params=["local", "subtree"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[fs.FileSystem, str]:
    """A filesystem that moves files into place, and one whose objects appear when complete."""
    local = fs.LocalFileSystem()
    if request.param == "local":
        return local, str(tmp_path / "run")
    return fs.SubTreeFileSystem(str(tmp_path), local), "run"


def test_report_reads_what_workers_wrote_in_order(place: tuple[fs.FileSystem, str]) -> None:
    filesystem, root = place
    assert next_attempt(filesystem, root) == 1
    written = [worker(1, 0, requests=3), worker(1, 1, hits=2), worker(2, 0, compiled=1)]
    for one in reversed(written):
        write_worker(filesystem, root, one)
    report = read_report(root, filesystem)
    assert report == TrainReport(tuple(written))
    assert report == read_report(SimpleNamespace(path=root, filesystem=filesystem))
    assert (report.attempts, report.of_attempt(1)) == (2, tuple(written[:2]))
    assert next_attempt(filesystem, root) == 3


def test_report_has_the_last_of_what_a_worker_wrote(place: tuple[fs.FileSystem, str]) -> None:
    filesystem, root = place
    write_worker(filesystem, root, worker(1, 0))
    last = replace(worker(1, 0, requests=9), state="failed")
    write_worker(filesystem, root, last)
    assert read_report(root, filesystem).workers == (last,)


def test_report_leaves_out_what_is_none(tmp_path: Path) -> None:
    filesystem, root = fs.LocalFileSystem(), str(tmp_path)
    write_worker(filesystem, root, worker(1, 0))
    folder = tmp_path / "hotstart" / "attempt-00001"
    (folder / "worker-00001.json").write_text('{"attempt": 1, "proc')
    (folder / "worker-00002.json").write_text("[]")
    (folder / "worker-00003.json.new").write_text("{}")
    (tmp_path / "hotstart" / "notes").mkdir()
    assert read_report(root).workers == (worker(1, 0),)
    assert attempts_in(filesystem, root) == [1]


def test_report_of_a_run_without_one_is_empty(tmp_path: Path) -> None:
    report = read_report(str(tmp_path / "nothing"))
    assert (report.workers, report.attempts) == ((), 0)


def test_report_printed_has_a_line_a_worker() -> None:
    report = TrainReport((worker(1, 0, requests=12, hits=2, compiled=10), worker(1, 1)))
    assert str(report).splitlines() == [
        "attempt  worker  state  requests  hits  misses  compiled  compile s",
        "      1       0   done        12     2      10        10        0.0",
        "      1       1   done         0     0       0         0        0.0",
    ]


def test_ray_train_is_imported_by_one_module_which_nothing_imports() -> None:
    importers = [
        path.name
        for package in ("cache", "conf", "launcher")
        for path in (ROOT / package).rglob("*.py")
        if re.search(r"^\s*(from|import) (ray\.train|hotstart\.launcher\.ray_train)\b",
                     path.read_text(), re.MULTILINE)
    ]  # fmt: skip
    assert importers == ["ray_train.py"]
