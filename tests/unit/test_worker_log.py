"""A worker's log: bounded on disk and in a bucket, read back in order, gaps told."""

from __future__ import annotations

import errno
import functools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest

from hotstart.cache.errors import AccessDenied, RejectedRequest, TransientError
from hotstart.launcher.log_shipping import LogShipper
from hotstart.launcher.run_logs import BucketLogs, DirectoryLogs, Reading, RunLogs
from hotstart.launcher.worker_log import LogBounds, WorkerLog, segments_of
from tests.support.launch import await_true
from tests.support.memory_store import MemoryStore

pytestmark = pytest.mark.unit

SMALL = LogBounds(head_bytes=40, segment_bytes=20, segments=2)


@pytest.fixture
def head(tmp_path: Path) -> Path:
    return tmp_path / "attempt-00001" / "worker-00000.log"


def lines_of(count: int, first: int = 0) -> list[bytes]:
    return [b"line %04d\n" % number for number in range(first, count)]  # 10 bytes each


def shown(logs: RunLogs, attempt: int = 1, tail: int | None = None) -> list[str]:
    reading = Reading(logs, attempt)
    found = [*reading.new_lines(tail), *reading.last_lines()]
    return [f"{index}: {line}" for index, lines in found for line in lines]


def test_log_within_its_bounds_is_one_file(head: Path) -> None:
    log = WorkerLog(head, SMALL)
    for line in lines_of(4):
        log.write(line)
    log.close()

    assert head.read_bytes() == b"".join(lines_of(4))
    assert [s.offset for s in segments_of(head)] == [0]
    assert shown(DirectoryLogs(head.parents[1])) == [f"0: line {n:04d}" for n in range(4)]


def test_log_past_its_bounds_keeps_its_beginning_and_its_end(head: Path) -> None:
    log = WorkerLog(head, SMALL)
    for line in lines_of(100):
        log.write(line)
    log.close()

    assert [s.offset for s in segments_of(head)] == [0, 960, 980]
    assert sum(s.path.stat().st_size for s in segments_of(head)) == 80
    assert shown(DirectoryLogs(head.parents[1])) == [
        *(f"0: line {n:04d}" for n in range(4)),
        "0: ... 920 bytes left out here: more than a log keeps, or lost with their host",
        *(f"0: line {n:04d}" for n in range(96, 100)),
    ]


def test_log_write_larger_than_a_segment_is_cut_into_segments(head: Path) -> None:
    log = WorkerLog(head, SMALL)
    log.write(b"".join(lines_of(9)))

    assert [s.offset for s in segments_of(head)] == [0, 60, 80]
    assert log.read(0, 1000) == (0, b"".join(lines_of(4)))
    assert log.read(40, 1000) == (60, b"".join(lines_of(8, 6)))
    assert log.read(90, 1000) == (90, b"")


@pytest.mark.parametrize(
    ("text", "tail", "expected"),
    [
        (b"a\nb\nc\n", 2, ["0: b", "0: c"]),
        (b"a\nb\nc", 2, ["0: b", "0: c"]),
        (b"a\nb\n", 5, ["0: a", "0: b"]),
        (b"a\nb\n", 0, []),
        (b"\n\n", 1, ["0: "]),
        (b"", 3, []),
    ],
)
def test_log_tail_is_the_last_lines(
    head: Path, text: bytes, tail: int, expected: list[str]
) -> None:
    WorkerLog(head).write(text)

    assert shown(DirectoryLogs(head.parents[1]), tail=tail) == expected


def test_logs_of_several_workers_are_shown_by_time(tmp_path: Path) -> None:
    now = [100.0]
    logs = [
        WorkerLog(
            tmp_path / "attempt-00001" / f"worker-{index:05d}.log",
            clock=lambda: now[0],
            wall=lambda: now[0],
        )
        for index in range(2)
    ]
    for index, text in ((1, b"first\n"), (0, b"second\n"), (1, b"third\n")):
        logs[index].write(text)
        now[0] += 2.0

    assert shown(DirectoryLogs(tmp_path)) == ["1: first", "0: second", "1: third"]


def test_log_that_grows_is_read_on_without_loss_or_twice(head: Path) -> None:
    log = WorkerLog(head)
    reading = Reading(DirectoryLogs(head.parents[1]), 1)
    seen = []
    for text in (b"one\ntw", b"o\nthr\xc3", b"\xa9\xc3\xa9\n", b"rest"):
        log.write(text)
        seen.append([line for _, lines in reading.new_lines() for line in lines])

    assert seen == [["one"], ["two"], ["thréé"], []]
    assert list(reading.last_lines()) == [(0, ["rest"])]


