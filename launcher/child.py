"""A child of the agent: a Python process in a session of its own, which is followed to its end.

Its session makes it and what it spawns one process group that can be killed. Its environment has
a mark that no other child has, from its exec on, so that what it spawns in other sessions (wandb
and TensorBoard do) is found too. Three threads follow it: one reads its output, one its messages,
one waits for its end.
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
import uuid
from collections.abc import Mapping
from typing import IO, Any, Protocol

from hotstart.launcher.channel import Channel
from hotstart.launcher.guard import Guard, kill_marked
from hotstart.launcher.worker import CHANNEL_FD, EXIT_CACHE_REQUIRED

logger = logging.getLogger(__name__)

_MARK = "HOTSTART_WORKER"
_SWEEP_S = 0.02
_LAST_MESSAGE_S = 1.0
_MAIN = "from hotstart.launcher.worker import main; main()"


class Listener(Protocol):
    """Is told what a child does, each on a thread of its own; the child waits meanwhile."""

    def heard(self, message: dict[str, Any]) -> None:
        """It has sent a message."""

    def printed(self, data: bytes) -> None:
        """It has written to its standard output or error; no bytes: that has ended."""

    def ended(self, code: int) -> None:
        """It has been reaped, by `subprocess`'s return code. What it wrote may still follow."""


class _Nobody:
    def heard(self, message: dict[str, Any]) -> None:
        pass

    def printed(self, data: bytes) -> None:
        pass

    def ended(self, code: int) -> None:
        pass


class Child:
    """One process, from spawn to reap. It waits for its plan on the channel."""

    def __init__(self, environ: Mapping[str, str], guard: Guard) -> None:
        """Spawn it; the calling thread must live as long as it (PR_SET_PDEATHSIG).

        Nobody reads it before the first `attach`. Raises OSError.
        """
        self.environ = dict(environ)
        self._guard = guard
        self._mark = f"{environ.get('HOTSTART_RUN', '')}/{uuid.uuid4().hex}"
        self._lock = threading.Lock()
        self._listener: Listener | None = None
        self._over = False
        self._reaped = threading.Event()
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
        self.channel = Channel(ours)
        self._threads = [
            threading.Thread(target=run, name=f"child-{self.pid}-{name}", daemon=True)
            for name, run in (
                ("output", self._read_output),
                ("messages", self._read_messages),
                ("wait", self._wait),
            )
        ]

    @property
    def pid(self) -> int:
        """Its process id, and that of its group."""
        return self._process.pid

    def attach(self, listener: Listener) -> bool:
        """Tell `listener` from now on, in place of another; False where it has ended by now."""
        with self._lock:
            if self._over:
                return False
            first, self._listener = self._listener is None, listener
        if first:
            for thread in self._threads:
                thread.start()
        return True

    def signal(self, number: int) -> None:
        """Send a signal to it alone: its data loaders must outlive a checkpoint written now."""
        if not self._reaped.is_set():
            with contextlib.suppress(OSError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """End it, and everything that it has spawned in its session, now."""
        if not self._reaped.is_set():
            with contextlib.suppress(OSError):
                os.killpg(self.pid, signal.SIGKILL)

    def discard(self) -> None:
        """End one that was never attached; it is reaped soon."""
        self.attach(_Nobody())
        self.kill()

    def wait(self, deadline: float) -> bool:
        """Whether it has been reaped by `deadline` on the monotonic clock."""
        return self._reaped.wait(max(0.0, deadline - time.monotonic()))

    def drain(self, deadline: float) -> None:
        """Wait until its last output and message have been read; then close the channel."""
        for thread in self._threads[:2]:
            thread.join(max(0.0, deadline - time.monotonic()))
        self.channel.close()

    def _wait(self) -> None:
        code = self._process.wait()
        with contextlib.suppress(OSError):  # data loaders and the like that it left behind
            os.killpg(self.pid, signal.SIGKILL)
        self._guard.drop_group(self.pid)
        sweep = threading.Thread(target=self._sweep, name="worker-sweep", daemon=True)
        sweep.start()
        sweep.join(_SWEEP_S)  # the next attempt must not wait for it
        if code in (0, EXIT_CACHE_REQUIRED):  # whether it has left, or means the cache, is in its
            self._threads[1].join(_LAST_MESSAGE_S)  # last message
        self._reaped.set()
        with self._lock:
            self._over = True
            listener = self._listener
        if listener is not None:
            listener.ended(code)

    def _sweep(self) -> None:
        kill_marked(_MARK, self._mark)
        self._guard.drop_marked(_MARK, self._mark)

    def _read_messages(self) -> None:
        for message in self.channel:
            try:
                self._told().heard(message)
            except Exception:  # the child is the user's process; what it sends next still counts
                logger.exception("process id %d: a message could not be taken", self.pid)

    def _read_output(self) -> None:
        pipe: IO[bytes] = self._process.stdout  # type: ignore[assignment]
        with pipe:
            while data := os.read(pipe.fileno(), 1 << 16):
                self._told().printed(data)
        self._told().printed(b"")

    def _told(self) -> Listener:
        with self._lock:
            listener = self._listener
        if listener is None:
            raise RuntimeError("a child is read before `attach`")
        return listener
