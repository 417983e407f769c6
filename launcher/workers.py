"""The worker processes of one host in one attempt: spawn, read, signal, reap.

Each worker is a child in a session of its own, so that it and what it has spawned can be killed
as one process group. Its environment is marked, so that what it has spawned in other sessions
(wandb and TensorBoard do) is found too. Three threads follow it: one reads its output, one its
reports, one waits for its end. All of them hand what they see to `emit`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from hotstart.launcher.channel import Channel
from hotstart.launcher.guard import Guard, kill_marked
from hotstart.launcher.outcome import WorkerExit
from hotstart.launcher.plan import WorkerPlan
from hotstart.launcher.worker import CHANNEL_FD

logger = logging.getLogger(__name__)

LEFT_OUT = "... output left out here; it is in the log"
_MARK = "HOTSTART_WORKER"
_SWEEP_S = 0.02
_MAX_LINE_BYTES = 1 << 16
_MAIN = "from hotstart.launcher.worker import main; main()"


@dataclass(frozen=True)
class Output:
    """Some lines that a worker wrote, without their line ends."""

    process_index: int
    lines: tuple[str, ...]


@dataclass(frozen=True)
class FirstStep:
    """A worker has done its first step; its report at that moment."""

    process_index: int
    report: dict[str, Any] = field(default_factory=dict)


Event = Output | FirstStep | WorkerExit


class WorkerProcess:
    """One worker, from spawn to reap."""

    def __init__(
        self,
        plan: WorkerPlan,
        environ: dict[str, str],
        log: Path,
        guard: Guard,
        emit: Callable[[Event], None],
    ) -> None:
        """Spawn it; the calling thread must live as long as the worker (PR_SET_PDEATHSIG).

        `emit` may block on `Output`, and the worker's pipe with it. Raises OSError.
        """
        self.plan = plan
        self.report: dict[str, Any] = {}
        self._guard = guard
        self._emit = emit
        self._started = time.monotonic()
        self._stopped = False
        self._cache_required = False
        attempt = plan.attempt
        self._mark = f"{attempt.run}/{attempt.attempt}/{plan.process_index}"
        guard.watch_marked(_MARK, self._mark)
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-c", _MAIN],
                    env={**environ, _MARK: self._mark, CHANNEL_FD: str(theirs.fileno())},
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,
                )
        except BaseException:
            ours.close()
            guard.drop_marked(_MARK, self._mark)
            raise
        guard.watch_group(self._process.pid)
        self._channel = Channel(ours)
        self._channel.send(plan.to_json())
        self._ended = threading.Event()
        name = f"worker-{plan.process_index}"
        self._reader = threading.Thread(
            target=self._read_output, args=(log,), name=f"{name}-output", daemon=True
        )
        self._listener = threading.Thread(
            target=self._read_reports, name=f"{name}-reports", daemon=True
        )
        self._reader.start()
        self._listener.start()
        threading.Thread(target=self._wait, name=f"{name}-wait", daemon=True).start()

    def stop(self, grace_s: float, *, ask: bool) -> None:
        """Tell it to end; does not block. With `ask`, user code gets SIGTERM and `grace_s`."""
        self._stopped = True
        self._channel.send({"stop_within_s": grace_s, "ask": ask})
        if ask and not self._ended.is_set():
            # Not to the group: data loaders must outlive a checkpoint that is written now.
            with contextlib.suppress(OSError):
                os.kill(self._process.pid, signal.SIGTERM)

    def kill(self) -> None:
        """End it, and everything that it has spawned, now."""
        self._stopped = True
        if not self._ended.is_set():
            with contextlib.suppress(OSError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def wait(self, deadline: float) -> bool:
        """Whether it has been reaped by `deadline` on the monotonic clock."""
        return self._ended.wait(max(0.0, deadline - time.monotonic()))

    def drain(self, timeout_s: float) -> None:
        """Wait until its last output and report have been read."""
        deadline = time.monotonic() + timeout_s
        for thread in (self._reader, self._listener):
            thread.join(max(0.0, deadline - time.monotonic()))
        self._channel.close()

    def _wait(self) -> None:
        code = self._process.wait()
        at_s = time.monotonic() - self.plan.decided_at
        with contextlib.suppress(OSError):  # data loaders and the like that it left behind
            os.killpg(self._process.pid, signal.SIGKILL)
        self._guard.drop_group(self._process.pid)
        sweep = threading.Thread(target=self._sweep, name="worker-sweep", daemon=True)
        sweep.start()
        sweep.join(_SWEEP_S)  # the next attempt must not wait for it
        if code == 4:  # whether it means the cache is in its last message
            self._listener.join(1.0)
        self._ended.set()
        self._emit(
            WorkerExit(
                process_index=self.plan.process_index,
                exit_code=code if code >= 0 else None,
                signal=-code if code < 0 else None,
                host=socket.gethostname(),
                at_s=at_s,
                stopped=self._stopped,
                cache_required=self._cache_required,
            )
        )

    def _sweep(self) -> None:
        kill_marked(_MARK, self._mark)
        self._guard.drop_marked(_MARK, self._mark)

    def _read_reports(self) -> None:
        stepped = False
        for message in self._channel:
            if "report" in message:
                self.report = message["report"]
                if not stepped and self.report["phases"].get("first_step") is not None:
                    stepped = True
                    self._emit(FirstStep(self.plan.process_index, self.report))
            self._cache_required |= "cache_required" in message

    def _read_output(self, log: Path) -> None:
        pipe: IO[bytes] = self._process.stdout  # type: ignore[assignment]
        with pipe, _Kept(log) as kept:
            rest = b""
            while chunk := os.read(pipe.fileno(), 1 << 16):
                kept.write(chunk)
                *lines, rest = (rest + chunk).split(b"\n")
                if len(rest) > _MAX_LINE_BYTES:  # a progress bar without an end of line
                    lines.append(rest)
                    rest = b""
                if lines:
                    self._emit_lines(lines)
            if rest:
                self._emit_lines([rest])

    def _emit_lines(self, lines: list[bytes]) -> None:
        text = tuple(line.decode(errors="replace").rstrip("\r") for line in lines)
        self._emit(Output(self.plan.process_index, text))


class _Kept:
    """The log file, as far as it can be written: a full disk must not block the worker's pipe."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[bytes] | None = None

    def __enter__(self) -> _Kept:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("ab", buffering=0)
        except OSError as error:
            logger.warning("%s: the output is not kept: %s", self._path, error)
        return self

    def write(self, data: bytes) -> None:
        if self._file is not None:
            try:
                self._file.write(data)
            except OSError as error:
                logger.warning("%s: the output is not kept any more: %s", self._path, error)
                self.__exit__()

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None
