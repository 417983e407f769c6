"""A standby's side: import ahead what a worker will import, and wait for its plan.

The worker of an attempt says at its first step which third-party modules it has imported, in
order (`modules_to_import`). A standby imports these, and jax, and nothing of the user's own:
what the program itself consists of may have changed by the next attempt, or do things. The
workers of a first attempt, which start before its plan is there, do the same with what their
script imports first (`first_imports.py`).

A standby must not differ from a fresh worker by more than what it has in memory. It is unfit,
and ends, where an import has started a thread that is no daemon, has initialized a backend or
`jax.distributed`, or has loaded another module than the worker would have: the program's path
comes in front of everything in a worker, but a standby does without it.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.util
import os
import site
import sys
import sysconfig
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from hotstart.launcher.channel import Channel
from hotstart.launcher.first_imports import is_own
from hotstart.launcher.plan import Program
from hotstart.launcher.worker_facts import installed

_OURS = ("hotstart.cache.", "hotstart.conf.", "hotstart.launcher.")
_LAZY = getattr(importlib.util, "_LazyModule", ())  # looking into one loads it


def stand_by(
    channel: Channel,
    messages: Iterator[dict[str, Any]],
    order: Mapping[str, Any],
    *,
    in_background: bool,
) -> dict[str, Any]:
    """Import, then wait for the message with a plan and return it; its environment is in place.

    A plan that comes early ends the importing with the module at hand. Where the process is
    unfit it says so and ends; where its agent is gone, it ends. With `in_background` an attempt
    goes on beside it, which is not to be disturbed.
    """
    program = Program.from_json(order["program"])
    priority = _Priority()
    arrived = threading.Event()
    found: list[dict[str, Any]] = []

    def receive() -> None:
        for message in messages:
            priority.restore()
            if "plan" in message:
                found.append(message)
                arrived.set()
                return
        os._exit(1)

    receiver = threading.Thread(target=receive, name="hotstart-standby", daemon=True)
    receiver.start()
    if in_background:
        priority.lower()
    try:
        _import_all(program, order["modules"], arrived)
    except _Unfit as unfit:
        channel.send({"unfit": {"module": unfit.module, "why": unfit.why}})
        os._exit(1)
    if not arrived.is_set():
        gc.collect()  # would come during the first step: 0.1 s for flax, optax and orbax
    priority.restore()
    channel.send({"ready": True})
    receiver.join()
    [message] = found
    os.environ.update(message["environ"])
    return message


def modules_to_import(program: Program, modules: Mapping[str, object]) -> list[str]:
    """Of `sys.modules`, in its order: what is third-party or hotstart's, not the program's own."""
    origins = _Origins(program)
    own = (program.entrypoint or "").partition(":")[0].partition(".")[0]
    names = []
    # Not list(modules.items()): collecting garbage in the middle of it lets another thread import.
    for name, module in dict(modules).items():
        file = _file_of(name, module)
        if file is None or name.partition(".")[0] == own:
            continue
        if name.startswith(_OURS) or origins.kind(file) == "third-party":
            names.append(name)
    return names


class _Unfit(Exception):
    """This process can't become a worker; `module` is what it imported last, None is jax."""

    def __init__(self, module: str | None, why: str) -> None:
        super().__init__(f"{module}: {why}")
        self.module = module
        self.why = why


def _import_all(program: Program, modules: list[str], arrived: threading.Event) -> None:
    """Raises `_Unfit`. An import that raises is left to the program, which asked for it."""
    installed()
    import jax  # noqa: F401

    from hotstart.cache import active  # noqa: F401

    _check_fitness(None)
    # As in a worker, where the program's imports come after this.
    if os.path.isdir(program.folder):  # noqa: PTH112
        os.chdir(program.folder)
    sys.argv = [program.script or program.entrypoint or "", *program.args]
    origins = _Origins(program)
    seen = set(sys.modules)
    for name in modules:
        if arrived.is_set():
            return
        if name in sys.modules:
            continue
        try:
            importlib.import_module(name)
        except Exception:
            pass
        except BaseException as error:
            raise _Unfit(name, f"its import raised {type(error).__name__}") from error
        new = [(n, m) for n, m in dict(sys.modules).items() if n not in seen]
        seen.update(n for n, _ in new)
        for new_name, module in new:
            if origins.is_misplaced(new_name, module):
                raise _Unfit(name, f"it imports {new_name}, which the program has itself")
        _check_fitness(name)


