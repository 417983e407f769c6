"""Counts from outside of hotstart what JAX asks for and what its backend compiles.

Put it in place with `install()` before `hotstart.cache.enable`: JAX's own two functions are
wrapped then, and whatever the cache does lies around that.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

PREFIX = "counted "


@dataclass
class CompileCounter:
    """The names of programs in order, of this process since `install` or `clear`."""

    requested: list[str] = field(default_factory=list)
    compiled: list[str] = field(default_factory=list)

    def clear(self) -> None:
        """Count from nothing again."""
        self.requested.clear()
        self.compiled.clear()

    def line(self) -> str:
        """One line of output that `read_counts` finds again."""
        return PREFIX + json.dumps(
            {"pid": os.getpid(), "requested": self.requested, "compiled": self.compiled}
        )


def install(*, print_at_exit: bool = False) -> CompileCounter:
    """Wrap `compile_or_get_cached` and `backend_compile_and_load` of this process's JAX."""
    from jax._src import compiler

    counter = CompileCounter()
    _wrap(compiler, "compile_or_get_cached", counter.requested)
    _wrap(compiler, "backend_compile_and_load", counter.compiled)
    if print_at_exit:
        atexit.register(lambda: print(counter.line(), flush=True))
    return counter


def read_counts(output: str) -> list[CompileCounter]:
    """The counters that processes printed, in order of their lines."""
    counters = []
    for line in output.splitlines():
        _, found, text = line.partition(PREFIX)
        if found:
            counts = json.loads(text)
            counters.append(CompileCounter(counts["requested"], counts["compiled"]))
    return counters


def _wrap(module: Any, name: str, names: list[str]) -> None:
    stock: Callable[..., Any] = getattr(module, name)

    @functools.wraps(stock)
    def counting(backend: Any, program: Any, *args: Any, **kwargs: Any) -> Any:
        names.append(program.operation.attributes["sym_name"].value)
        return stock(backend, program, *args, **kwargs)

    setattr(module, name, counting)
