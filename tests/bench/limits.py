"""A limit on what a row may take, and what is done with one that fails."""

from __future__ import annotations

import contextlib
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from types import FrameType

from tests.bench.results import Result


class RowTimeout(Exception):
    """A row took longer than it may."""


@contextlib.contextmanager
def time_limit(limit_s: float) -> Iterator[None]:
    """Raise `RowTimeout` in the block after `limit_s`; on the main thread only."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise RowTimeout(f"not done within {limit_s:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def guarded(
    row: Result, measure: Callable[[], Sequence[Result]], limit_s: float
) -> Sequence[Result]:
    """What `measure` gives, or `row` with the error where it fails or takes too long."""
    try:
        with time_limit(limit_s):
            return measure()
    except Exception:
        return [replace(row, error=traceback.format_exc(limit=-6))]
