"""The worker processes of one host in one attempt: start, follow, signal, reap.

A worker is a child that is spawned for it, or early, or one that stood by. The latter two say when
they have taken their plan; where one ends before, another child is spawned in its place.
"""

from __future__ import annotations

import logging
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hotstart.cache.keyring import to_text
from hotstart.cache.signing import Keyring
from hotstart.launcher import stacks
from hotstart.launcher.child import Child
from hotstart.launcher.environ import split_environ
from hotstart.launcher.outcome import WorkerExit
from hotstart.launcher.plan import WorkerPlan
from hotstart.launcher.preemption import Leaving, PreemptionNotice, StopPoint
from hotstart.launcher.preflight import WorkerFacts
from hotstart.launcher.progress import PHASES
from hotstart.launcher.watchdog import Stillness
from hotstart.launcher.worker_log import WorkerLog

logger = logging.getLogger(__name__)

LEFT_OUT = "... output left out here; it is in the log"
_MAX_LINE_BYTES = 1 << 16
_TAKE_S = 10.0
_LAST_MESSAGE_S = 1.0
_REACHED_S = 2.0


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


@dataclass(frozen=True)
class Reached:
    """Where a worker is now: the last phase that it has behind it, its last step, its programs."""

    process_index: int
    host: str
    phase: str
    last_step: int | None
    hits: int = 0
    compiled: int = 0


@dataclass(frozen=True)
class Unowned:
    """The agent of this host has not heard of the run's owner and kills its workers."""

    host: str


@dataclass(frozen=True)
class OnItsOwn:
    """This host has lost the coordinator, and compiles what its gang may compile too."""

    host: str


Event = (
    Output
    | FirstStep
    | Reached
    | Unowned
    | OnItsOwn
    | WorkerExit
    | WorkerFacts
    | Stillness
    | PreemptionNotice
    | StopPoint
    | Leaving
)


