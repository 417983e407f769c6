"""`hotstart submit` as a process, and what it leaves in a bucket."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from hotstart.cache.store import open_store
from hotstart.launcher.record import RunRecord
from hotstart.launcher.runs import resolve_run

BIN = Path(sys.executable).parent


def environ(**extra: str) -> dict[str, str]:
    """This process's environment without what would steer Ray, JAX, hotstart or the store."""
    drop = ("RAY_", "HOTSTART_", "JAX_", "STORAGE_")
    return {k: v for k, v in os.environ.items() if not k.startswith(drop)} | extra


def submit(
    *arguments: object, cwd: Path | None = None, timeout_s: float = 180, **extra: str
) -> subprocess.CompletedProcess[str]:
    """Run it to its end, with `extra` in its environment."""
    return subprocess.run(
        [BIN / "hotstart", "submit", *map(str, arguments)],
        env=environ(**extra),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )


class Following:
    """A submit that goes on in the background, its output in a file."""

    def __init__(self, log: Path, *arguments: object, **extra: str) -> None:
        self._log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [BIN / "hotstart", "submit", *map(str, arguments)],
                env=environ(**extra),
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def output(self) -> str:
        """What it has written so far."""
        return self._log.read_text()

    def wait_for(self, text: str, timeout_s: float = 90) -> None:
        """Block until it has written this."""
        wait_for(lambda: text in self.output or self.process.poll() is not None, text, timeout_s)
        assert text in self.output, self.output

    def interrupt(self) -> int:
        """Ctrl-C; its exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(10)


@contextlib.contextmanager
def following(log: Path, *arguments: object, **extra: str) -> Iterator[Following]:
    """A submit that is killed at the end, where it still runs."""
    made = Following(log, *arguments, **extra)
    try:
        yield made
    finally:
        with contextlib.suppress(OSError):
            made.process.kill()
        made.process.wait()


def only_run(bucket: str) -> RunRecord:
    """The run that was launched last in `BUCKET/runs`."""
    return resolve_run(open_store(f"{bucket}/runs"), "latest")


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float = 60) -> None:
    """Poll until the condition holds; raises AssertionError."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"no {what} after {timeout_s} s"
        time.sleep(0.05)


def processes_with(variable: str, value: str) -> list[psutil.Process]:
    """Living processes that have this in their environment."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            alive = process.status() != psutil.STATUS_ZOMBIE
            if alive and process.environ().get(variable) == value:
                found.append(process)
    return found
