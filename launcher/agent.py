"""The agent: one actor a host, which holds the host's bundle for the whole run.

It outlives attempts, so a restart needs no placement and no new actor. It spawns the host's
workers, sees each end at once by waiting for it, and hands what happened to the driver, which
asks for events with a long poll. This class is plain; `gang.py` makes an actor of it.
"""

from __future__ import annotations

import functools
import logging
import os
import socket
import tempfile
import threading
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hotstart.cache.errors import StoreError
from hotstart.launcher.guard import Guard
from hotstart.launcher.plan import AttemptPlan, WorkerPlan
from hotstart.launcher.workers import LEFT_OUT, Event, Output, WorkerProcess

logger = logging.getLogger(__name__)

_POLL_S = 10.0
_STORE_LOG_S = 10.0
_BATCH_BYTES = 1 << 20
_QUEUE_BYTES = 4 << 20
_LAST_WORDS_BYTES = 1 << 20
_STR_BYTES = 64  # what an empty line costs
STALE_ENVIRON = (
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
        self._queue = EventQueue()
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

        `elapsed_s` is how long ago the attempt was decided, on the driver's clock. Raises OSError;
        those that are on their way by then are ended by `stop` or `close`.
        """
        decided_at = time.monotonic() - elapsed_s
        self._attempt = attempt
        self._workers = []
        plans = [
            WorkerPlan(index, local, decided_at, attempt) for local, index in enumerate(processes)
        ]

        def spawn() -> None:
            for plan in plans:  # one by one: where the next fails, the others can be stopped
                self._workers.append(self._spawn(plan))

        self._spawner.run(spawn)

    def events(self, cursor: int) -> Batch:
        """Events from `cursor` on, and forget those before it.

        Blocks until there is one, at most 10 s. Cursors go on from attempt to attempt.
        """
        return self._queue.after(cursor, _POLL_S)

    def stop(self, grace_s: float, ask: bool) -> None:
        """End this host's workers; returns when the last one is reaped, soon after `grace_s`.

        With `ask`, user code gets SIGTERM and may end by itself meanwhile; without, the workers
        only flush what is on its way to the store.
        """
        self._let_output_go()
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
        self._let_output_go()
        for worker in self._workers:
            worker.drain(1.0)
        reports = {w.plan.process_index: w.report for w in self._workers if w.report}
        self._store_logs()
        return reports, self._queue.end

    def close(self) -> None:
        """Kill what is left and remove this agent's files."""
        self._let_output_go()
        for worker in self._workers:
            worker.kill()
        for worker in self._workers:
            worker.wait(time.monotonic() + 2)
        self._guard.close()

    def _spawn(self, plan: WorkerPlan) -> WorkerProcess:
        attempt = plan.attempt
        environ = {k: v for k, v in os.environ.items() if k not in STALE_ENVIRON}
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
        self._queue.put(attempt, event)

    def _let_output_go(self) -> None:
        """Workers that are to end must not wait for the driver to take their output."""
        if self._attempt is not None:
            self._queue.open(self._attempt.attempt)

    def _log_path(self, plan: WorkerPlan) -> Path:
        location = plan.attempt.log_location
        folder = Path(self._scratch if location.startswith("gs://") else location)
        return folder / _log_name(plan.attempt.attempt, plan.process_index)

    def _store_logs(self) -> None:
        attempt = self._attempt
        if attempt is None or not attempt.log_location.startswith("gs://"):
            return
        from hotstart.cache.store import open_store

        deadline = time.monotonic() + _STORE_LOG_S
        try:
            for worker in self._workers:
                path = self._log_path(worker.plan)
                if path.exists():
                    left_s = max(0.1, deadline - time.monotonic())
                    store = open_store(attempt.log_location, deadline_s=left_s)
                    name = _log_name(attempt.attempt, worker.plan.process_index)
                    store.create(name, path.read_bytes())
        except (StoreError, OSError) as error:
            logger.warning(
                "attempt %d: a worker's log is not in %s: %s",
                attempt.attempt,
                attempt.log_location,
                error,
            )


class EventQueue:
    """What the driver has not taken yet, in order, and of bounded size; safe among threads.

    A worker that prints faster than the driver takes it is made to wait by its full pipe. An
    attempt that is `open` is ending and waits no more; what finds no room is left out then.
    """

    def __init__(self, limit_bytes: int = _QUEUE_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._changed = threading.Condition()
        self._events: deque[tuple[int, Event, int]] = deque()
        self._first = 0  # the cursor of the oldest event that is kept
        self._queued_bytes = 0
        self._open_attempt = -1
        self._cut: set[tuple[int, int]] = set()

    @property
    def end(self) -> int:
        """The cursor behind the last event."""
        with self._changed:
            return self._first + len(self._events)

    def put(self, attempt: int, event: Event) -> None:
        """Add an event; output blocks while there is no room for it, unless its attempt is open."""
        size_bytes = _size_bytes(event)
        with self._changed:
            if isinstance(event, Output):
                self._changed.wait_for(
                    lambda: self._queued_bytes < self._limit_bytes or attempt <= self._open_attempt
                )
                worker = attempt, event.process_index
                if worker in self._cut:
                    return
                if self._queued_bytes >= self._limit_bytes + _LAST_WORDS_BYTES:
                    self._cut.add(worker)
                    event, size_bytes = Output(event.process_index, (LEFT_OUT,)), _STR_BYTES
            self._events.append((attempt, event, size_bytes))
            self._queued_bytes += size_bytes
            self._changed.notify_all()

    def open(self, attempt: int) -> None:
        """Let output of this attempt, and of earlier ones, wait no more."""
        with self._changed:
            self._open_attempt = attempt
            self._changed.notify_all()

    def after(self, cursor: int, timeout_s: float) -> Batch:
        """Events from `cursor` on, about 1 MB at most, and forget those before it.

        Blocks until there is one, at most `timeout_s`.
        """
        with self._changed:
            while self._events and self._first < cursor:
                self._queued_bytes -= self._events.popleft()[2]
                self._first += 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._events, timeout=timeout_s)
            taken: list[tuple[int, Event]] = []
            taken_bytes = 0
            for attempt, event, size_bytes in self._events:
                if taken and taken_bytes + size_bytes > _BATCH_BYTES:
                    break
                taken.append((attempt, event))
                taken_bytes += size_bytes
            return Batch(tuple(taken), self._first + len(taken))


def _size_bytes(event: Event) -> int:
    lines = event.lines if isinstance(event, Output) else ()
    return _STR_BYTES + sum(_STR_BYTES + len(line) for line in lines)


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
