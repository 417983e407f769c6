"""What the workers of a run have printed, read from the run's store: spans, in order, and gaps.

A directory holds files that grow (`worker_log.py`), a bucket holds chunks (`log_shipping.py`).
Both come down to spans: bytes from an offset on, with the time at which they came, by the wall
clock of the worker's host. Times only decide the order in which workers are shown. Spans are read
side by side, a bounded way ahead of what is shown (`in_order.py`).
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Protocol

from hotstart.cache.errors import StoreError
from hotstart.cache.store import Store
from hotstart.launcher.in_order import in_order
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

    def spans(self, attempt: int, workers: Collection[int] | None = None) -> dict[int, list[Span]]:
        """What there is now of an attempt, by process index, each in order; `workers` None: all."""
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

    def spans(self, attempt: int, workers: Collection[int] | None = None) -> dict[int, list[Span]]:
        """What there is now of an attempt, by process index, each in order; `workers` None: all."""
        folder = self._folder / f"attempt-{attempt:05d}"
        try:
            found = [path for path in sorted(folder.iterdir()) if _HEAD.fullmatch(path.name)]
            heads = {int(path.name[7:12]): path for path in found}
            wanted = [index for index in heads if workers is None or index in workers]
            return {index: list(_spans_of(heads[index])) for index in wanted}
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

    def spans(self, attempt: int, workers: Collection[int] | None = None) -> dict[int, list[Span]]:
        """What there is now of an attempt, by process index, each in order; `workers` None: all."""
        folder = f"attempt-{attempt:05d}/"
        prefixes = [folder]
        if workers is not None:  # a listing of all may have thousands of pages
            prefixes = [f"{folder}worker-{index:05d}/" for index in sorted(set(workers))]
        found: dict[int, list[Span]] = {}
        for _, stats in in_order(lambda prefix: list(self._store.list(prefix)), prefixes):
            for stat in stats:
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
        spans = self._logs.spans(self.attempt, self._workers)
        if tail is not None:
            starts = in_order(lambda index: self._tail_start(spans[index], tail), sorted(spans))
            for index, start in starts:
                self._next[index] = max(self._next.get(index, 0), start)  # before it is no gap
        streams = [
            [(span.at_ms, index, span) for span in _from(there, self._next.get(index, 0))]
            for index, there in sorted(spans.items())
        ]
        merged = heapq.merge(*streams, key=lambda item: item[:2])
        whole = in_order(
            lambda item: self._logs.read(item[2]), merged, size_of=lambda item: item[2].size_bytes
        )
        for (_, index, span), data in whole:
            if lines := self._lines(index, span, data):
                yield index, lines

    def last_lines(self) -> Iterator[tuple[int, list[str]]]:
        """What is left where a worker's output had no end of line."""
        for index, rest in sorted(self._rest.items()):
            if rest:
                yield index, [_text(rest)]
        self._rest.clear()

    def _lines(self, index: int, span: Span, data: bytes) -> list[str]:
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
