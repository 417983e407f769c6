"""The watchdog's end on a host: its thread, and the stacks of workers that hang."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from hotstart.launcher.watchdog import StillLimits, Stillness, WorkerWatch
from hotstart.launcher.workers import WorkerProcess

MAX_STACKS_BYTES = 256 << 10
_INTERVAL_S = 1.0
_STACKS_S = 2.0
_QUIET_S = 0.2
_POLL_S = 0.02


class HostWatch:
    """Looks at the workers of one attempt once a second; `close` ends it and does not block."""

    def __init__(
        self,
        workers: Sequence[WorkerProcess] = (),
        limits: StillLimits | None = None,
        emit: Callable[[Stillness], None] = lambda said: None,
    ) -> None:
        """`emit` is told which workers are still, and which go on, on a thread of its own."""
        self._emit = emit
        self._over = threading.Event()
        limits = limits or StillLimits()
        host = socket.gethostname()
        self._watched = [
            (worker, WorkerWatch(worker.plan.process_index, host, limits)) for worker in workers
        ]
        set_s = [s for s in (limits.step_s, limits.compile_s) if s is not None]
        self._interval_s = min((_INTERVAL_S, *(s / 4 for s in set_s)))
        if workers and set_s:
            threading.Thread(target=self._run, name="hotstart-watch", daemon=True).start()

    def close(self) -> None:
        """Look no more."""
        self._over.set()

    def _run(self) -> None:
        looked_s = time.monotonic()
        while not self._over.wait(self._interval_s):
            now_s = time.monotonic()
            late_s, looked_s = now_s - looked_s - self._interval_s, now_s
            for worker, watch in self._watched:
                if late_s > self._interval_s:
                    watch.forgive(late_s)
                said = watch.look(worker.report, now_s, is_over=worker.is_over)
                if said is not None:
                    self._emit(said)


def take_stacks(workers: Sequence[WorkerProcess]) -> dict[int, str]:
    """What the threads of workers do now, by process index, at most 256 KiB each.

    Blocks until what they write has stood still for 0.2 s, at most 2 s. A worker that is stopped,
    has ended or has not begun its program is left out.
    """
    deadline = time.monotonic() + _STACKS_S
    asked = {worker.plan.process_index: worker.write_stacks() for worker in workers}
    paths = {index: path for index, path in asked.items() if path is not None}
    sizes: dict[int, int] = {}
    changed_s = time.monotonic()
    while paths and (now_s := time.monotonic()) < deadline:
        before, sizes = sizes, {index: len(_read(path)) for index, path in paths.items()}
        if sizes != before:
            changed_s = now_s
        elif all(sizes.values()) and now_s - changed_s >= _QUIET_S:
            break
        time.sleep(_POLL_S)
    found = {index: _read(path).decode(errors="replace") for index, path in paths.items()}
    return {index: text for index, text in found.items() if text}


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_STACKS_BYTES)
    except OSError:
        return b""
