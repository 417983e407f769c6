"""The text that bytelm learns: the source files of Python's own standard library."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import numpy as np


def read_text(max_bytes: int = 8_000_000) -> np.ndarray:
    """The top-level modules of the standard library in order of name, as one array of uint8.

    Cut off at `max_bytes`. The same on every host that runs the same Python.
    """
    folder = Path(sysconfig.get_path("stdlib"))
    pieces, size = [], 0
    for path in sorted(folder.glob("*.py")):
        if size >= max_bytes:
            break
        pieces.append(path.read_bytes())
        size += len(pieces[-1])
    return np.frombuffer(b"\n".join(pieces)[:max_bytes], np.uint8)


def take_batch(text: np.ndarray, seed: int, step: int, batch: int, length: int) -> np.ndarray:
    """Step `step`'s windows into the text, int32 of shape (batch, length + 1).

    Depends on the arguments alone, so a resumed run sees what an undisturbed one sees.
    """
    starts = np.random.default_rng((seed, step)).integers(0, len(text) - length, size=batch)
    return text[starts[:, None] + np.arange(length + 1)].astype(np.int32)
