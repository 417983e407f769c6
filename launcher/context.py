"""What user code may ask of the launcher, and tell it.

Outside a hotstart job every question has the answer of a single fresh process, so a script
that uses this module also runs alone. Nothing here imports Ray or JAX.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from hotstart.launcher.worker_notice import WorkerNotice

_reporter: Callable[[int], None] | None = None
_notice: WorkerNotice | None = None


def process_index() -> int:
    """This worker's process index in the gang, from 0."""
    return int(os.environ.get("HOTSTART_PROCESS_INDEX", "0"))


def process_count() -> int:
    """The number of workers in the gang."""
    return int(os.environ.get("HOTSTART_PROCESS_COUNT", "1"))


def attempt() -> int:
    """Which start of the gang this is, from 1."""
    return int(os.environ.get("HOTSTART_ATTEMPT", "1"))


def run_name() -> str | None:
    """The run's name, or None outside a hotstart job."""
    return os.environ.get("HOTSTART_RUN")


def checkpoint_dir() -> Path | str | None:
    """Where this run keeps its checkpoints, the same in every attempt; None outside a job.

    A `Path` under the run's directory, or a `gs://` URL as a string where runs are kept in a
    bucket. The directory may not exist yet.
    """
    location = os.environ.get("HOTSTART_CHECKPOINT_DIR")
    if location is None or location.startswith("gs://"):
        return location
    return Path(location)


def step(number: int) -> None:
    """Say that training step `number` is done. Cheap, never blocks, never raises.

    The first call of an attempt gives the report its "seconds to first step".
    """
    if _reporter is not None:
        _reporter(number)


def preempted() -> bool:
    """Whether to save a checkpoint and leave now, since a host of the gang is about to go.

    Ask it once a step, at the same points of the program in every process: all of them get True
    at the same one, so they may save together. It costs about a microsecond; after a notice,
    one call blocks for a moment, until the processes have agreed. A worker that has got True and
    exits with 0 has left, and the run goes on elsewhere; see `leave`.
    """
    return _notice is not None and _notice.ask()


def on_preemption(callback: Callable[[], None]) -> None:
    """Have `callback` called, once, as soon as there is a notice; at once where there is one.

    It runs on a thread of its own, at another moment in each process: nothing in it may wait for
    the others, as a collective does. A worker whose callback was called and that exits with 0 has
    left.
    """
    if _notice is not None:
        _notice.on_notice(callback)


def leave() -> NoReturn:
    """End this worker so that the run goes on in a next attempt; outside a job, just end.

    Raises SystemExit with code 0: call it on the main thread, after saving. It is charged to
    `restarts.preemptions`, whether or not there was a notice.
    """
    if _notice is not None:
        _notice.leave()
    raise SystemExit(0)
