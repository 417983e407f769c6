"""Reads side by side, results in order: of anything, and of the logs of a run in a bucket."""

from __future__ import annotations

import threading

import pytest

from hotstart.cache.errors import TransientError
from hotstart.launcher.in_order import AT_ONCE, in_order
from hotstart.launcher.log_shipping import chunk_name
from hotstart.launcher.run_logs import BucketLogs, Reading
from tests.support.launch import await_true
from tests.support.memory_store import MemoryStore

pytestmark = pytest.mark.unit


def test_in_order_gives_results_in_order_whichever_is_read_first() -> None:
    last_is_read = threading.Event()

    def read(number: int) -> int:
        if number == 0:
            assert last_is_read.wait(5.0)
        if number == 7:
            last_is_read.set()
        return number * number

    assert list(in_order(read, range(8))) == [(n, n * n) for n in range(8)]


def test_in_order_gives_the_first_result_while_others_hang() -> None:
    hangs = threading.Event()
    try:
        results = in_order(lambda n: n if n == 0 else hangs.wait(20.0), range(4))
        assert next(results) == (0, 0)
        results.close()
    finally:
        hangs.set()


@pytest.mark.parametrize(("size_bytes", "expected"), [(0, 5), (10, 3)])
def test_in_order_reads_ahead_within_bounds(size_bytes: int, expected: int) -> None:
    begun: list[int] = []
    hangs = threading.Event()

    def read(number: int) -> None:
        begun.append(number)
        hangs.wait(20.0)

    def take() -> None:
        sizes = {"size_of": lambda number: size_bytes, "ahead_bytes": 30}
        list(in_order(read, range(100), at_once=5, **sizes))

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    await_true(lambda: len(begun) == expected, 5.0)
    hangs.set()
    thread.join(5.0)

    assert sorted(begun) == list(range(100))
    assert sorted(begun[:expected]) == list(range(expected))


def test_in_order_raises_an_error_in_its_place() -> None:
    def read(number: int) -> int:
        if number == 2:
            raise TransientError("503")
        return number

    results, taken = in_order(read, range(9)), []
    with pytest.raises(TransientError, match="503"):
        for number, _ in results:
            taken.append(number)
    assert taken == [0, 1]


def test_in_order_leaves_no_thread_behind() -> None:
    assert next(in_order(lambda n: n, range(100))) == (0, 0)
    await_true(lambda: "hotstart-read" not in {t.name for t in threading.enumerate()}, 5.0)


class SlowBucket(MemoryStore):
    """Answers a read once so many are asked for at the same time."""

    def __init__(self, together: int) -> None:
        super().__init__("gs://bucket/runs/lm-1/logs")
        self.barrier = threading.Barrier(together)
        self.listed: list[str] = []

    def get(self, name: str) -> bytes | None:
        self.barrier.wait(5.0)
        return super().get(name)

    def list(self, prefix: str):
        self.listed.append(prefix)
        return super().list(prefix)


def shipped(workers: int, chunks: int, together: int) -> SlowBucket:
    bucket = SlowBucket(together)
    for worker in range(workers):
        for chunk in range(chunks):
            line = f"line {chunk}\n".encode()
            name = chunk_name(1, worker, chunk * len(line), 1000 * chunk + worker)
            bucket.create(name, line)
    return bucket


def test_logs_of_a_long_run_are_read_side_by_side_and_shown_in_order() -> None:
    reading = Reading(BucketLogs(shipped(1, 8, together=8)), 1)

    assert [lines for _, lines in reading.new_lines()] == [[f"line {n}"] for n in range(8)]


def test_logs_of_a_wide_run_are_read_side_by_side_and_shown_by_time() -> None:
    reading = Reading(BucketLogs(shipped(AT_ONCE // 2, 2, together=AT_ONCE)), 1)

    found = [(index, line) for index, lines in reading.new_lines() for line in lines]
    assert found == [(i, f"line {n}") for n in range(2) for i in range(AT_ONCE // 2)]


def test_log_tails_of_a_wide_run_are_read_side_by_side() -> None:
    reading = Reading(BucketLogs(shipped(8, 3, together=8)), 1)

    found = [(index, line) for index, lines in reading.new_lines(tail=1) for line in lines]
    assert found == [(index, "line 2") for index in range(8)]


def test_logs_of_some_workers_of_a_bucket_list_no_others() -> None:
    bucket = shipped(4, 1, together=2)

    reading = Reading(BucketLogs(bucket), 1, (3, 1))
    assert [index for index, _ in reading.new_lines()] == [1, 3]
    assert sorted(bucket.listed) == ["attempt-00001/worker-00001/", "attempt-00001/worker-00003/"]
