"""A worker's log on disk: files that are bounded together, its beginning and its end.

    worker-00000.log                     the first 32 MiB
    worker-00000.log.<offset:015d>       what follows, 8 MiB each; of these the last four stay
    worker-00000.log.times               `offset milliseconds` a line: when output came, by the
                                         host's wall clock, at most once a second, 1 MiB at most

The offset is that of a file's first byte in all that the worker has written, so a gap shows how
much was left out. Read by `run_logs.py`, shipped to buckets by `log_shipping.py`.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

logger = logging.getLogger(__name__)

_TIMES_BYTES = 1 << 20
_TIMES_S = 1.0


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
        self._left_bytes = 0  # room in the open file
        self._end = 0
        self._timed_at: float | None = None
        self._times_bytes = 0
        self._broken = False
        self._closed = threading.Event()
        with self._kept():
            head.parent.mkdir(parents=True, exist_ok=True)
        self.write(b"")

    @property
    def closed(self) -> bool:
        """Whether nothing more will be written."""
        return self._closed.is_set()

    @property
    def end(self) -> int:
        """How many bytes the worker has written, whether or not they are still here."""
        return self._end

    def write(self, data: bytes) -> None:
        """Append; past the bounds the oldest segment goes."""
        if self._broken:
            return
        with self._kept():
            if self._file is None:
                self._open(self.head, self._bounds.head_bytes)
            if data:
                self._note_time()
            while data and self._file is not None:
                if self._left_bytes <= 0:
                    self._next_segment()
                piece, data = data[: self._left_bytes], data[self._left_bytes :]
                self._file.write(piece)
                self._left_bytes -= len(piece)
                self._end += len(piece)

    def close(self) -> None:
        """Nothing more is written."""
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
        return offset, b""

    def _open(self, path: Path, room_bytes: int) -> None:
        self._file = path.open("ab", buffering=0)
        self._left_bytes = room_bytes - self._file.tell()

    def _next_segment(self) -> None:
        if self._file is not None:
            self._file.close()
        path = self.head.with_name(f"{self.head.name}.{self._end:015d}")
        self._open(path, self._bounds.segment_bytes)
        for old in [s for s in segments_of(self.head) if s.offset][: -self._bounds.segments]:
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

    @contextlib.contextmanager
    def _kept(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._broken = True
            if self._file is not None:
                with contextlib.suppress(OSError):
                    self._file.close()
                self._file = None
            logger.warning("%s: the output is not kept: %s", self.head, error)
