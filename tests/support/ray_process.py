"""A Ray cluster of a test's own in a process beside it, and what must be gone after it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

_CLEARED = ("HOTSTART_", "JAX_", "RAY_", "XLA_", "GCSFS_", "STORAGE_EMULATOR_HOST")


@dataclass(frozen=True)
class RayProcess:
    """The process that runs a cluster's script, and the cluster's folders."""

    root: Path
    temp: Path
    process: subprocess.Popen[str]

    def answer(self) -> str:
        """The next line that the script prints; AssertionError where it has ended."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        assert line, f"Ray did not start; see {self.temp}/ray"
        return line

    def tell(self, line: str) -> str:
        """Give the script a line; its answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.answer()


@contextlib.contextmanager
def ray_folder() -> Iterator[tuple[Path, Path]]:
    """A folder under /tmp and its temporary folder: Ray's sockets need short paths.

    What still runs with that temporary folder is killed in the end.
    """
    root = Path(tempfile.mkdtemp(prefix="hs-", dir="/tmp"))
    temp = root / "t"
    (temp / "ray").mkdir(parents=True)
    try:
        yield root, temp
    finally:
        kill_all_of(temp)
        shutil.rmtree(root, ignore_errors=True)


@contextlib.contextmanager
def ray_process(script: str, *arguments: str, **environ: str) -> Iterator[RayProcess]:
    """Run a Python script that makes a cluster, until its standard input ends."""
    with ray_folder() as (root, temp):
        process = subprocess.Popen(
            [sys.executable, "-c", script, *arguments],
            env={**ray_environ(root, temp), **environ},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        try:
            yield RayProcess(root, temp, process)
        finally:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=15)
            process.kill()
            process.wait()


def cleared_environ() -> dict[str, str]:
    """The environment without the test's own settings."""
    return {k: v for k, v in os.environ.items() if not k.startswith(_CLEARED)}


def ray_environ(root: Path, temp: Path, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """What a cluster's processes get."""
    own = {"HOME": str(root), "TMPDIR": str(temp), "RAY_AUTH_MODE": "disabled"}
    return {**cleared_environ(), **own, "RAY_USAGE_STATS_ENABLED": "0", **(more or {})}


def kill_all_of(temp: Path) -> int:
    """SIGKILL to all processes with this temporary folder; how many there were."""
    found = [pid for pid, environ, _ in all_processes() if f"TMPDIR={temp}" in environ]
    for pid in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return len(found)


def all_processes() -> Iterator[tuple[int, frozenset[str], str]]:
    """All others: pid, environment (`NAME=value`) and command line."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                environ = frozenset(
                    (entry / "environ").read_bytes().decode(errors="replace").split("\0")
                )
                command = (
                    (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                )
                yield int(entry.name), environ, command.strip()
