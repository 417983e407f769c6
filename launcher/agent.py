"""The agent: one actor a host, which holds the host's bundle for the whole run.

It outlives attempts, so a restart needs no placement and no new actor. It spawns the host's
workers, sees each end at once by waiting for it, and hands what happened to the driver, which
asks for events with a long poll. This class is plain; `gang.py` makes an actor of it.
"""

from __future__ import annotations

import functools
import os
import socket
import tempfile
import threading
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hotstart.launcher.guard import Guard
from hotstart.launcher.plan import AttemptPlan, WorkerPlan
from hotstart.launcher.workers import Event, WorkerProcess

_POLL_S = 10.0
_STALE_ENVIRON = (
    "JAX_COMPILATION_CACHE_DIR",
    "JAX_COORDINATOR_ADDRESS",
    "JAX_COORDINATOR_BIND_ADDRESS",
    "JAX_NUM_PROCESSES",
    "JAX_PROCESS_ID",
    "JAX_LOCAL_DEVICE_IDS",
)


@dataclass(frozen=True)
class HostInfo:
    """Where an agent lives."""

    host: str
    ip: str
    pid: int


@dataclass(frozen=True)
class Batch:
    """Events from a cursor on, each with its attempt, and the cursor that follows them."""

    events: tuple[tuple[int, Event], ...]
    next_cursor: int


class Agent:
    """Its methods are called by the driver only; each is safe beside a waiting `events`."""

    def __init__(self, ip: str) -> None:
        self._ip = ip
        self._guard = Guard()
        self._scratch = tempfile.mkdtemp(prefix="hotstart-agent-")
        self._guard.watch_folder(self._scratch)
        self._changed = threading.Condition()
        self._events: deque[tuple[int, Event]] = deque()
        self._first = 0  # the cursor of the oldest event that is kept
        self._workers: list[WorkerProcess] = []
        self._attempt: AttemptPlan | None = None
        self._spawner = _Spawner()

    def describe(self) -> HostInfo:
        """Where this agent lives."""
        return HostInfo(socket.gethostname(), self._ip, os.getpid())

    def free_port(self) -> int:
        """A port of this host that nobody listens on just now."""
        with socket.socket() as probe:
            probe.bind((self._ip, 0))
            return int(probe.getsockname()[1])

    def start(self, attempt: AttemptPlan, processes: tuple[int, ...], elapsed_s: float) -> None:
        """Spawn this host's workers; returns once they are on their way.

        `elapsed_s` is how long ago the attempt was decided, on the driver's clock.
        """
        decided_at = time.monotonic() - elapsed_s
        self._attempt = attempt
        plans = [
            WorkerPlan(index, local, decided_at, attempt) for local, index in enumerate(processes)
        ]
        self._workers = self._spawner.run(lambda: [self._spawn(plan) for plan in plans])

    def events(self, cursor: int) -> Batch:
        """Events from `cursor` on, and forget those before it.

        Blocks until there is one, at most 10 s. Cursors go on from attempt to attempt.
        """
        with self._changed:
            while self._events and self._first < cursor:
                self._events.popleft()
                self._first += 1
            self._changed.wait_for(lambda: self._events, timeout=_POLL_S)
            return Batch(tuple(self._events), self._first + len(self._events))

    def stop(self, grace_s: float, ask: bool) -> None:
        """End this host's workers; returns when the last one is reaped, soon after `grace_s`.

        With `ask`, user code gets SIGTERM and may end by itself meanwhile; without, the workers
        only flush what is on its way to the store.
        """
        for worker in self._workers:
            worker.stop(grace_s, ask=ask)
        deadline = time.monotonic() + grace_s + 0.3
        for worker in self._workers:
            if not worker.wait(deadline):
                worker.kill()
        for worker in self._workers:
            worker.wait(time.monotonic() + 5)

    def finish(self) -> tuple[dict[int, dict[str, Any]], int]:
        """The reports of this host's workers by process index, once all have ended.

        With them the cursor behind the attempt's last event. Logs that could not be written into
        the run's folder are stored there now.
        """
        for worker in self._workers:
            worker.drain(1.0)
        reports = {w.plan.process_index: w.report for w in self._workers if w.report}
        self._store_logs()
        with self._changed:
            return reports, self._first + len(self._events)

    def close(self) -> None:
        """Kill what is left and remove this agent's files."""
        for worker in self._workers:
            worker.kill()
        for worker in self._workers:
            worker.wait(time.monotonic() + 2)
        self._guard.close()

    def _spawn(self, plan: WorkerPlan) -> WorkerProcess:
        attempt = plan.attempt
        environ = {k: v for k, v in os.environ.items() if k not in _STALE_ENVIRON}
        environ |= {
            "PYTHONUNBUFFERED": "1",
            "HOTSTART_RUN": attempt.run,
            "HOTSTART_ATTEMPT": str(attempt.attempt),
            "HOTSTART_PROCESS_INDEX": str(plan.process_index),
            "HOTSTART_PROCESS_COUNT": str(attempt.process_count),
        }
        environ |= attempt.environ
        emit = functools.partial(self._emit, attempt.attempt)
        return WorkerProcess(plan, environ, self._log_path(plan), self._guard, emit)

    def _emit(self, attempt: int, event: Event) -> None:
        with self._changed:
            self._events.append((attempt, event))
            self._changed.notify_all()

    def _log_path(self, plan: WorkerPlan) -> Path:
        location = plan.attempt.log_location
        folder = Path(self._scratch if location.startswith("gs://") else location)
        return folder / _log_name(plan.attempt.attempt, plan.process_index)

    def _store_logs(self) -> None:
        attempt = self._attempt
        if attempt is None or not attempt.log_location.startswith("gs://"):
            return
        from hotstart.cache.store import open_store

        store = open_store(attempt.log_location)
        for worker in self._workers:
            path = self._log_path(worker.plan)
            if path.exists():
                store.create(
                    _log_name(attempt.attempt, worker.plan.process_index), path.read_bytes()
                )


class _Spawner:
    """One thread that lives as long as the agent and does all the spawning.

    PR_SET_PDEATHSIG kills a child when the thread that spawned it ends, and an actor's own
    threads come and go.
    """

    def __init__(self) -> None:
        from concurrent.futures import ThreadPoolExecutor

        self._pool = ThreadPoolExecutor(1, thread_name_prefix="hotstart-spawn")

    def run(self, spawn: Any) -> Any:
        return self._pool.submit(spawn).result()


def _log_name(attempt: int, process_index: int) -> str:
    return f"attempt-{attempt:05d}/worker-{process_index:05d}.log"
