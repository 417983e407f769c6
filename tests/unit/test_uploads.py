"""The background writer: `submit` goes on, nothing is lost, and no flush waits for ever."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from hotstart.cache.entry import EntryMeta
from hotstart.cache.uploads import Pending, Uploads

pytestmark = pytest.mark.unit

PATIENCE_S = 20.0


class Gate:
    """A `write` that waits until the test opens it, and keeps what came through and where."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.entered = threading.Semaphore(0)
        self.written: list[tuple[str, str]] = []
        self.error: Exception | None = None
        self.succeeds = True

    def __call__(self, pending: Pending) -> bool:
        self.entered.release()
        assert self.open.wait(PATIENCE_S)
        if self.error is not None:
            raise self.error
        self.written.append((pending.key, threading.current_thread().name))
        return self.succeeds

    def keys(self) -> list[str]:
        return sorted(key for key, _ in self.written)


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open.set()


def pending(key: str, size_bytes: int = 1) -> Pending:
    return Pending(key, b"x" * size_bytes, EntryMeta())


def test_submit_while_write_blocks_returns_and_flush_then_waits_for_it(gate):
    uploads = Uploads(gate)

    uploads.submit(pending("a"))
    assert gate.entered.acquire(timeout=PATIENCE_S)
    assert gate.written == []
    assert uploads.flush(0.0) is False

    gate.open.set()
    assert uploads.flush(PATIENCE_S) is True
    assert gate.written == [("a", "hotstart-upload")]


def test_flush_at_its_deadline_is_false_and_names_what_is_open(gate, caplog):
    uploads = Uploads(gate)
    uploads.submit(pending("a"))
    uploads.submit(pending("b"))

    assert uploads.flush(0.05) is False

    assert caplog.messages == ["2 entries were not uploaded within 0.1 s: a, b"]


def test_flush_of_nothing_is_true_at_once(gate):
    assert Uploads(gate).flush(0.0) is True


def test_submit_many_writes_each_once_and_several_at_a_time(gate):
    uploads = Uploads(gate, threads=3)
    for index in range(20):
        uploads.submit(pending(f"{index:02}"))
    for _ in range(3):
        assert gate.entered.acquire(timeout=PATIENCE_S)

    gate.open.set()
    assert uploads.flush(PATIENCE_S) is True

    assert gate.keys() == [f"{index:02}" for index in range(20)]


def test_submit_above_the_budget_writes_on_the_callers_thread(gate):
    uploads = Uploads(gate, threads=1, budget_bytes=10)
    uploads.submit(pending("fits", 8))
    assert gate.entered.acquire(timeout=PATIENCE_S)
    threading.Timer(0.05, gate.open.set).start()

    uploads.submit(pending("inline", 8))

    assert ("inline", threading.current_thread().name) in gate.written
    assert uploads.flush(PATIENCE_S) is True
    assert gate.keys() == ["fits", "inline"]


def test_submit_after_the_budget_is_free_again_is_in_the_background(gate):
    gate.open.set()
    uploads = Uploads(gate, budget_bytes=10)
    for key in ("a", "b", "c"):
        uploads.submit(pending(key, 8))
        assert uploads.flush(PATIENCE_S) is True

    assert gate.written == [(key, "hotstart-upload") for key in ("a", "b", "c")]


def test_find_knows_an_entry_until_it_is_written(gate):
    uploads = Uploads(gate)
    entry = pending("a")
    uploads.submit(entry)

    assert uploads.find("a") is entry
    assert uploads.find("b") is None

    gate.open.set()
    assert uploads.flush(PATIENCE_S) is True
    assert uploads.find("a") is None


def test_find_gives_the_later_of_two_entries_of_one_key_and_both_are_written(gate):
    uploads = Uploads(gate)
    first, second = pending("a"), pending("a")
    uploads.submit(first)
    uploads.submit(second)

    assert uploads.find("a") is second

    gate.open.set()
    assert uploads.flush(PATIENCE_S) is True
    assert gate.keys() == ["a", "a"]


def test_write_that_raises_is_logged_and_the_thread_goes_on(gate, caplog):
    uploads = Uploads(gate, threads=1)
    gate.open.set()
    gate.error = ValueError("broken")
    uploads.submit(pending("bad"))
    assert uploads.flush(PATIENCE_S) is False

    gate.error = None
    uploads.submit(pending("good"))
    assert uploads.flush(PATIENCE_S) is True

    assert gate.keys() == ["good"]
    assert [(r.levelno, r.message) for r in caplog.records] == [
        (logging.ERROR, "writing the entry of bad failed")
    ]


def test_submit_where_no_thread_can_start_writes_on_the_callers_thread(gate, monkeypatch):
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    uploads = Uploads(gate)
    gate.open.set()
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        uploads.submit(pending("inline"))
    uploads.submit(pending("queued"))

    assert uploads.flush(PATIENCE_S) is True
    assert gate.written[0] == ("inline", "MainThread")
    assert gate.keys() == ["inline", "queued"]


def test_flush_after_a_failed_write_is_false_once(gate):
    uploads = Uploads(gate)
    gate.open.set()
    gate.succeeds = False
    uploads.submit(pending("a"))

    assert [uploads.flush(PATIENCE_S) for _ in range(2)] == [False, True]


def test_flush_from_many_threads_returns_in_all(gate):
    uploads = Uploads(gate)
    uploads.submit(pending("a"))
    answers: list[bool] = []
    threads = [
        threading.Thread(target=lambda: answers.append(uploads.flush(PATIENCE_S))) for _ in range(5)
    ]
    for thread in threads:
        thread.start()
    gate.open.set()
    for thread in threads:
        thread.join(PATIENCE_S)

    assert answers == [True] * 5


FORKED = """
import os, threading
from hotstart.cache.entry import EntryMeta
from hotstart.cache.uploads import Pending, Uploads

opened = threading.Event()
written = []

def write(pending):
    if pending.key == "parent":
        opened.wait(20)
    written.append(pending.key)
    return True

uploads = Uploads(write)
uploads.submit(Pending("parent", b"", EntryMeta()))
held, forked = threading.Event(), threading.Event()

def hold():
    with uploads._changed:
        held.set()
        forked.wait(20)

threading.Thread(target=hold).start()
held.wait(20)
child = os.fork()
if child == 0:
    uploads.submit(Pending("child", b"", EntryMeta()))
    right = (uploads.flush(20), uploads.find("parent"), written) == (True, None, ["child"])
    os._exit(0 if right else 1)
_, status = os.waitpid(child, 0)
forked.set()
opened.set()
print(os.waitstatus_to_exitcode(status), uploads.flush(20), written)
"""


def test_forked_child_writes_inline_and_its_flush_does_not_wait_for_the_parent():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKED], capture_output=True, text=True, timeout=60
    )

    assert (done.stdout, done.stderr) == ("0 True ['parent']\n", "")


def test_entries_of_one_key_are_written_one_by_one_and_in_order(gate):
    sizes: list[int] = []
    gate_call = gate.__call__

    def write(entry: Pending) -> bool:
        done = gate_call(entry)
        sizes.append(len(entry.payload))
        return done

    uploads = Uploads(write, threads=3)
    for size_bytes in (1, 2, 3):
        uploads.submit(pending("a", size_bytes))
    uploads.submit(pending("b", 9))
    for _ in range(2):  # one of each key
        assert gate.entered.acquire(timeout=PATIENCE_S)
    assert not gate.entered.acquire(timeout=0.1)

    gate.open.set()
    assert uploads.flush(PATIENCE_S) is True

    assert [size for size in sizes if size != 9] == [1, 2, 3]
