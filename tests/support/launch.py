"""The real `hotstart` command as a user starts it: own home, own temporary folder, bounded waits.

A `Site` is one user's machine for one test. When its block ends it kills what is left, and
`left_behind` tells before that which processes, sockets and files a run has not taken away.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tests.support.ray_process import all_processes, cleared_environ, ray_process

HOTSTART = Path(sys.executable).with_name("hotstart")


@dataclass(frozen=True)
class Finished:
    """How a command ended; `seconds` counts from its start to its end."""

    exit_code: int
    stdout: str
    stderr: str
    seconds: float

    @property
    def report(self) -> dict[str, Any]:
        """The JSON on standard output; of a run that was followed, its report."""
        try:
            return json.loads(self.stdout)
        except json.JSONDecodeError:
            return next(e["report"] for e in reversed(self.events) if e["event"] == "report")

    @property
    def events(self) -> list[dict[str, Any]]:
        """Standard output of a run that was followed with `--json`, whole."""
        return [json.loads(line) for line in self.stdout.splitlines()]

    @property
    def shown(self) -> str:
        """Both streams, for a failing assertion."""
        return f"exit code {self.exit_code}\n{self.stdout}\n{self.stderr}"


class Launched:
    """A command that runs; its output is read as it comes."""

    def __init__(self, command: list[str], environment: Mapping[str, str], folder: Path) -> None:
        self._started = time.monotonic()
        self.popen = subprocess.Popen(
            command,
            env=dict(environment),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            text=True,
            errors="replace",
        )
        self._changed = threading.Condition()
        self._lines: list[tuple[float, str]] = []
        self._stdout: list[str] = []
        self._stderr: list[str] = []
        self._readers = [
            threading.Thread(target=self._read, args=(stream, kept), daemon=True)
            for stream, kept in (
                (self.popen.stdout, self._stdout),
                (self.popen.stderr, self._stderr),
            )
        ]
        for reader in self._readers:
            reader.start()

    @property
    def pid(self) -> int:
        """The driver's process id; it leads a process group of its own."""
        return self.popen.pid

    def output(self) -> str:
        """All lines of both streams so far."""
        with self._changed:
            return "".join(line for _, line in self._lines)

    def wait_for(
        self, pattern: str, timeout_s: float = 60.0, count: int = 1
    ) -> list[re.Match[str]]:
        """Block until `count` lines match; raises AssertionError with the output otherwise."""
        deadline = time.monotonic() + timeout_s
        expression = re.compile(pattern)
        with self._changed:
            while True:
                lines = [line for _, line in self._lines]
                found = [m for line in lines if (m := expression.search(line))]
                left = deadline - time.monotonic()
                if len(found) >= count:
                    return found
                ended = self.popen.poll() is not None and not any(
                    reader.is_alive() for reader in self._readers
                )
                if left <= 0 or ended:
                    why = "the command ended" if ended else f"{timeout_s} s passed"
                    raise AssertionError(f"no {pattern!r} x {count}: {why}\n{''.join(lines)}")
                self._changed.wait(min(left, 0.2))

    def at_s(self, pattern: str) -> float:
        """When the first line that matches came, on the monotonic clock."""
        with self._changed:
            return next(at for at, line in self._lines if re.search(pattern, line))

    def signal(self, number: signal.Signals, *, group: bool = False) -> None:
        """Send a signal to the driver alone, or to its group as a terminal does."""
        (os.killpg if group else os.kill)(self.pid, number)

    def wait(self, timeout_s: float = 90.0) -> Finished:
        """Block until it has ended; kills it and raises AssertionError after `timeout_s`."""
        try:
            code = self.popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            raise AssertionError(f"still running after {timeout_s} s\n{self.output()}") from None
        seconds = time.monotonic() - self._started
        for reader in self._readers:
            reader.join(10)
        return Finished(code, "".join(self._stdout), "".join(self._stderr), seconds)

    def _read(self, stream: IO[str], kept: list[str]) -> None:
        with stream:
            for line in stream:
                with self._changed:
                    kept.append(line)
                    self._lines.append((time.monotonic(), line))
                    self._changed.notify_all()


