"""The children that an agent keeps for its next attempt: one for each of its workers.

They are spawned a moment after all the workers have done their first step, and import what these
had imported by then (see `standby.py`). A child that can't become a worker any more says which
module is why and ends; another is spawned that leaves out that module and all that follow it.
One that ends unasked is not replaced before the next attempt's first step.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hotstart.launcher.child import Child
from hotstart.launcher.environ import is_same_environ, split_environ
from hotstart.launcher.plan import AttemptPlan, Program

logger = logging.getLogger(__name__)

_AFTER_FIRST_STEP_S = 2.0
_SAID_BYTES = 1 << 12
_END_S = 2.0


class StandbyPool:
    """Safe among threads. Children are told apart by the process index that they are kept for."""

    def __init__(
        self,
        spawn: Callable[[dict[str, str]], Child],
        after_first_step_s: float = _AFTER_FIRST_STEP_S,
    ) -> None:
        """`spawn` makes a child with an environment; it may raise OSError."""
        self._spawn = spawn
        self._after_first_step_s = after_first_step_s
        self._lock = threading.Lock()
        self._kept: dict[int, _Standby] = {}
        self._attempt: AttemptPlan | None = None
        self._environs: dict[int, dict[str, str]] = {}
        self._modules: dict[int, tuple[str, ...]] = {}
        self._timer: threading.Timer | None = None
        self._refused: set[str] = set()  # modules that made a child unfit
        self._crashes = 0

    def begin(self, attempt: AttemptPlan, environs: Mapping[int, dict[str, str]]) -> None:
        """A new attempt has started its workers, with these environments."""
        with self._lock:
            self._stop_timer()
            self._attempt = attempt if attempt.standby else None
            self._environs = {i: split_environ(e)[0] for i, e in environs.items()}
            self._modules = {}

    def stepped(self, process_index: int, modules: list[str]) -> None:
        """A worker has done its first step and has imported these modules by then."""
        with self._lock:
            self._modules[process_index] = tuple(modules)
            if self._attempt is None or self._modules.keys() != self._environs.keys():
                return
            self._stop_timer()
            self._timer = threading.Timer(
                self._after_first_step_s, self._fill, args=(self._attempt,)
            )
            self._timer.daemon = True
            self._timer.start()

    def take(self, process_index: int, environ: Mapping[str, str]) -> Child | None:
        """The child kept for a worker with this environment; it may still be importing.

        One that was kept with another environment is ended.
        """
        with self._lock:
            standby = self._kept.pop(process_index, None)
        if standby is None:
            return None
        if not is_same_environ(standby.child.environ, environ):
            standby.child.kill()
            return None
        return standby.child

    def attempt_is_over(self) -> None:
        """The next one is near: nothing is spawned any more, and imports are not held back."""
        with self._lock:
            self._stop_timer()
            self._attempt = None
            kept = list(self._kept.values())
        for standby in kept:
            standby.child.channel.send({"hurry": True})

    def close(self) -> None:
        """End all; returns when they are reaped, soon."""
        with self._lock:
            self._stop_timer()
            self._attempt = None
            kept = list(self._kept.values())
            self._kept.clear()
        for standby in kept:
            standby.child.kill()
        for standby in kept:
            standby.child.wait(time.monotonic() + _END_S)

    def pids(self) -> dict[int, int]:
        """The process ids of the children kept, by process index."""
        with self._lock:
            return {index: standby.child.pid for index, standby in self._kept.items()}

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _fill(self, attempt: AttemptPlan) -> None:
        for index in range(attempt.process_count):
            if index in self._modules:
                self._keep(attempt, index)

    def _keep(self, attempt: AttemptPlan, index: int) -> None:
        with self._lock:
            if self._attempt is not attempt or index in self._kept or self._crashes > 1:
                return
            environ = self._environs[index]
            known = () if self._crashes else self._modules[index]
        modules = tuple(itertools.takewhile(lambda name: name not in self._refused, known))
        try:
            child = self._spawn(environ)
        except OSError as error:
            logger.warning("no standby for process %d: %s", index, error)
            return
        standby = _Standby(child, attempt, index, self)
        child.attach(standby)
        with self._lock:
            if self._attempt is attempt:
                self._kept[index] = standby
        if self._kept.get(index) is not standby:
            child.kill()
            return
        child.channel.send({"standby": import_order(attempt.program, modules)})

    def _ended(self, standby: _Standby, code: int) -> None:
        with self._lock:
            if self._kept.get(standby.index) is not standby:
                return
            del self._kept[standby.index]
            if standby.unfit is not None and standby.unfit["module"]:
                self._refused.add(standby.unfit["module"])
            elif not standby.ready:
                self._crashes += 1
        why = f"it ended with code {code}"
        if standby.unfit is not None:
            why = f"{standby.unfit['module'] or 'jax'}: {standby.unfit['why']}"
        said = bytes(standby.said).decode(errors="replace").strip()
        logger.warning("the standby of process %d: %s%s", standby.index, why, said and f"\n{said}")
        if not standby.ready:
            self._keep(standby.attempt, standby.index)


def import_order(program: Program, modules: Sequence[str]) -> dict[str, Any]:
    """What `standby.stand_by` goes by: modules to import ahead, in order, for this program."""
    return {"program": dataclasses.asdict(program), "modules": modules}


class _Standby:
    """One child that is kept, and what it has said. A `child.Listener`."""

    def __init__(self, child: Child, attempt: AttemptPlan, index: int, pool: StandbyPool) -> None:
        self.child = child
        self.attempt = attempt
        self.index = index
        self.ready = False
        self.unfit: dict[str, Any] | None = None
        self.said = bytearray()
        self._pool = pool

    def heard(self, message: dict[str, Any]) -> None:
        self.ready |= "ready" in message
        self.unfit = message.get("unfit", self.unfit)

    def printed(self, data: bytes) -> None:
        self.said = (self.said + data)[-_SAID_BYTES:]

    def ended(self, code: int) -> None:
        self.child.drain(time.monotonic() + _END_S)
        self._pool._ended(self, code)