class WorkerProcess:
    """One worker, from its start to its reaping. A `child.Listener`."""

    def __init__(
        self,
        plan: WorkerPlan,
        log: Path,
        stacks_path: Path,
        environ: dict[str, str],
        *,
        spawn: Callable[[dict[str, str]], Child],
        early: Child | None = None,
        standby: Child | None = None,
        keyring: Keyring | None = None,
        emit: Callable[[Event], None],
        on_message: Callable[[WorkerProcess, dict[str, Any]], None] = lambda worker, message: None,
    ) -> None:
        """Start it in `early` or `standby` where that lives, else in a child that is spawned now.

        Early children import what any worker does, so they may take their time; standbys have
        done so, and one that does not take its plan soon is ended. `environ` is the worker's;
        `stacks_path` is where it writes its stacks when asked. `emit` may block on `Output`, and
        the worker's pipe with it. `on_message` gets what the worker sends beside its reports, on
        the thread that reads them. The signing keys go to it by its channel alone. Raises OSError.
        """
        self.plan = plan
        self.report: dict[str, Any] = {}
        self._environ = environ
        self._keyring = keyring or Keyring()
        self._spawn = spawn
        self._emit = emit
        self._on_message = on_message
        self.log = WorkerLog(log)
        self._stacks = stacks_path
        self._rest = b""
        self._stopped = False
        self._stepped = False
        self._reached: Reached | None = None
        self._reached_at = 0.0
        self._cache_required = ""
        self._left = False
        self._required_by = ""
        self._ended = threading.Event()
        self._taken = threading.Event()
        self._lock = threading.Lock()  # which child it is
        with self._lock:
            kept = early or standby
            self._may_replace = kept is not None and kept.attach(self)
            if kept is not None and self._may_replace:
                self._child = kept
                self._send_plan()
            else:
                self._go_on_in(spawn(environ))
        if self._may_replace and early is None:
            limit = threading.Thread(target=self._limit_take, args=(self._child,), daemon=True)
            limit.start()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._child.pid

    def send(self, message: dict[str, Any]) -> None:
        """Send it a message; blocks while its buffer is full."""
        self._child.channel.send(message)

    def stop(self, grace_s: float, *, ask: bool) -> None:
        """Tell it to end; does not block. With `ask`, user code gets SIGTERM and `grace_s`."""
        with self._lock:
            self._stopped = True
        self.send({"stop_within_s": grace_s, "ask": ask})
        if ask:
            self._child.signal(signal.SIGTERM)

    def write_stacks(self) -> Path | None:
        """Have it write what its threads do; where to. None before its program has begun."""
        if self.report.get("phases", {}).get("user_code") is None:
            return None
        self._child.signal(stacks.SIGNAL)
        return self._stacks

    def abandon(self) -> None:
        """Kill it though nobody has told it to stop; no other starts in its place."""
        with self._lock:
            self._may_replace = False
        self._child.kill()

    def kill(self) -> None:
        """End it, and everything that it has spawned, now."""
        with self._lock:
            self._stopped = True
        self._child.kill()

    def wait(self, deadline: float) -> bool:
        """Whether it has been reaped by `deadline` on the monotonic clock."""
        return self._ended.wait(max(0.0, deadline - time.monotonic()))

    def drain(self, timeout_s: float) -> None:
        """Wait until its last output and report have been read."""
        self._child.drain(time.monotonic() + timeout_s)

    def heard(self, message: dict[str, Any]) -> None:
        """See `child.Listener`."""
        if "report" in message:
            self.report = _report_in(message)
            if not self._stepped and self.report["phases"].get("first_step") is not None:
                self._stepped = True
                self._emit(FirstStep(self.plan.process_index, self.report))
            self._tell_reached()
        elif "cache_required" in message:
            self._cache_required = str(message["cache_required"])
            self._required_by = str(message.get("rule", ""))
        elif "taken" in message:
            self._taken.set()
        elif self._stopped and (message.get("by_signal") or "sigterm" in message):
            pass  # the signal was this agent's own
        elif "left" in message:
            self._left = True
            self._emit(Leaving(self.plan.process_index, _whole(message.get("last_step"))))
        elif "sigterm" in message:
            index = self.plan.process_index
            self._emit(PreemptionNotice("sigterm", socket.gethostname(), process_index=index))
        elif "calls" in message:
            self._emit(StopPoint(self.plan.process_index, _whole(message["calls"])))
        else:
            self._on_message(self, message)

    def printed(self, data: bytes) -> None:
        """See `child.Listener`."""
        if not data:
            if self._rest:
                self._emit_lines([self._rest])
            self.log.close()
            return
        self.log.write(data)
        *lines, rest = (self._rest + data).split(b"\n")
        if len(rest) > _MAX_LINE_BYTES:  # a progress bar without an end of line
            lines.append(rest)
            rest = b""
        self._rest = rest
        if lines:
            self._emit_lines(lines)

    def ended(self, code: int) -> None:
        """See `child.Listener`."""
        at_s = time.monotonic() - self.plan.decided_at
        if self._replace():
            return
        self._emit(  # first: who has waited for the end finds it among the events
            WorkerExit(
                process_index=self.plan.process_index,
                exit_code=code if code >= 0 else None,
                signal=-code if code < 0 else None,
                host=socket.gethostname(),
                at_s=at_s,
                stopped=self._stopped,
                cache_required=self._cache_required,
                left=self._left and code == 0,
                required_by=self._required_by,
            )
        )
        self._ended.set()

    def _tell_reached(self) -> None:
        """Say where it is, each 2 s at most while it only steps."""
        phase = next((p for p in reversed(PHASES) if self.report["phases"].get(p) is not None), "")
        step = self.report.get("last_step")
        step = step if isinstance(step, int) else None
        index, cache = self.plan.process_index, self.report["cache"]
        hits, compiled = (_whole(cache.get(name)) or 0 for name in ("hits", "compiled"))
        reached = Reached(index, socket.gethostname(), phase, step, hits, compiled)
        before, now = self._reached, time.monotonic()
        if reached == before:
            return
        if before is None or before.phase != phase or now - self._reached_at >= _REACHED_S:
            self._reached, self._reached_at = reached, now
            self._emit(reached)

    def _send_plan(self) -> None:
        _, of_attempt = split_environ(self._environ)
        message = {"plan": self.plan.to_json(), "environ": of_attempt, "stacks": str(self._stacks)}
        self.send({**message, "signing_keys": to_text(self._keyring)})

    def _go_on_in(self, child: Child) -> None:
        self._child = child
        child.attach(self)
        self._send_plan()

    def _replace(self) -> bool:
        """Go on in another child where the one that stood by ended before it took the plan."""
        with self._lock:
            child, may_replace = self._child, self._may_replace
        if not may_replace or self._taken.is_set():
            return False
        child.drain(time.monotonic() + _LAST_MESSAGE_S)  # it may have taken the plan and ended
        with self._lock:
            if self._stopped or self._taken.is_set() or not self._may_replace:
                return False
            self._may_replace = False
            logger.info("process %d: the process kept for it has ended", self.plan.process_index)
            try:
                self._go_on_in(self._spawn(self._environ))
            except OSError as error:
                logger.warning("process %d: %s", self.plan.process_index, error)
                return False
            return True

    def _limit_take(self, child: Child) -> None:
        if not self._taken.wait(_TAKE_S):
            child.kill()

    def _emit_lines(self, lines: list[bytes]) -> None:
        text = tuple(line.decode(errors="replace").rstrip("\r") for line in lines)
        self._emit(Output(self.plan.process_index, text))


def _report_in(message: dict[str, Any]) -> dict[str, Any]:
    """Raises ValueError."""
    match message["report"]:
        case {"phases": dict(), "cache": dict()} as report:
            return dict(report)
    raise ValueError("not a report")


def _whole(number: Any) -> int | None:
    return number if isinstance(number, int) else None