class Site:
    """One user's machine: home, hotstart's home, temporary folder, and a folder for the job.

    `ray_temp` is the temporary folder of the Ray cluster in use where that is not this site's.
    """

    def __init__(self, root: Path, address: str = "local", ray_temp: Path | None = None) -> None:
        self.root = root
        self.address = address
        self.home = root / "home"
        self.hotstart_home = root / "hotstart"
        self.temp = root / "t"
        self.folder = root / "job"
        self._ray_temp = ray_temp
        for folder in (self.home, self.temp, self.folder):
            folder.mkdir()
        self._launched: list[Launched] = []

    @property
    def runs(self) -> Path:
        """Where runs are recorded."""
        return self.hotstart_home / "runs"

    def environment(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        """What its processes get; nothing of the test's own settings."""
        own = {
            "HOME": str(self.home),
            "TMPDIR": str(self.temp),
            "HOTSTART_HOME": str(self.hotstart_home),
            "RAY_AUTH_MODE": "disabled",
        }
        return {**cleared_environ(), **own, **(more or {})}

    def write(self, name: str, text: str) -> Path:
        """A file in the job's folder, its indentation taken away."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text).lstrip("\n"))
        return path

    def start(
        self, *arguments: str, folder: Path | None = None, env: Mapping[str, str] | None = None
    ) -> Launched:
        """Start `hotstart` with these arguments, in the job's folder unless told otherwise."""
        launched = Launched(
            [str(HOTSTART), *arguments], self.environment(env), folder or self.folder
        )
        self._launched.append(launched)
        return launched

    def run(
        self,
        *arguments: str,
        folder: Path | None = None,
        env: Mapping[str, str] | None = None,
        timeout_s: float = 90.0,
    ) -> Finished:
        """Run `hotstart` to its end."""
        return self.start(*arguments, folder=folder, env=env).wait(timeout_s)

    def launch(self, job: str = "job.yaml", *more: str, **options: Any) -> Finished:
        """`hotstart launch` with this site's Ray, to its end."""
        return self.run("launch", job, "--address", self.address, *more, **options)

    def start_launch(self, job: str = "job.yaml", *more: str, **options: Any) -> Launched:
        """`hotstart launch` with this site's Ray, without waiting."""
        return self.start("launch", job, "--address", self.address, *more, **options)

    def run_names(self) -> list[str]:
        """The runs that are recorded, in order of name."""
        index = self.runs / "index"
        return sorted(p.name for p in index.iterdir()) if index.exists() else []

    def report(self, run: str = "latest") -> dict[str, Any]:
        """What `hotstart report RUN --json` says."""
        finished = self.run("report", run, "--json")
        assert finished.exit_code == 0, finished.shown
        return finished.report

    def log(self, run: str, attempt: int, process_index: int) -> str:
        """The kept output of one worker."""
        name = f"attempt-{attempt:05d}/worker-{process_index:05d}.log"
        return (self.runs / run / "logs" / name).read_text()

    def adopt(self, launched: Launched) -> None:
        """Kill this one too in the end."""
        self._launched.append(launched)

    def left_behind(self) -> list[str]:
        """Processes, sockets and temporary files that are still there, each in words."""
        found = [f"process {pid}: {command}" for pid, command in self._processes()]
        for line in Path("/proc/net/unix").read_text().splitlines():
            path = line.split()[-1]
            if path.startswith(f"{self.temp}/"):
                found.append(f"socket {path}")
        found += [f"file {path}" for path in self.temp.iterdir()]
        if self._ray_temp is not None:
            found += [f"file {path}" for path in self._ray_temp.glob("hotstart-*")]
        return found

    def assert_clean(self, within_s: float = 1.0) -> float:
        """Block until nothing is left; the seconds that took. Raises AssertionError."""
        started = time.monotonic()
        await_true(lambda: not self.left_behind(), within_s, lambda: "\n".join(self.left_behind()))
        return time.monotonic() - started

    def close(self) -> None:
        """Kill what is left and remove the site."""
        for launched in self._launched:
            launched.popen.kill()
            launched.popen.wait()
        deadline = time.monotonic() + 10
        while (left := self._processes()) and time.monotonic() < deadline:
            for pid, _ in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        shutil.rmtree(self.root, ignore_errors=True)

    def _processes(self) -> list[tuple[int, str]]:
        """Living processes of this site: by their TMPDIR, or by the run that they work for."""
        runs = {f"HOTSTART_RUN={name}" for name in self.run_names()}
        found = []
        for pid, environ, command in all_processes():
            ours = f"TMPDIR={self.temp}" in environ or not runs.isdisjoint(environ)
            guards = self._ray_temp is not None and (
                f"TMPDIR={self._ray_temp}" in environ and "guard.py" in command
            )
            if ours or guards:
                found.append((pid, command))
        return found


@contextlib.contextmanager
def site(address: str = "local", ray_temp: Path | None = None) -> Iterator[Site]:
    """A site under /tmp: Unix sockets have short paths only, so not under pytest's folder."""
    made = Site(Path(tempfile.mkdtemp(prefix="hs-", dir="/tmp")), address, ray_temp)
    try:
        yield made
    finally:
        made.close()


@dataclass(frozen=True)
class RayNodes:
    """A Ray cluster of the test's own: its address, temporary folder and processes."""

    address: str
    temp: Path

    def site(self) -> contextlib.AbstractContextManager[Site]:
        """A site that launches on this cluster."""
        return site(self.address, self.temp)


_NODES = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster()
for _ in range(int(sys.argv[1])):
    cluster.add_node(num_cpus=float(sys.argv[2]), include_dashboard=False)
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@contextlib.contextmanager
def ray_nodes(count: int, cpus: int) -> Iterator[RayNodes]:
    """A Ray cluster of `count` raylets on this machine, `cpus` CPUs each. Blocks for seconds."""
    with ray_process(_NODES, str(count), str(cpus)) as cluster:
        yield RayNodes(cluster.answer(), cluster.temp)


def await_true(
    condition: Callable[[], bool], timeout_s: float, shown: Callable[[], str] = lambda: ""
) -> None:
    """Poll until the condition holds; raises AssertionError after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s} s\n{shown()}")
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def parent_of(pid: int) -> int:
    """The parent's process id."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


STEPS = """
    import os, pathlib, signal, subprocess, sys, time
    import jax, jax.numpy as jnp
    from jax.experimental import multihost_utils
    from hotstart.launcher import context

    index, attempt = context.process_index(), context.attempt()
    if "deaf" in sys.argv:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    print("pids", os.getpid(), os.getppid(), child.pid)
    folder = context.checkpoint_dir()
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / f"step-{index}"
    done = int(kept.read_text()) if kept.exists() else 0
    print("resumed at", done)
    advance = jax.jit(lambda x: jnp.tanh(x) @ x)
    for number in range(done + 1, 5):
        advance(jnp.ones((8, 8))).block_until_ready()
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"step {number}")
        kept.write_text(str(number))
        context.step(number)
        print("step", number)
        while number == 2 and attempt == 1:
            time.sleep(0.05)
    print("finished")
"""


@dataclass(frozen=True)
class Pids:
    """The processes behind one worker's prefix."""

    worker: int
    agent: int
    child: int


def wait_for_step(launched: Launched, number: int, workers: int) -> dict[int, Pids]:
    """Block until all workers of `STEPS` have done this step; their processes by index."""
    launched.wait_for(rf"^\[\d+\] step {number}$", count=workers)
    return pids_in(launched.output())


def pids_in(output: str) -> dict[int, Pids]:
    """The processes of the latest attempt in the output of `STEPS`, by process index."""
    found = re.findall(r"^\[(\d+)\] pids (\d+) (\d+) (\d+)$", output, re.MULTILINE)
    return {int(i): Pids(int(worker), int(agent), int(child)) for i, worker, agent, child in found}
