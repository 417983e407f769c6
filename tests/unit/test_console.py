"""What is shown never blocks the run, whatever reads it."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Iterator
from typing import TextIO

import pytest

from hotstart.launcher.console import Console, Printer
from hotstart.launcher.outcome import GiveUp, Outcome
from hotstart.launcher.workers import Output

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
