"""A worker's log on disk: files that are bounded together, its beginning and its end.

    worker-00000.log                     the first 32 MiB
    worker-00000.log.<offset:015d>       what follows, 8 MiB each; of these the last four stay
    worker-00000.log.times               `offset milliseconds` a line: when output came, by the
                                         host's wall clock, at most once a second, 1 MiB at most

The offset is that of a file's first byte in all that the log ever held, so a gap shows how much was
left out. What the disk does not take (it is full, it fails) is tried again with what follows, once
a second; beyond the last 64 KiB it is lost, and a line in its place says how much and why. Read by
`run_logs.py`, shipped to buckets by `log_shipping.py`.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

logger = logging.getLogger(__name__)

_TIMES_BYTES = 1 << 20
_TIMES_S = 1.0
_HELD_BYTES = 64 << 10  # last words are what a reader wants most
_AGAIN_S = 1.0


@dataclass(frozen=True)
class LogBounds:
    """How much of a worker's output is kept: `head_bytes`, and the last `tail_bytes` or more."""

    head_bytes: int = 32 << 20
    segment_bytes: int = 8 << 20
    segments: int = 4

    @property
    def tail_bytes(self) -> int:
        """What is left of the end at least, once output was left out."""
        return self.segment_bytes * (self.segments - 1)


@dataclass(frozen=True)
class Segment:
    """A file of the log and the offset of its first byte."""

    offset: int
    path: Path


def segments_of(head: Path) -> list[Segment]:
    """The files of the log whose first one is `head`, in order. Raises OSError."""
    found = [Segment(0, head)] if head.exists() else []
    for path in head.parent.glob(f"{head.name}.*"):
        suffix = path.name.removeprefix(f"{head.name}.")
        if suffix.isdecimal():
            found.append(Segment(int(suffix), path))
    return sorted(found, key=lambda segment: segment.offset)


def times_of(head: Path) -> list[tuple[int, int]]:
    """Offsets and the milliseconds at which output from there on came, in order."""
    try:
        lines = times_path(head).read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    pairs = [line.split() for line in lines]
    return [(int(p[0]), int(p[1])) for p in pairs if len(p) == 2 and p[0].isdecimal()
            and p[1].isdecimal()]  # fmt: skip


def times_path(head: Path) -> Path:
    """Where a log's times are."""
    return head.with_name(f"{head.name}.times")


class WorkerLog:
    """Writes a log as far as it can be written: a full disk must not block the worker's pipe.

    Safe for one writing thread beside reading ones.
    """

    def __init__(
        self,
        head: Path,
        bounds: LogBounds | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.head = head
        self._bounds = bounds or LogBounds()
        self._clock = clock
        self._wall = wall
        self._file: IO[bytes] | None = None
        self._last = Segment(0, head)  # the one that is written
        self._left_bytes = 0  # room in it
        self._end = 0
        self._at_line_start = True
        self._held = bytearray()  # not written yet
        self._lost_bytes = 0  # before what is held
        self._why = ""
        self._again_at: float | None = None  # while the disk takes nothing
        self._timed_at: float | None = None
        self._times_bytes = 0
        self._closed = threading.Event()
        self._put()

    @property
    def closed(self) -> bool:
        """Whether nothing more will be written."""
        return self._closed.is_set()

    @property
    def end(self) -> int:
        """The offset behind the log's last byte, whether or not all before it are still here."""
        return self._end + (len(self._held) if self.closed else 0)

    def write(self, data: bytes) -> None:
        """Append; past the bounds the oldest segment goes."""
        self._held += data
        if self._again_at is None or self._clock() >= self._again_at:
            self._put()
        over = len(self._held) - _HELD_BYTES
        if self._again_at is not None and over > 0:
            over = self._held.find(b"\n", over) + 1 or over
            del self._held[:over]
            self._lost_bytes += over

    def close(self) -> None:
        """Nothing more is written; what the disk has not taken can still be read from here."""
        self._put()
        if self._lost_bytes:
            self._held[:0] = self._lost_line()
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None
        self._closed.set()

    def read(self, offset: int, limit_bytes: int) -> tuple[int, bytes]:
        """Up to `limit_bytes` from `offset` on, and where they begin: later, if that has gone.

        No bytes at the end, or where the log can't be read.
        """
        try:
            segments = segments_of(self.head)
            for segment, after in zip(segments, [*segments[1:], None], strict=True):
                if after is not None and after.offset <= offset:
                    continue
                start = max(offset, segment.offset)
                with segment.path.open("rb") as file:
                    file.seek(start - segment.offset)
                    data = file.read(limit_bytes)
                if data:
                    return start, data
        except OSError as error:  # gone meanwhile: the next look finds what is there
            logger.debug("%s: %s", self.head, error)
        if self.closed and self._end <= offset:
            return offset, bytes(self._held[offset - self._end :][:limit_bytes])
        return offset, b""

    def _put(self) -> None:
        """Write what is held, as far as the disk takes it."""
        try:
            if self._file is None:
                self._open()
            if self._held:
                self._note_time()
            if self._lost_bytes and self._write(self._lost_line()):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._lost_bytes = 0
            while self._held:
                if self._left_bytes <= 0:
                    self._next_segment()
                piece = self._held[: self._left_bytes]
                del self._held[: len(piece) - self._write(piece)]
        except OSError as error:
            if self._again_at is None:
                logger.warning("%s: the output is not kept: %s", self.head, error)
            self._why = error.strerror or str(error)
            self._again_at = self._clock() + _AGAIN_S
            if self._file is not None:
                with contextlib.suppress(OSError):
                    self._file.close()
                self._file = None
        else:
            if self._again_at is not None:
                logger.warning("%s: the output is kept again", self.head)
            self._again_at = None

    def _write(self, data: bytes | bytearray) -> int:
        """Write to the open file; how many bytes it has not taken: none, or some of a full disk."""
        assert self._file is not None
        written = self._file.write(data)
        self._left_bytes -= written
        self._end += written
        if written:
            self._at_line_start = data[written - 1] == 10
        return len(data) - written

    def _lost_line(self) -> bytes:
        line = f"... {self._lost_bytes} bytes lost here: {self._why}\n".encode()
        return line if self._at_line_start else b"\n" + line

    def _open(self) -> None:
        self.head.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._last.path.open("ab", buffering=0)
        size_bytes = self._file.tell()  # a write that failed may have left a part
        room_bytes = self._bounds.segment_bytes if self._last.offset else self._bounds.head_bytes
        self._left_bytes = room_bytes - size_bytes
        self._end = self._last.offset + size_bytes

    def _next_segment(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        self._last = Segment(self._end, self.head.with_name(f"{self.head.name}.{self._end:015d}"))
        self._open()
        for old in [s for s in segments_of(self.head) if s.offset][: -self._bounds.segments]:
            with contextlib.suppress(OSError):
                old.path.unlink(missing_ok=True)

    def _note_time(self) -> None:
        now = self._clock()
        if self._timed_at is not None and now - self._timed_at < _TIMES_S:
            return
        line = f"{self._end} {int(self._wall() * 1000)}\n".encode()
        if self._times_bytes + len(line) <= _TIMES_BYTES:
            with (
                contextlib.suppress(OSError),
                times_path(self.head).open("ab", buffering=0) as file,
            ):
                file.write(line)
            self._timed_at = now
            self._times_bytes += len(line)
