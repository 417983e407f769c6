"""What the workers of a run have printed, read from the run's store: spans, in order, and gaps.

A directory holds files that grow (`worker_log.py`), a bucket holds chunks (`log_shipping.py`).
Both come down to spans: bytes from an offset on, with the time at which they came, by the wall
clock of the worker's host. Times only decide the order in which workers are shown.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Protocol

from hotstart.cache.errors import StoreError
from hotstart.cache.store import Store
from hotstart.launcher.worker_log import segments_of, times_of

SPAN_BYTES = 256 << 10
_ATTEMPT = re.compile(r"attempt-(\d{5})/")
_HEAD = re.compile(r"worker-(\d{5})\.log")
_CHUNK = re.compile(r"attempt-(\d{5})/worker-(\d{5})/(\d{15})-(\d{13})")


@dataclass(frozen=True)
class Span:
    """Some of a worker's output: where it begins in all of it, and when it came."""

    offset: int
    size_bytes: int
    at_ms: int
    name: str
    start: int  # in the object of this name


class RunLogs(Protocol):
    """The logs of one run. All methods block and may raise `StoreError`."""

    def attempts(self) -> list[int]:
        """The attempts that have logs, in order."""
        ...

    def spans(self, attempt: int) -> dict[int, list[Span]]:
        """What there is now of an attempt, by process index, each in order."""
        ...

    def read(self, span: Span) -> bytes:
        """The bytes of a span; none where it has gone meanwhile."""
        ...


class DirectoryLogs:
    """Logs as agents write them into a run directory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def attempts(self) -> list[int]:
        """The attempts that have logs, in order."""
        try:
            names = [f"{path.name}/" for path in self._folder.iterdir()]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise StoreError(f"{self._folder}: {error.strerror}") from error
        return sorted(int(match[1]) for name in names if (match := _ATTEMPT.fullmatch(name)))

    def spans(self, attempt: int) -> dict[int, list[Span]]:
        """What there is now of an attempt, by process index, each in order."""
        folder = self._folder / f"attempt-{attempt:05d}"
        try:
            heads = [path for path in folder.iterdir() if _HEAD.fullmatch(path.name)]
            return {int(head.name[7:12]): list(_spans_of(head)) for head in sorted(heads)}
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except OSError as error:
            raise StoreError(f"{folder}: {error.strerror}") from error

    def read(self, span: Span) -> bytes:
        """The bytes of a span; none where it has gone meanwhile."""
        try:
            with Path(span.name).open("rb") as file:
                file.seek(span.start)
                return file.read(span.size_bytes)
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise StoreError(f"{span.name}: {error.strerror}") from error


class BucketLogs:
    """Logs as agents ship them to a bucket; `store` is rooted at the run's logs."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def attempts(self) -> list[int]:
        """The attempts that have logs, in order."""
        names = [stat.name for stat in self._store.list("attempt-")]
        return sorted({int(match[1]) for name in names if (match := _CHUNK.fullmatch(name))})

    def spans(self, attempt: int) -> dict[int, list[Span]]:
        """What there is now of an attempt, by process index, each in order."""
        found: dict[int, list[Span]] = {}
        for stat in self._store.list(f"attempt-{attempt:05d}/"):
            if match := _CHUNK.fullmatch(stat.name):
                span = Span(int(match[3]), stat.size_bytes, int(match[4]), stat.name, 0)
                found.setdefault(int(match[2]), []).append(span)
        return found

    def read(self, span: Span) -> bytes:
        """The bytes of a span; none where it has gone meanwhile."""
        return (self._store.get(span.name) or b"")[span.start : span.start + span.size_bytes]


def open_logs(location: str) -> RunLogs:
    """The logs at a run's `log_location`; touches nothing yet."""
    if not location.startswith("gs://"):
        return DirectoryLogs(Path(location))
    from hotstart.cache.store import open_store

    return BucketLogs(open_store(location))


