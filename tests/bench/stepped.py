"""Runs the example bytelm with its steps, and its processes, noted in a folder.

step-PID        a line a step: seconds of the system's monotonic clock
worker-INDEX-PID
"""

from __future__ import annotations

import builtins
import os
import runpy
import sys
import time
from pathlib import Path
from typing import Any

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "bytelm"


def run(notes: str, arguments: list[str]) -> None:
    """As `python train.py ARGUMENTS`; `jax.distributed` is initialized."""
    import jax

    folder = Path(notes)
    (folder / f"worker-{jax.process_index()}-{os.getpid()}").touch()
    stock = builtins.print

    def noting(*values: Any, **options: Any) -> None:
        if values and str(values[0]).startswith("step "):
            with (folder / f"step-{os.getpid()}").open("a") as file:
                file.write(f"{time.monotonic()}\n")
        stock(*values, **options)

    sys.argv = ["train.py", *arguments]
    sys.path.insert(0, str(EXAMPLE))
    builtins.print = noting
    runpy.run_path(str(EXAMPLE / "train.py"), run_name="__main__")


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2:])
