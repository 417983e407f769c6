"""The agent: one actor a host, which holds the host's bundle for the whole run.

It outlives attempts, so a restart needs no placement and no new actor. It spawns the host's
workers, sees each end at once by waiting for it, and hands what happened to the driver, which
asks for events with a long poll. This class is plain; `gang.py` makes an actor of it.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hotstart.cache.config import node_dir_of
from hotstart.cache.signing import Keyring
from hotstart.launcher.agent_cache import AgentCache
from hotstart.launcher.child import Child
from hotstart.launcher.environ import compose_environ, is_same_environ
from hotstart.launcher.errors import SecretUnavailable
from hotstart.launcher.event_queue import Batch, EventQueue
from hotstart.launcher.first_imports import first_imports
from hotstart.launcher.gce_metadata import MetadataWatch
from hotstart.launcher.guard import Guard
from hotstart.launcher.host_watch import HostWatch, take_stacks
from hotstart.launcher.log_shipping import LogShipper, shipper_to
from hotstart.launcher.outcome import WorkerExit
from hotstart.launcher.owner_watch import OwnerWatch
from hotstart.launcher.plan import AttemptPlan, WorkerPlan
from hotstart.launcher.preemption import PreemptionNotice
from hotstart.launcher.preflight import (
    LOCATION,
    READABLE,
    WorkerFacts,
    agents_read,
    facts_from,
)
from hotstart.launcher.standby_pool import StandbyPool, import_order
from hotstart.launcher.store_check import check_readable
from hotstart.launcher.workers import Event, OnItsOwn, Unowned, WorkerProcess

logger = logging.getLogger(__name__)

_POLL_S = 4.0
_LAST_LOGS_S = 2.0


@dataclass(frozen=True)
class HostInfo:
    """Where an agent lives."""

    host: str
    ip: str
    pid: int


class Agent:
    """Its methods are called by the driver only; each is safe beside a waiting `events`."""

    def __init__(self, ip: str) -> None:
        self._ip = ip
        self._guard = Guard()
        self._scratch = tempfile.mkdtemp(prefix="hotstart-agent-")
        self._guard.watch_folder(self._scratch)
        self._queue = EventQueue()
        self._coordinator_port = socket.socket()
        self._workers: list[WorkerProcess] = []
        self._attempt: AttemptPlan | None = None
        self._early: dict[int, Child] = {}
        self._environ = dict(os.environ)  # of the host: libraries used here set more
        self._starting = threading.Lock()
        self._spawner = _Spawner()
        self._standbys = StandbyPool(self._spawn)
        self._watch = HostWatch()
        self._heard_of: dict[int, WorkerProcess] = {}
        self.cache = AgentCache(ip, self._on_its_own)
        self._keyring: Keyring | None = None
        self._shipper: LogShipper | None = None
        self._owner = OwnerWatch(self._owner_lost)
        self._has_read_store = False
        self._host_notices: list[PreemptionNotice] = []
        self._metadata = MetadataWatch(self._notice_host)

    def describe(self) -> HostInfo:
        """Where this agent lives."""
        return HostInfo(socket.gethostname(), self._ip, os.getpid())

    def free_port(self) -> int:
        """A port of this host that is kept for the coordinator of jax.distributed.

        Until the next one is asked for, nobody gets it who does not share ports (SO_REUSEPORT), as
        the server of jax.distributed does. Between a mere look and that server's start any
        connection of this host could take it, and JAX crashes then.
        """
        port = _bound_port()
        self._coordinator_port.close()
        self._coordinator_port = port
        return int(port.getsockname()[1])

    def prepare(self, attempt: AttemptPlan, processes: tuple[int, ...]) -> None:
        """Spawn the workers of the first attempt, which import ahead and wait for `start`.

        Its coordinator may be another by then. Does nothing where `start` came first, or where a
        secret is not here, as `start` will say. Raises OSError.
        """
        attempt = _settle_node_dir(attempt)
        program = attempt.program
        modules = first_imports(program.script, program.path) if attempt.standby else ()
        order = import_order(program, modules)
        with self._starting:
            for local, index in enumerate(processes if self._attempt is None else ()):
                plan = WorkerPlan(index, local, 0.0, attempt, len(processes))
                try:
                    environ = compose_environ(plan, self._environ)
                except SecretUnavailable:
                    return
                self._early[index] = self._spawn(environ)
                self._early[index].channel.send({"early": order})

    def start(self, attempt: AttemptPlan, processes: tuple[int, ...], elapsed_s: float) -> None:
        """Spawn this host's workers; returns once they are on their way.

        `elapsed_s` is how long ago the attempt was decided, on the driver's clock. Raises OSError;
        those that are on their way by then are ended by `stop` or `close`. Raises
        `SigningKeyError` or `SecretUnavailable` before anything is started.
        """
        decided_at = time.monotonic() - elapsed_s
        attempt = _settle_node_dir(attempt)
        if attempt.cache is not None:
            self._keyring = self.cache.keyring(attempt.cache)
        with self._starting:
            self._attempt = attempt
            notices = list(self._host_notices)
        self._workers = []
        plans = [
            WorkerPlan(index, local, decided_at, attempt, len(processes))
            for local, index in enumerate(processes)
        ]
        environs = {plan.process_index: compose_environ(plan, self._environ) for plan in plans}
        self._standbys.begin(attempt, environs)
        answer = functools.partial(self._answer, attempt.attempt)
        senders = {index: functools.partial(answer, index) for index in processes}
        self.cache.begin(attempt.attempt, senders)
        for plan in plans:  # one by one: where the next fails, the others can be stopped
            self._workers.append(self._start(plan, environs[plan.process_index]))
        self._owner.begin()
        emit = functools.partial(self._emit, attempt.attempt)
        for notice in notices:
            emit(notice)
        self._watch = HostWatch(self._workers, attempt.limits, emit)
        if agents_read(attempt.cache):
            look = threading.Thread(
                target=self._look_at_store, args=(attempt, processes), name="hotstart-look"
            )
            look.daemon = True
            look.start()

    def go_on(self, attempt: int) -> None:
        """Let this host's workers of an attempt enter user code; see `preflight.py`."""
        for worker in self._workers:
            if worker.plan.attempt.attempt == attempt:
                worker.send({"may_go_on": True})

    def tell(self, attempt: int, message: dict[str, Any]) -> None:
        """Send this host's workers of an attempt a message; see `worker.AgentLink`."""
        for worker in self._workers:
            if worker.plan.attempt.attempt == attempt:
                worker.send(message)

    def events(self, cursor: int, beat_age_s: float = 0.0) -> Batch:
        """Events from `cursor` on, and forget those before it; see `owner_watch.py` for the age.

        Blocks until there is one, at most 4 s. Cursors go on from attempt to attempt.
        """
        self._owner.heard(beat_age_s)
        batch = self._queue.after(cursor, _POLL_S)
        self._owner.answered()
        return batch

    def stacks(self) -> dict[int, str]:
        """What the threads of this host's workers do now, by process index; blocks up to 2 s."""
        return take_stacks(self._workers)

    def stop(self, grace_s: float, ask: bool) -> None:
        """End this host's workers; returns when the last one is reaped, soon after `grace_s`.

        With `ask`, user code gets SIGTERM and may end by itself meanwhile; without, the workers
        only flush what is on its way to the store.
        """
        self._begin_to_end()
        self._owner.end()  # `grace_s` bounds it now, and the driver waits and doesn't poll
        if ask:  # the run is over
            self._standbys.close()
        else:
            self._standbys.attempt_is_over()
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

        With them the cursor behind the attempt's last event.
        """
        self._begin_to_end()
        self._owner.end()
        for worker in self._workers:
            worker.drain(1.0)
        reports = {w.plan.process_index: w.report for w in self._workers if w.report}
        self.hurry_logs()
        return reports, self._queue.end

    def hurry_logs(self) -> None:
        """Bring what workers have printed to the run's store now; does not block."""
        if self._shipper is not None:
            self._shipper.hurry()

    def flush_logs(self, timeout_s: float) -> bool:
        """Block until what ended workers have printed is in the run's store; False if it isn't."""
        return self._shipper is None or self._shipper.flush(timeout_s)

    def close(self) -> None:
        """Kill what is left and remove this agent's files."""
        self._begin_to_end()
        self._owner.close()
        self._metadata.close()
        self._standbys.close()
        for child in self._early.values():
            child.discard()
        self.cache.close()
        self._coordinator_port.close()
        for worker in self._workers:
            worker.kill()
        for worker in self._workers:
            worker.wait(time.monotonic() + 2)
        for child in self._early.values():
            child.wait(time.monotonic() + 2)
        if self._shipper is not None:
            self._shipper.close(_LAST_LOGS_S)
        self._guard.close()

    def _start(self, plan: WorkerPlan, environ: dict[str, str]) -> WorkerProcess:
        early = self._early.pop(plan.process_index, None)
        index, attempt = plan.process_index, plan.attempt
        if early is not None and not is_same_environ(early.environ, environ):
            early.discard()
            early = None
        worker = WorkerProcess(
            plan,
            self._log_path(plan),
            Path(self._scratch, f"stacks-{attempt.attempt}-{index}"),
            environ,
            spawn=self._spawn,
            early=early,
            standby=self._standbys.take(index, environ),
            keyring=self._keyring,
            emit=functools.partial(self._emit, attempt.attempt),
            on_message=self._heard,
        )
        if attempt.log_location.startswith("gs://"):
            if self._shipper is None:
                self._shipper = shipper_to(attempt.log_location)
            self._shipper.add(attempt.attempt, index, worker.log)
        return worker

    def _spawn(self, environ: dict[str, str]) -> Child:
        return self._spawner.run(lambda: Child(environ, self._guard))

    def _heard(self, worker: WorkerProcess, message: dict[str, Any]) -> None:
        """What a worker has sent beside its reports, on the thread that reads its messages."""
        if "modules" in message:
            self._standbys.stepped(worker.plan.process_index, message["modules"])
        elif self._attempt is worker.plan.attempt:
            self._heard_of[worker.plan.process_index] = worker
            if "facts" in message:
                index, attempt = worker.plan.process_index, worker.plan.attempt.attempt
                if facts := facts_from(index, socket.gethostname(), message["facts"]):
                    self._emit(attempt, facts)
                return
            self.cache.heard(worker.plan.process_index, message)

    def _answer(self, attempt: int, process_index: int, message: dict[str, Any]) -> None:
        worker = self._heard_of.get(process_index)
        if worker is not None and worker.plan.attempt.attempt == attempt:  # not to its successor
            worker.send(message)

    def _emit(self, attempt: int, event: Event) -> None:
        self._queue.put(attempt, event)  # first: the driver waits for it
        if isinstance(event, WorkerExit):
            self._standbys.attempt_is_over()
            self.cache.gone(event.process_index, attempt)

    def _on_its_own(self, attempt: int) -> None:
        """This host compiles what its gang may compile too; on GPU the attempt is to end then."""
        plan = self._attempt
        if plan is not None and plan.attempt == attempt and plan.platform == "gpu":
            self._emit(attempt, OnItsOwn(socket.gethostname()))

    def _notice_host(self, left_s: float | None, detail: str) -> None:
        """This host is about to go; told to the attempt that runs, or to the next one."""
        notice = PreemptionNotice("metadata", socket.gethostname(), left_s, detail)
        with self._starting:
            self._host_notices.append(notice)
            attempt = self._attempt
        if attempt is not None:
            self._emit(attempt.attempt, notice)

    def _look_at_store(self, attempt: AttemptPlan, processes: tuple[int, ...]) -> None:
        """Say for each worker whether this host can read the store, which it was found to once."""
        if not self._has_read_store:
            assert attempt.cache is not None
            problem = check_readable(attempt.cache)
            self._has_read_store = problem is None
        says = {LOCATION: READABLE if self._has_read_store else f"can't be read: {problem}"}
        for index in processes:
            self._emit(attempt.attempt, WorkerFacts(index, socket.gethostname(), "store", says))

    def _owner_lost(self) -> None:
        """End all workers: their output waits for nobody, and stays in the log."""
        if self._attempt is not None:
            self._queue.open(self._attempt.attempt)
            self._emit(self._attempt.attempt, Unowned(socket.gethostname()))
        for worker in self._workers:
            worker.abandon()
        self.hurry_logs()

    def _begin_to_end(self) -> None:
        """Workers that are to end must not wait for the driver to take their output."""
        self._watch.close()
        if self._attempt is not None:
            self._queue.open(self._attempt.attempt)

    def _log_path(self, plan: WorkerPlan) -> Path:
        location = plan.attempt.log_location
        folder = Path(self._scratch if location.startswith("gs://") else location)
        return folder / _log_name(plan.attempt.attempt, plan.process_index)


class _Spawner:
    """One thread that lives as long as the agent and does all the spawning.

    PR_SET_PDEATHSIG kills a child when the thread that spawned it ends, and an actor's own
    threads come and go.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="hotstart-spawn")

    def run(self, spawn: Callable[[], Child]) -> Child:
        return self._pool.submit(spawn).result()


def _settle_node_dir(attempt: AttemptPlan) -> AttemptPlan:
    """The plan with this host's node directory: a job's `env` may move the workers' home."""
    cache = attempt.cache
    if cache is None or cache.compile != "once":
        return attempt
    settled = dataclasses.replace(cache, node_dir=node_dir_of(cache, has_agent=True))
    return dataclasses.replace(attempt, cache=settled)


def _bound_port() -> socket.socket:
    """A port that is free on all addresses of this host: jax.distributed listens on them all."""
    dual = socket.has_dualstack_ipv6()
    port = socket.socket(socket.AF_INET6 if dual else socket.AF_INET)
    if dual:
        port.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    port.bind(("::" if dual else "", 0))
    return port


def _log_name(attempt: int, process_index: int) -> str:
    return f"attempt-{attempt:05d}/worker-{process_index:05d}.log"
