"""Puts the simulation in the place of the names that the product's modules import.

The product blocks on `threading`, `time` and thread pools of the standard library. Where it does
not take them as arguments, the module's own name for them is replaced while a simulation runs.
That is sound since a module reaches them by that name alone, and since what is put there has the
same meaning (primitives.py). A thread that a module started in another way is found as soon as it
comes to a store, a lock or a clock: the run fails. Locks of modules whose critical sections neither
block nor call anything that does are left as they are.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import random
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

from tests.simulation import primitives
from tests.simulation.world import SimProcess, World

_THREADING = (
    "hotstart.cache.leases",
    "hotstart.cache.shared",
    "hotstart.cache.uploads",
    "hotstart.cache.guarded",
    "hotstart.launcher.agent_cache",
    "hotstart.launcher.agent_resolver",
    "hotstart.launcher.coordinator_link",
    "hotstart.launcher.gang_link",
    "hotstart.launcher.host_cache",
    "hotstart.launcher.host_store",
    "hotstart.launcher.host_uploads",
    "hotstart.launcher.ownership",
    "hotstart.launcher.unleased",
    "hotstart.launcher.upstream",
)
_TIME = (
    "hotstart.cache.serving",
    "hotstart.launcher.attempts",
    "hotstart.launcher.coordinator_link",
    "hotstart.launcher.ownership",
)
_UUID = ("hotstart.cache.leases", "hotstart.cache.lease_view")
_POOLS = ("hotstart.launcher.host_uploads",)
_FUTURES = ("hotstart.launcher.agent_resolver",)


@contextlib.contextmanager
def installed(world: World, more: Sequence[tuple[str, str, Any]] = ()) -> Iterator[None]:
    """The product runs in this world, in tasks of its scheduler, until the end.

    `more` are modules, names in them, and what stands there besides.
    """
    replaced: list[tuple[Any, str, Any]] = []

    def put(module_name: str, name: str, value: Any) -> None:
        module = importlib.import_module(module_name)
        replaced.append((module, name, getattr(module, name)))
        setattr(module, name, value)

    make = {
        name: functools.partial(getattr(primitives, name), world.scheduler)
        for name in ("Lock", "Condition", "Event", "Thread", "Timer", "Future", "Pool")
    }
    threads = SimpleNamespace(
        **make, current_thread=lambda: world.scheduler.check().thread, local=threading.local
    )
    rng = random.Random(f"{world.seed} uuid")
    uuids = SimpleNamespace(uuid4=lambda: uuid.UUID(int=rng.getrandbits(128), version=4))
    try:
        for name in _THREADING:
            put(name, "threading", threads)
        for name in _TIME:
            put(name, "time", _Time(world))
        for name in _UUID:
            put(name, "uuid", uuids)
        for name in _POOLS:
            put(name, "ThreadPoolExecutor", make["Pool"])
        for name in _FUTURES:
            put(name, "Future", make["Future"])
        for name in ("hotstart.cache.lease_holder", "hotstart.launcher.identity"):
            for seam, value in _kernel(world).items():
                put(name, seam, value)
        for module_name, name, value in more:
            put(module_name, name, value)
        with _log_goes_to(world):
            yield
    finally:
        for module, name, value in reversed(replaced):
            setattr(module, name, value)


class Names:
    """A module with some of its names replaced."""

    def __init__(self, module: ModuleType, **names: Any) -> None:
        self._module = module
        self.__dict__.update(names)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


class _Time:
    """`time`, by the clock of the process that asks."""

    def __init__(self, world: World) -> None:
        self._world = world

    def monotonic(self) -> float:
        return self._world.process.monotonic()

    def time(self) -> float:
        return 1e9 + self._world.process.monotonic()

    def sleep(self, delay_s: float) -> None:
        self._world.process.sleep(delay_s)

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


def _kernel(world: World) -> dict[str, Any]:
    """What the kernel tells a process of itself and of others."""

    def here(pid: int) -> SimProcess | None:
        return world.process.host.processes.get(pid)

    def started(pid: int) -> int | None:
        found = here(pid)
        return None if found is None else found.started

    def gone(pid: int, started_: int) -> bool:
        found = here(pid)
        return found is None or found.started != started_

    return {
        "os": SimpleNamespace(getpid=lambda: world.process.pid),
        "socket": SimpleNamespace(gethostname=lambda: world.process.host.name),
        "process_started": started,
        "boot_and_pid_namespace": lambda: (f"boot of {world.process.host.name}", "pid:[1]"),
        "is_certainly_gone": gone,
    }


class _Log(logging.Handler):
    """The product's log, in the trace; a defect that it has caught is a violation."""

    def __init__(self, world: World) -> None:
        super().__init__(logging.INFO)
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.exc_info and record.exc_info[0] is not None:
            text += f" ({record.exc_info[0].__name__}: {record.exc_info[1]})"
        if record.levelno >= logging.ERROR:
            self._world.fail(f"a defect was caught: {text}")
        self._world.note(f"log: {text}")


@contextlib.contextmanager
def _log_goes_to(world: World) -> Iterator[None]:
    logger = logging.getLogger("hotstart")
    before = logger.level, logger.propagate, logger.handlers[:]
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.handlers[:] = [_Log(world)]
    try:
        yield
    finally:
        logger.level, logger.propagate, logger.handlers[:] = before
        logger.setLevel(before[0])
