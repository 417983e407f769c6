"""Plain Python processes as one `jax.distributed` gang: no launcher, no Ray, stock JAX.

For tests, and the rival that benchmarks compare a launch with. A script joins the gang by
`--distributed COORDINATOR,COUNT,INDEX` and prints a line that starts with `step ` after a step.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType


@dataclass(frozen=True)
class Ended:
    """How one process of a gang ended.

    `exit_code` is negative for a signal, as in `subprocess`. `first_step_s` counts from the
    spawn of this process to its first `step` line; None if it never printed one.
    """

    index: int
    exit_code: int
    output: str
    first_step_s: float | None

    def lines(self, prefix: str) -> list[str]:
        """The output's lines that start with `prefix`."""
        return [line for line in self.output.splitlines() if line.startswith(prefix)]


class PlainGang:
    """`count` processes of one script; kills and reaps what is left when its block ends.

    `environment` is laid over this process's own; None removes a variable. `environment_of` has
    what only the process of an index gets. One process alone gets no `--distributed`.
    """

    def __init__(
        self,
        script: Path | str,
        arguments: Sequence[str] = (),
        *,
        count: int,
        environment: Mapping[str, str | None] | None = None,
        environment_of: Callable[[int], Mapping[str, str]] = lambda index: {},
        python: str = sys.executable,
        folder: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._command = [python, str(script), *arguments]
        self._count = count
        overlay = {"PYTHONUNBUFFERED": "1", **(environment or {})}
        merged = {**os.environ, **overlay}
        self._environment = {name: value for name, value in merged.items() if value is not None}
        self._environment_of = environment_of
        self._folder = folder
        self._clock = clock
        self._processes: list[_Process] = []

    def __enter__(self) -> PlainGang:
        coordinator = f"127.0.0.1:{find_free_port()}"
        try:
            for index in range(self._count):
                joining = ["--distributed", f"{coordinator},{self._count},{index}"]
                command = self._command + (joining if self._count > 1 else [])
                environment = {**self._environment, **self._environment_of(index)}
                self._processes.append(
                    _Process(index, command, environment, self._folder, self._clock)
                )
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.kill()

    def pids(self) -> list[int]:
        """The process ids in order of index."""
        return [process.popen.pid for process in self._processes]

    def wait_for_line(self, index: int, prefix: str, timeout_s: float = 120) -> float:
        """Block until process `index` prints a line with this prefix.

        Returns the seconds from its spawn to that line. Raises `RuntimeError` with its output
        if it ends first, `TimeoutError` when the time is over.
        """
        return self._processes[index].wait_for_line(prefix, timeout_s)

    def kill(self) -> None:
        """SIGKILL every process that still runs, and reap them all. Blocks until it is done."""
        for process in self._processes:
            process.popen.kill()
        for process in self._processes:
            process.end()

    def wait(self, timeout_s: float = 240) -> list[Ended]:
        """Block until all processes have ended; `TimeoutError` with the outputs otherwise."""
        deadline = self._clock() + timeout_s
        for process in self._processes:
            try:
                process.popen.wait(max(0.0, deadline - self._clock()))
            except subprocess.TimeoutExpired:
                self.kill()
                outputs = "\n".join(f"[{p.index}] {p.output()}" for p in self._processes)
                raise TimeoutError(
                    f"process {process.index} still ran after {timeout_s} s\n{outputs}"
                ) from None
        return [process.end() for process in self._processes]


def run_plain_gang(
    script: Path | str,
    arguments: Sequence[str] = (),
    *,
    count: int,
    environment: Mapping[str, str | None] | None = None,
    python: str = sys.executable,
    timeout_s: float = 240,
    kill_at: str | None = None,
) -> list[Ended]:
    """Run a gang to its end, or to process 0's first line that starts with `kill_at`.

    There every process gets SIGKILL. Blocks; raises `TimeoutError`, and `RuntimeError` if
    process 0 ends without that line.
    """
    with PlainGang(script, arguments, count=count, environment=environment, python=python) as gang:
        if kill_at is not None:
            gang.wait_for_line(0, kill_at, timeout_s)
            gang.kill()
        return gang.wait(timeout_s)


def find_free_port() -> int:
    """A TCP port on the loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class _Process:
    """One child and the thread that reads what it prints, standard error included."""

    def __init__(
        self,
        index: int,
        command: Sequence[str],
        environment: Mapping[str, str],
        folder: Path | None,
        clock: Callable[[], float],
    ):
        self.index = index
        self._clock = clock
        self._lines: list[tuple[float, str]] = []
        self._ended = False
        self._changed = threading.Condition()
        self._spawned_at = clock()
        self.popen = subprocess.Popen(
            command,
            env=dict(environment),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            with self._changed:
                self._lines.append((self._clock() - self._spawned_at, line))
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _time_of(self, prefix: str) -> float | None:
        return next((at_s for at_s, line in self._lines if line.startswith(prefix)), None)

    def output(self) -> str:
        with self._changed:
            return "".join(line for _, line in self._lines)

    def wait_for_line(self, prefix: str, timeout_s: float) -> float:
        with self._changed:
            self._changed.wait_for(
                lambda: self._ended or self._time_of(prefix) is not None, timeout_s
            )
            at_s, ended = self._time_of(prefix), self._ended
        if at_s is not None:
            return at_s
        story = f"process {self.index} printed no line {prefix!r}\n{self.output()}"
        raise RuntimeError(f"{story}\nand ended") if ended else TimeoutError(story)

    def end(self) -> Ended:
        """Reap an ended or killed child and read its last lines."""
        exit_code = self.popen.wait()
        # A grandchild may hold the pipe open; it is not ours to wait for.
        self._reader.join(timeout=5)
        with self._changed:
            first_step_s = self._time_of("step ")
        return Ended(self.index, exit_code, self.output(), first_step_s)