def test_log_that_cannot_be_written_costs_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "attempt-00001").write_text("a file where a folder should be")
    log = WorkerLog(tmp_path / "attempt-00001" / "worker-00000.log")
    for line in lines_of(3):
        log.write(line)
    log.close()

    assert log.closed
    assert [r.message.partition(":")[2] for r in caplog.records] == [
        f" the output is not kept: [Errno 17] File exists: '{tmp_path}/attempt-00001'"
    ]


class FailingDisk:
    """What opens a log's files, on a disk of which each write may be told to fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.error: OSError | None = None
        self.takes_bytes = 1 << 30  # then it is full
        opened = Path.open

        def open_(path: Path, mode: str = "r", **more: object) -> object:
            file = opened(path, mode, **more)  # type: ignore[call-overload]
            return self.File(self, file) if mode == "ab" else file

        monkeypatch.setattr(Path, "open", open_)

    class File:
        def __init__(self, disk: FailingDisk, file: BinaryIO) -> None:
            self._disk, self._file = disk, file

        def write(self, data: bytes) -> int:
            disk = self._disk
            if disk.error is None and data and not disk.takes_bytes:
                raise OSError(errno.ENOSPC, "No space left on device")
            if disk.error is not None:
                raise disk.error
            taken = self._file.write(data[: disk.takes_bytes])
            disk.takes_bytes -= taken
            return taken

        def __getattr__(self, name: str) -> object:
            return getattr(self._file, name)

        def __enter__(self) -> object:
            return self

        def __exit__(self, *error: object) -> None:
            self._file.close()


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> FailingDisk:
    return FailingDisk(monkeypatch)


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_log_goes_on_after_one_error_and_loses_nothing_that_it_could_hold(
    head: Path, disk: FailingDisk, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    log = WorkerLog(head, clock=clock)
    log.write(b"one\n")
    disk.error = OSError(errno.EIO, "Input/output error")
    log.write(b"two\n")
    disk.error = None
    log.write(b"three\n")  # at once: not tried yet
    assert head.read_bytes() == b"one\n"
    clock.now_s += 1.0
    log.write(b"four\n")

    assert head.read_bytes() == b"one\ntwo\nthree\nfour\n"
    assert log.end == 19
    assert [r.message.partition(": ")[2] for r in caplog.records] == [
        "the output is not kept: [Errno 5] Input/output error",
        "the output is kept again",
    ]


def test_log_on_a_full_disk_says_what_was_lost_and_keeps_the_latest(
    head: Path, disk: FailingDisk
) -> None:
    clock = Clock()
    log = WorkerLog(head, clock=clock, wall=clock)
    disk.takes_bytes = 20 + len(b"0 100000\n")
    log.write(b"0123456789\nabcdefghijklm\n")  # 9 bytes of its second line are taken
    assert log.end == 20
    for number in range(7000):
        log.write(b"line %04d\n" % number)  # 70,000 bytes: more than it holds
    disk.takes_bytes = 1 << 30
    clock.now_s += 1.0
    log.write(b"the end\n")
    log.close()

    lines = shown(DirectoryLogs(head.parents[1]))
    assert lines[:3] == [
        "0: 0123456789",
        "0: abcdefghi",
        "0: ... 4475 bytes lost here: No space left on device",
    ]
    assert lines[3:] == [*(f"0: line {number:04d}" for number in range(447, 7000)), "0: the end"]


def test_log_of_a_disk_that_stays_full_gives_its_last_words_to_the_bucket(
    head: Path, disk: FailingDisk, bucket: Bucket, shipper: Callable[..., LogShipper]
) -> None:
    log, ships = WorkerLog(head, wall=lambda: 0.0), shipper()
    disk.takes_bytes = 6 + len(b"0 0\n")
    ships.add(1, 0, log)
    log.write(b"first\n")
    log.write(b"No space left on device\n")
    log.close()

    assert ships.flush(5.0) is True
    assert shown(BucketLogs(bucket)) == ["0: first", "0: No space left on device"]


class Bucket(MemoryStore):
    """Fails creates for a while, or refuses deletes."""

    def __init__(self) -> None:
        super().__init__("gs://bucket/runs/lm-1/logs")
        self.failures = 0
        self.may_delete = True

    def create(self, name: str, data: bytes) -> bool:
        if self.failures:
            self.failures -= 1
            raise TransientError("503")
        return super().create(name, data)

    def delete(self, name: str, generation: int) -> bool:
        if not self.may_delete:
            raise AccessDenied("no storage.objects.delete")
        return super().delete(name, generation)


def is_shipped(bucket: Bucket, end: int) -> bool:
    spans = BucketLogs(bucket).spans(1).get(0, [])
    return any(span.offset + span.size_bytes == end for span in spans)


@pytest.fixture
def bucket() -> Bucket:
    return Bucket()


@pytest.fixture
def shipper(bucket: Bucket) -> Callable[..., LogShipper]:
    made: list[LogShipper] = []

    def make(bounds: LogBounds | None = None) -> LogShipper:
        made.append(LogShipper(lambda: bucket, bounds, interval_s=lambda age_s: 0.01))
        return made[-1]

    yield make
    for each in made:
        each.close(0.0)


def test_shipping_brings_output_while_the_worker_lives(
    head: Path, bucket: Bucket, shipper: Callable[..., LogShipper]
) -> None:
    log, ships = WorkerLog(head), shipper()
    ships.add(1, 0, log)
    log.write(b"one\n")
    await_true(lambda: shown(BucketLogs(bucket)) == ["0: one"], 5.0)
    log.write(b"two")
    log.close()

    assert ships.flush(5.0) is True
    assert shown(BucketLogs(bucket)) == ["0: one", "0: two"]
    assert BucketLogs(bucket).attempts() == [1]


def test_shipping_through_failures_loses_nothing_and_warns_once(
    head: Path,
    bucket: Bucket,
    shipper: Callable[..., LogShipper],
    caplog: pytest.LogCaptureFixture,
) -> None:
    bucket.failures = 5
    log, ships = WorkerLog(head), shipper()
    for line in lines_of(50):
        log.write(line)
    log.close()
    ships.add(3, 7, log)
    await_true(lambda: bucket.failures == 0, 5.0)

    assert ships.flush(5.0) is True
    assert shown(BucketLogs(bucket), attempt=3) == [f"7: line {n:04d}" for n in range(50)]
    assert [r.message for r in caplog.records] == [
        "workers' logs are not in the run's store for now: 503"
    ]


def test_shipping_of_one_log_that_the_store_refuses_does_not_hold_up_the_others(
    head: Path, bucket: Bucket, shipper: Callable[..., LogShipper]
) -> None:
    create = bucket.create

    def refuses(name: str, data: bytes) -> bool:
        if "worker-00000" in name:
            raise RejectedRequest("400")
        return create(name, data)

    bucket.create = refuses  # type: ignore[method-assign]
    ships = shipper()
    for index in range(2):
        log = WorkerLog(head.with_name(f"worker-{index:05d}.log"))
        log.write(b"one\n")
        ships.add(1, index, log)

    await_true(lambda: shown(BucketLogs(bucket)) == ["1: one"], 5.0)


def test_shipping_past_the_bounds_keeps_beginning_and_end_in_the_bucket_too(
    head: Path, bucket: Bucket, shipper: Callable[..., LogShipper]
) -> None:
    log, ships = WorkerLog(head), shipper(SMALL)
    ships.add(1, 0, log)
    for number, line in enumerate(lines_of(30)):
        log.write(line)
        await_true(functools.partial(is_shipped, bucket, 10 * (number + 1)), 5.0)
    log.close()
    assert ships.flush(5.0) is True

    assert shown(BucketLogs(bucket)) == [
        *(f"0: line {n:04d}" for n in range(4)),
        "0: ... 220 bytes left out here: more than a log keeps, or lost with their host",
        *(f"0: line {n:04d}" for n in range(26, 30)),
    ]


def test_shipping_where_nothing_may_be_deleted_keeps_the_beginning_and_the_last_words(
    head: Path, bucket: Bucket, shipper: Callable[..., LogShipper]
) -> None:
    bucket.may_delete = False
    log, ships = WorkerLog(head), shipper(SMALL)
    ships.add(1, 0, log)
    for number, line in enumerate(lines_of(9)):
        log.write(line)
        await_true(functools.partial(is_shipped, bucket, 10 * (number + 1)), 5.0)
    kept = len(list(bucket.list("")))
    for line in lines_of(60, 9):
        log.write(line)
    log.write(b"Traceback\n")
    assert ships.flush(0.1) is False
    assert len(list(bucket.list(""))) == kept
    log.close()
    assert ships.flush(5.0) is True

    assert shown(BucketLogs(bucket))[-1] == "0: Traceback"


def test_shipping_of_a_bucket_that_never_answers_is_given_up_at_the_timeout(
    head: Path, shipper: Callable[..., LogShipper], bucket: Bucket
) -> None:
    hangs = threading.Event()
    bucket.create = lambda name, data: hangs.wait(20)  # type: ignore[method-assign]
    log, ships = WorkerLog(head), shipper()
    log.write(b"one\n")
    log.close()
    ships.add(1, 0, log)
    try:
        assert ships.flush(0.1) is False
    finally:
        hangs.set()
