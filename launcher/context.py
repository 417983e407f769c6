"""What user code may ask of the launcher, and tell it.

Outside a hotstart job every question has the answer of a single fresh process, so a script
that uses this module also runs alone. Nothing here imports Ray or JAX.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

_reporter: Callable[[int], None] | None = None


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