def _check_fitness(module: str | None) -> None:
    import jax

    for thread in threading.enumerate():
        if not thread.daemon and thread is not threading.main_thread():
            raise _Unfit(module, f"its import starts the thread {thread.name}")
    if jax.distributed.is_initialized():
        raise _Unfit(module, "its import initializes jax.distributed")
    if _has_backend():
        raise _Unfit(module, "its import initializes a JAX backend")


def _has_backend() -> bool:
    """Whether a backend is initialized: this option can't be changed any more then."""
    import jax

    before = jax.config.jax_num_cpu_devices
    try:
        jax.config.update("jax_num_cpu_devices", before + 1)
    except RuntimeError:
        return True
    jax.config.update("jax_num_cpu_devices", before)
    return False


class _Origins:
    """Whose a file is: that of the nearest known folder above it."""

    def __init__(self, program: Program) -> None:
        self._program = program
        standard = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib")]
        sites = [*site.getsitepackages(), site.getusersitepackages(), *sys.path]
        sites = [p for p in sites if Path(p).name in ("site-packages", "dist-packages")]
        own = [program.folder, *program.path, *filter(None, [program.script and
               str(Path(program.script).parent)])]  # fmt: skip
        self._kinds: dict[str, str | None] = {}
        # The program's own come last: they win where a folder is both.
        for kind, folders in (("standard", standard), ("third-party", sites), ("own", own)):
            for folder in filter(None, folders):
                self._kinds[str(Path(folder))] = kind
                self._kinds[os.path.realpath(folder)] = kind

    def kind(self, file: str) -> str | None:
        """ "own" to the program, "third-party", "standard", or None for anywhere else."""
        return self._kind_below(os.path.dirname(file))  # noqa: PTH120 - thousands are asked for

    def _kind_below(self, folder: str) -> str | None:
        if folder not in self._kinds:
            parent = os.path.dirname(folder)  # noqa: PTH120
            self._kinds[folder] = None if parent == folder else self._kind_below(parent)
        return self._kinds[folder]

    def is_misplaced(self, name: str, module: object) -> bool:
        """Whether a worker would have imported another module by this name, or it is its own."""
        file = _file_of(name, module)
        if file is not None and not name.startswith(_OURS) and self.kind(file) == "own":
            return True
        if "." in name:
            return False
        return is_own(name, self._program.path)


def _file_of(name: str, module: object) -> str | None:
    """The file that a module of this name was loaded from, if it was loaded."""
    if not isinstance(module, ModuleType) or isinstance(module, _LAZY):
        return None
    spec = vars(module).get("__spec__")
    if getattr(spec, "name", None) != name or not getattr(spec, "has_location", False):
        return None  # some modules make up a spec of their own kind
    return getattr(spec, "origin", None)


class _Priority:
    """The scheduling policy: lowered while importing, so that training is not disturbed.

    Lowered only where it can be restored: leaving SCHED_IDLE takes CAP_SYS_NICE or RLIMIT_NICE,
    see sched(7).
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._policy = os.sched_getscheduler(0)
        self._param = os.sched_getparam(0)
        self._settled = not self._can_return()

    def lower(self) -> None:
        """For the calling thread and those that it starts; without effect after `restore`."""
        with self._lock, contextlib.suppress(OSError):
            if not self._settled:
                os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))

    def restore(self) -> None:
        """For all threads of this process, for good."""
        with self._lock:
            if self._settled:
                return
            self._settled = True
            for thread_id in os.listdir("/proc/self/task"):  # noqa: PTH208
                with contextlib.suppress(OSError):
                    os.sched_setscheduler(int(thread_id), self._policy, self._param)

    def _can_return(self) -> bool:
        can = False

        def try_it() -> None:
            nonlocal can
            with contextlib.suppress(OSError):
                os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
                os.sched_setscheduler(0, self._policy, self._param)
                can = True

        trial = threading.Thread(target=try_it)
        trial.start()
        trial.join()
        return can
