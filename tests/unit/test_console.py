"""What is shown never blocks the run, whatever reads it."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import time
from collections.abc import Iterator
from typing import TextIO

import pytest

from hotstart.launcher.console import Console, Printer
from hotstart.launcher.errors import ExitCode
from hotstart.launcher.outcome import GiveUp, Outcome
from hotstart.launcher.panel import Panel
from hotstart.launcher.placement import GangSize
from hotstart.launcher.workers import Output, Reached

pytestmark = pytest.mark.unit

Pipe = tuple[int, TextIO]
_KEPT_OPEN: list[TextIO] = []


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    """A pipe's read end and a text stream on its other end."""
    reader, writer = os.pipe()
    stream = os.fdopen(writer, "w", encoding="utf-8")
    yield reader, stream
    os.close(reader)
    # The console's thread may be about to point the descriptor elsewhere: nobody else may get it.
    _KEPT_OPEN.append(stream)


def test_console_lines_keep_their_order() -> None:
    stream = io.StringIO()
    console = Console("run", 12, stream)
    console.say("one")
    for number in range(3):
        console.output(Output(number, (f"line {number}", "more")))
        console.say(f"after {number}")
    assert console.flush()
    assert stream.getvalue().splitlines() == [
        "hotstart one",
        *(
            line
            for n in range(3)
            for line in (f"[ {n}] line {n}", f"[ {n}] more", f"hotstart after {n}")
        ),
    ]


def test_printer_nobody_reads_leaves_out_and_says_so_where_it_was(pipe: Pipe) -> None:
    reader, stream = pipe
    printer = Printer(stream, "left out\n", limit_chars=100_000)
    text = "x" * 9_999 + "\n"
    started = time.monotonic()
    for _ in range(1000):
        printer.offer(text)
    printer.put("last\n")
    assert time.monotonic() - started < 5  # it waits for room once
    read = b""
    while not read.endswith(b"last\n"):
        read += os.read(reader, 1 << 16)
    *lines, left_out, last = read.decode().splitlines()
    assert (left_out, last) == ("left out", "last")
    assert set(lines) == {text[:-1]}
    assert 10 < len(lines) < 100
    assert printer.flush(5)


def test_printer_flush_of_a_stalled_reader_is_bounded(pipe: Pipe) -> None:
    printer = Printer(pipe[1], "left out\n")
    printer.put("x" * 1_000_000)
    started = time.monotonic()
    assert not printer.flush(0.1)
    assert time.monotonic() - started < 2
    assert os.read(pipe[0], 1) == b"x"
    while os.read(pipe[0], 1 << 16) == b"x" * (1 << 16):
        pass


def test_console_whose_reader_has_gone_goes_on() -> None:
    reader, writer = os.pipe()
    stream = os.fdopen(writer, "w", encoding="utf-8")
    os.close(reader)
    console = Console("run", 1, stream)
    for _ in range(100):
        console.output(Output(0, ("x" * 1000,)))
    assert console.flush()
    print("what others write to the stream is not an error", file=stream, flush=True)
    stream.close()


def test_console_interrupted_with_a_stalled_reader_lets_nobody_block(pipe: Pipe) -> None:
    stream = pipe[1]
    console = Console("run", 1, stream)
    for _ in range(20):
        console.output(Output(0, ("x" * 100_000,)))
    outcome = Outcome("interrupted", "told to stop", None)
    started = time.monotonic()
    console.attempt_ended(1, outcome, GiveUp(130, "told to stop"))  # type: ignore[arg-type]
    print("y" * 1_000_000, file=stream, flush=True)
    assert time.monotonic() - started < 6


REACHED = (
    Reached(0, "a", "first_step", 7, hits=3, compiled=1),
    Reached(1, "b", "first_step", 9, hits=4),
    Reached(2, "b", "user_code", None),
)


def test_panel_says_where_the_workers_are() -> None:
    now_s = 100.0
    panel = Panel("lm-1", clock=lambda: now_s)
    assert panel.lines() == [] and panel.drawn(80) == ""
    panel.attempt_started(2)
    now_s += 75
    assert panel.lines() == ["lm-1  attempt 2  1:15"]
    for reached in REACHED:
        panel.reached(reached)
    assert panel.lines() == [
        "lm-1  attempt 2  1:15",
        "2 of 3 at steps 7 to 9, 1 before the first program",
        "programs: 7 from the cache, 1 compiled",
    ]
    panel.attempt_started(3)
    assert panel.lines() == ["lm-1  attempt 3  0:00"]


@pytest.mark.parametrize("width", [19, 20, 40, 200])
def test_panel_is_as_wide_as_its_terminal(width: int) -> None:
    panel = Panel("a-run-with-a-long-name-" * 5)
    panel.attempt_started(1)
    panel.reached(REACHED[0])
    plain = re.sub(r"\033\[[0-9;]*m", "", panel.drawn(width))
    assert {len(line) for line in plain.splitlines()} == ({width} if width >= 20 else set())


def test_printer_draws_its_bottom_below_each_text_and_takes_it_away() -> None:
    stream = io.StringIO()
    printer = Printer(stream, "left out\n", bottom=lambda: "==\nP\n")
    printer.put("one\n")
    assert printer.flush(5)
    printer.put("two\n")
    assert printer.flush(5)
    printer.take_bottom_away()
    assert printer.flush(5)
    printer.put("three\n")
    assert printer.flush(5)
    wiped = "\r\033[2A\033[J"
    shown = stream.getvalue().removeprefix("==\nP\n" + wiped)  # where its thread was first
    assert shown == f"one\n==\nP\n{wiped}two\n==\nP\n{wiped}three\n"


def test_console_on_a_terminal_keeps_worker_lines_above_the_panel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    leader, follower = pty.openpty()
    with os.fdopen(follower, "w", encoding="utf-8") as terminal:
        console = Console("lm-1", 1, terminal)
        console.attempt_started(1, GangSize(1, 1, 1, 1))
        console.reached(REACHED[0])
        console.output(Output(0, ("loss 1.5",)))
        assert console.flush(30.0)  # the first drawing imports Rich
        done = Outcome("done", "all 1 workers exited with code 0", None)
        console.attempt_ended(1, done, GiveUp(ExitCode.DONE, "done"))
        console.say("after")
        assert console.flush(30.0)
        seen = ""
        while "after" not in seen:  # a terminal gives what it has so far
            assert select.select([leader], [], [], 30)[0], seen
            seen += os.read(leader, 1 << 16).decode()
    os.close(leader)
    assert "attempt 1  0:" in seen and "step 7" in seen and "attempt 1 done" in seen
    last = seen.rpartition("\033[J")[2]
    assert "after" in last and "step 7" not in last
