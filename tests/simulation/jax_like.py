"""One program as JAX asks for it: its `compile_or_get_cached` around the real `Serving`."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from hotstart.cache.counters import Counters
from hotstart.cache.entry import EntryMeta
from hotstart.cache.serving import Serving
from hotstart.cache.shared import SharedCache
from tests.simulation.checks import Checks
from tests.simulation.world import SimProcess


@dataclass(frozen=True)
class Program:
    """What is compiled. `raises` is how likely that fails; `stored` is what JAX decides."""

    name: str
    compile_s: float
    stored: bool = True
    raises: float = 0.0

    @property
    def key(self) -> str:
        return f"jit_{self.name}-{hashlib.sha256(self.name.encode()).hexdigest()}"


class CompileError(Exception):
    """What a compiler raises, for want of memory say."""


class _Options:
    def SerializeAsString(self) -> bytes:  # noqa: N802, as XLA has it
        return b"options"


class JaxLike:
    """A process's JAX. `run` blocks as compiling and waiting do."""

    def __init__(
        self,
        process: SimProcess,
        checks: Checks,
        cache: SharedCache,
        counters: Counters,
        allies: tuple[SimProcess, ...] = (),
        gang: Any = None,
    ) -> None:
        self._process = process
        self._world = process.world
        self._checks = checks
        self._serving = Serving(cache, counters, lambda seconds: EntryMeta(compile_s=seconds))
        self._allies = allies
        self._gang = gang
        self._began_s = process.world.scheduler.now_s
        self.put: set[str] = set()  # keys

    def run(self, program: Program) -> bytes:
        """The executable's bytes, which no other compilation makes. Raises `CompileError`."""
        world, serving, key = self._world, self._serving, program.key
        asked_s = world.scheduler.now_s
        world.point("before a request")

        def load(cache_key: str, *rest: Any) -> tuple[bytes | None, int | None]:
            data = serving.get(cache_key)
            return (None, None) if data is None else (bytes(data), 1)

        def compile_anew() -> bytes:
            allies = self._allies
            made = self._checks.compile(key, self._process, allies, asked_s)
            number = len(self._checks.compilations)
            world.point("compiling")
            world.scheduler.sleep(program.compile_s * world.rng.uniform(0.5, 1.5))
            made.ended_s = world.scheduler.now_s
            if program.raises and not world.quiet and world.rng.random() < program.raises:
                raise CompileError(program.name)
            return f"{program.name} by {self._process.name}, number {number}".encode()

        def compile_or_get_cached(backend: Any, *rest: Any) -> bytes:
            executable, _ = serving.around_read(load, key, _Options(), None, ())
            if executable is None:
                executable = serving.around_compile(compile_anew)
                if program.stored:
                    serving.put(key, executable)
                    self.put.add(key)
            return executable

        executable = serving.around_request(compile_or_get_cached, None, program, (), None, ())
        world.point("after a request")
        self._checks.waited(key, self._process, self._allies, asked_s)
        if self._gang is not None:
            self._checks.runs(self._gang, key, executable, self._allies, self._began_s)
        return executable
