"""A script that runs named programs in a gang by a plan, and counts what is compiled.

It runs under the launcher, and by `--distributed` as one of several plain processes, which then
call `hotstart.cache.enable`. Each process prints one line that `read_members` finds again.

The plan is a JSON file, in whose folder processes meet:

    programs    the names to call, in order; all processes meet before each one
    hold        how many processes must have asked for a module before its compilation begins
    settle_s    how much longer it lasts then, so that all of them wait
    raises      in which processes the compilation of a module raises
    late        the module that a process asks for only when another one has begun to compile it
    forever     how many compilations of a module never end, in the first attempt
    until       the event that all await before they call the program of that number
    flip        whether each read of the node directory brings a flipped byte, by process
    options     JAX options
    settings    of `hotstart.cache.enable`, where the script calls that
    apart       plain processes do not become one `jax.distributed` gang
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).resolve()
PREFIX = "member "
RESULTS = {
    "everywhere": 8.0,
    "spread": 6.0,
    "mine": 12.0,
    "fold": 14.0,
    "upper": 21.0,
    "pure": 5.0,
    "told": 5.0,
    "forget": 0.0,
}
_LONGEST_MEETING_S = 60.0
_SETTLE_S = 0.5  # from JAX's request to a wait in the agent


@dataclass(frozen=True)
class Member:
    """What one process did: results, the test's own counts by module, hotstart's counters.

    `ended_s` is when its programs were over, on the machine's monotonic clock; `error` what one
    of them raised.
    """

    index: int
    results: dict[str, float]
    requested: list[str]
    compiled: list[str]
    stats: dict[str, Any]
    error: str | None
    ended_s: float


def read_members(output: str) -> list[Member]:
    """The members in the output of one or more processes, in order of their lines."""
    lines = (line.partition(PREFIX) for line in output.splitlines())
    return [Member(**json.loads(text)) for _, found, text in lines if found]


def meeting_place(plan: Path, attempt: int = 1) -> Path:
    """Where the processes of an attempt note events, as files EVENT.PROCESS."""
    return plan.with_suffix(f".{attempt}")


class _Plan:
    def __init__(self, path: Path, index: int, count: int, attempt: int) -> None:
        self.content: dict[str, Any] = json.loads(path.read_text())
        self.index = index
        self._count = count
        self._folder = meeting_place(path, attempt)
        self._folder.mkdir(exist_ok=True)
        self._attempt = attempt

    def get(self, name: str) -> Any:
        return self.content.get(name, {})

    def note(self, event: str) -> None:
        (self._folder / f"{event}.{self.index}").touch()

    def await_noted(self, event: str, count: int | None = None) -> None:
        wanted = self._count if count is None else count
        deadline = time.monotonic() + _LONGEST_MEETING_S
        while len(list(self._folder.glob(f"{event}.*"))) < wanted:
            if time.monotonic() > deadline:
                raise TimeoutError(f"process {self.index}: not all came to {event}")
            time.sleep(0.01)

    def compiling(self, module: str) -> None:
        """Between a request of JAX and its compilation."""
        self.note(f"compiling-{module}")
        if module in self.get("hold"):
            self.await_noted(f"asked-{module}", self.get("hold")[module])
            time.sleep(self.content.get("settle_s", _SETTLE_S))
        number = len(list(self._folder.glob(f"compiling-{module}.*")))
        if number <= self.get("forever").get(module, 0) and self._attempt == 1:
            self.note(f"forever-{module}")
            print("compiles for ever", os.getpid(), flush=True)
            time.sleep(600)
        if self.index in self.get("raises").get(module, ()):
            raise ValueError(f"{module} cannot be compiled in process {self.index}")


def _steer(plan: _Plan) -> tuple[list[str], list[str]]:
    """Wrap JAX's two functions: the modules that it asked for, and those that it compiled."""
    from jax._src import compiler

    from hotstart.cache.errors import CacheRequired

    requested: list[str] = []
    compiled: list[str] = []

    @contextlib.contextmanager
    def asking(module: str) -> Iterator[None]:
        if plan.get("late").get(str(plan.index)) == module:
            plan.await_noted(f"compiling-{module}", 1)
        plan.note(f"asked-{module}")
        requested.append(module)
        yield

    @contextlib.contextmanager
    def compiling(module: str) -> Iterator[None]:
        compiled.append(module)
        plan.compiling(module)
        try:
            yield
        except CacheRequired:  # before the backend was asked
            compiled.remove(module)
            raise

    _wrap(compiler, "compile_or_get_cached", asking)
    _wrap(compiler, "backend_compile_and_load", compiling)
    return requested, compiled


def _wrap(
    module: Any, name: str, around: Callable[[str], contextlib.AbstractContextManager[None]]
) -> None:
    stock: Callable[..., Any] = getattr(module, name)

    def wrapped(backend: Any, program: Any, *args: Any, **kwargs: Any) -> Any:
        with around(program.operation.attributes["sym_name"].value):
            return stock(backend, program, *args, **kwargs)

    setattr(module, name, wrapped)