class Reading:
    """Turns spans into lines, from span to span of one attempt; also as it grows."""

    def __init__(self, logs: RunLogs, attempt: int, workers: Sequence[int] | None = None) -> None:
        """`workers` None is all."""
        self.attempt = attempt
        self._logs = logs
        self._workers = workers
        self._next: dict[int, int] = {}
        self._rest: dict[int, bytes] = {}

    def new_lines(self, tail: int | None = None) -> Iterator[tuple[int, list[str]]]:
        """Process index and complete lines of what has come since the last call, by time.

        With `tail`, only the last that many lines of each worker. Blocks; raises `StoreError`.
        """
        spans = self._logs.spans(self.attempt)
        wanted = {i: s for i, s in spans.items() if self._workers is None or i in self._workers}
        streams = []
        for index, there in sorted(wanted.items()):
            start = self._next.get(index, 0)
            if tail is not None:
                start = max(start, self._tail_start(there, tail))
                self._next[index] = start  # what lies before is no gap
            streams.append([(span.at_ms, index, span) for span in _from(there, start)])
        for _, index, span in heapq.merge(*streams, key=lambda item: item[:2]):
            lines = self._lines(index, span)
            if lines:
                yield index, lines

    def last_lines(self) -> Iterator[tuple[int, list[str]]]:
        """What is left where a worker's output had no end of line."""
        for index, rest in sorted(self._rest.items()):
            if rest:
                yield index, [_text(rest)]
        self._rest.clear()

    def _lines(self, index: int, span: Span) -> list[str]:
        data = self._logs.read(span)
        expected, lines = self._next.get(index, 0), []
        if span.offset > expected:
            if rest := self._rest.pop(index, b""):
                lines.append(_text(rest))
            lines.append(left_out(span.offset - expected))
        self._next[index] = span.offset + len(data)
        *whole, rest = (self._rest.get(index, b"") + data).split(b"\n")
        if len(rest) > SPAN_BYTES:  # a progress bar without an end of line
            whole.append(rest)
            rest = b""
        self._rest[index] = rest
        return lines + [_text(line) for line in whole]

    def _tail_start(self, spans: Sequence[Span], lines: int) -> int:
        """Where the last `lines` lines begin; a last line without an end counts as one."""
        wanted, first = lines, True
        for span in reversed(spans):
            data = self._logs.read(span)
            if first and data:
                wanted, first = wanted + data.endswith(b"\n"), False
            ends = [at for at, byte in enumerate(data) if byte == 10]
            if len(ends) >= wanted:
                return span.offset + (ends[-wanted] + 1 if wanted else len(data))
            wanted -= len(ends)
        return spans[0].offset if spans else 0


def left_out(size_bytes: int) -> str:
    """The line that stands where output is missing."""
    return f"... {size_bytes} bytes left out here: more than a log keeps, or lost with their host"


def _text(line: bytes) -> str:
    return line.decode(errors="replace").rstrip("\r")


def _from(spans: Sequence[Span], start: int) -> Iterator[Span]:
    for span in spans:
        if span.offset + span.size_bytes <= start:
            continue
        cut = max(0, start - span.offset)
        yield Span(span.offset + cut, span.size_bytes - cut, span.at_ms, span.name,
                   span.start + cut)  # fmt: skip


def _spans_of(head: Path) -> Iterator[Span]:
    """Spans of one worker's files: a new one where a time is known, 256 KiB at most."""
    times = times_of(head) or [(0, 0)]
    position = 0
    for segment in segments_of(head):
        end = segment.offset + segment.path.stat().st_size
        marks = [segment.offset, *(at for at, _ in times if segment.offset < at < end), end]
        for begin, until in pairwise(marks):
            while position + 1 < len(times) and times[position + 1][0] <= begin:
                position += 1
            for offset in range(begin, until, SPAN_BYTES):
                size_bytes = min(SPAN_BYTES, until - offset)
                yield Span(offset, size_bytes, times[position][1], str(segment.path),
                           offset - segment.offset)  # fmt: skip