def _flip_reads(flips: Sequence[bool]) -> None:
    """Flip a byte in those of the first reads of this process's node directory."""
    from hotstart.cache import active

    assert active._active is not None
    node = active._active.cache._node
    assert node is not None
    stock, left = node.get, iter(flips)

    def get(name: str) -> bytes | None:
        data = stock(name)
        if data is None or not next(left, False):
            return data
        return data[:-1] + bytes([data[-1] ^ 1])

    node.get = get  # type: ignore[method-assign]


def _programs(count: int, index: int) -> dict[str, Callable[[], float]]:
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.experimental import io_callback

    def sharded(devices: list[Any], values: np.ndarray) -> Any:
        mesh = jax.sharding.Mesh(np.array(devices), "d")
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("d"))
        return jax.make_array_from_callback(values.shape, sharding, values.__getitem__)

    def first_is(value: float) -> Any:
        return sharded(jax.devices(), np.array([value] + [0.0] * (count - 1), np.float32))

    def everywhere(x: Any) -> Any:
        return jnp.sum(x * 2)

    def spread(x: Any) -> Any:
        return jnp.max(x - jnp.sum(x)) + 6

    def mine(x: Any) -> Any:
        return jnp.dot(x, x) - 2

    def fold(x: Any) -> Any:
        return jnp.sum(x * x)

    def upper(x: Any) -> Any:
        return jnp.sum(x) * 7

    called: list[np.ndarray] = []

    def add_two(x: Any) -> np.float32:
        called.append(np.asarray(x))
        return np.float32(called[-1].sum() + 2)

    def pure(x: Any) -> Any:
        return jax.pure_callback(add_two, jax.ShapeDtypeStruct((), np.float32), x)

    def told(x: Any) -> Any:
        return io_callback(add_two, jax.ShapeDtypeStruct((), np.float32), x)

    def call_back(program: Callable[[Any], Any]) -> float:
        called.clear()
        value = float(jax.jit(program)(np.ones(3, np.float32)))
        return value if len(called) == 1 else float("nan")

    def forget() -> float:
        jax.clear_caches()
        return 0.0

    def nowhere(x: Any) -> Any:
        return jax.ffi.ffi_call("no_such_target", jax.ShapeDtypeStruct((3,), np.float32))(x)

    numbers = np.array([3.0, 2.0, 1.0], np.float32)
    pair = [d for d in jax.devices() if d.process_index in (2, 3)]
    return {
        "everywhere": lambda: float(jax.jit(everywhere)(first_is(4.0))),
        "spread": lambda: float(jax.jit(spread)(first_is(3.0))),
        "mine": lambda: float(jax.jit(mine)(numbers)),
        "fold": lambda: float(jax.jit(fold)(numbers)),
        "upper": lambda: float(jax.jit(upper)(sharded(pair, np.array([1.0, 2.0], np.float32)))),
        "pure": lambda: call_back(pure),
        "told": lambda: call_back(told),
        "forget": forget,
        "nowhere": lambda: float(jax.jit(nowhere)(numbers)[0]),
    }


def _run(plan: _Plan, count: int) -> None:
    import jax

    import hotstart.cache

    requested, compiled = _steer(plan)
    if str(plan.index) in plan.get("flip"):
        _flip_reads(plan.get("flip")[str(plan.index)])
    for name, value in plan.get("options").items():
        jax.config.update(name, value)
    programs = _programs(count, plan.index)
    results: dict[str, float] = {}
    error: BaseException | None = None
    try:
        for number, name in enumerate(plan.content["programs"]):
            plan.note(f"at-{number}")
            plan.await_noted(f"at-{number}")
            if str(number) in plan.get("until"):
                print("waits", flush=True)
                plan.await_noted(plan.get("until")[str(number)], 1)
            if name != "upper" or plan.index in (2, 3):
                results[name] = programs[name]()
    except Exception as raised:
        error = raised
    ended_s = time.monotonic()
    plan.note("ended")
    plan.await_noted("ended")
    flushed = hotstart.cache.flush(60)
    member = Member(
        plan.index,
        results,
        requested,
        compiled,
        dataclasses.asdict(hotstart.cache.stats()) | {"flushed": flushed},
        None if error is None else f"{type(error).__name__}: {error}"[:300],
        ended_s,
    )
    print(PREFIX + json.dumps(dataclasses.asdict(member)), flush=True)
    if error is not None:
        raise error


def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("plan", type=Path)
    parser.add_argument("location", nargs="?")
    parser.add_argument("--distributed")
    options = parser.parse_args()

    import jax

    attempt = int(os.environ.get("HOTSTART_ATTEMPT", "1"))
    if options.distributed is None:
        index, count = jax.process_index(), jax.process_count()
        plan = _Plan(options.plan, index, count, attempt)
    else:
        coordinator, count, index = options.distributed.split(",")
        index, count = int(index), int(count)
        plan = _Plan(options.plan, index, count, attempt)
        if options.location is not None:
            import hotstart.cache

            hotstart.cache.enable(options.location, **plan.get("settings"))
        if not plan.get("apart"):
            jax.distributed.initialize(coordinator, count, index)
    _run(plan, count)


if __name__ == "__main__":
    sys.path.insert(0, str(_ROOT))
    _main()
