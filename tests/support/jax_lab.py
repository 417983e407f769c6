"""A process with JAX and `hotstart.cache` that plays one start of a program after another.

A start leaves nothing of the one before it: the cache is disabled, JAX forgets its executables
and options. So many scenarios share one import of JAX, each with its own exact counts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import subprocess
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[2]
_PREFIX = "answer "
_TIMEOUT_S = 120.0


class JaxLab:
    """The other end of a running lab."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, code: str, **values: object) -> Any:
        """Execute a start in the lab and return what it left in `result`, as JSON gives it.

        `values` are names for the code; paths arrive as strings. It also finds `jax`, `jnp`,
        `cache` (`hotstart.cache`), `call(program)`, the programs `step` and `other`, `warned`, a
        list of warnings, and `again()`, which leaves nothing of the start so far. Raises
        AssertionError with the lab's traceback.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        request = json.dumps({"code": code, "values": values}, default=str)
        watchdog = threading.Timer(_TIMEOUT_S, self._process.kill)
        watchdog.start()
        try:
            self._process.stdin.write(request + "\n")
            self._process.stdin.flush()
            for line in self._process.stdout:
                if line.startswith(_PREFIX):
                    answer = json.loads(line.removeprefix(_PREFIX))
                    assert answer["error"] is None, answer["error"]
                    return answer["result"]
        finally:
            watchdog.cancel()
        raise AssertionError(f"the lab ended with {self._process.wait()}")

    def start(self, location: Path | str, program: str = "step", **settings: object) -> Any:
        """One start: enable, call one program, flush; what `call` gives."""
        return self.run(
            f"cache.enable(location, **settings); result = call({program})",
            location=location,
            settings=settings,
        )


@contextlib.contextmanager
def jax_lab(home: Path) -> Iterator[JaxLab]:
    """Run a lab as long as the context lasts."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH")))),
        "JAX_PLATFORMS": "cpu",
        "HOTSTART_HOME": str(home),
    }
    for name in ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR"):
        environment.pop(name, None)
    process = subprocess.Popen(
        [sys.executable, __file__],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield JaxLab(process)
    finally:
        process.kill()
        process.communicate()


class _Warned(logging.Handler):
    def __init__(self, messages: list[str]) -> None:
        super().__init__(level=logging.WARNING)
        self._messages = messages

    def emit(self, record: logging.LogRecord) -> None:
        self._messages.append(record.getMessage())


def _main() -> None:
    from tests.support.compile_counter import install

    counter = install()
    import jax
    import jax.numpy as jnp
    from jax.experimental.compilation_cache import compilation_cache

    from hotstart import cache

    warned: list[str] = []
    logging.getLogger("hotstart").addHandler(_Warned(warned))
    warnings.simplefilter("always")
    warnings.showwarning = lambda message, *_: warned.append(str(message))
    min_compile_time_s = jax.config.jax_persistent_cache_min_compile_time_secs

    def step(x: Any) -> Any:
        return jnp.sin(x) * 0 + 4

    def other(x: Any) -> Any:
        return jnp.cos(x) * 0 + 5

    def call(program: Any) -> dict[str, Any]:
        value = float(jax.jit(program)(1.0))
        assert cache.flush(60)
        return {
            "value": value,
            "requested": list(counter.requested),
            "compiled": list(counter.compiled),
            "stats": dataclasses.asdict(cache.stats()),
            "warned": list(warned),
        }

    def again() -> None:
        cache.disable()
        jax.config.update("jax_compilation_cache_dir", None)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", min_compile_time_s)
        compilation_cache.reset_cache()
        jax.clear_caches()
        counter.clear()
        warned.clear()

    for line in sys.stdin:
        request = json.loads(line)
        again()
        names = {
            **{"jax": jax, "jnp": jnp, "cache": cache, "warned": warned, "counter": counter},
            **{"step": step, "other": other, "call": call, "again": again},
            **request["values"],
        }
        answer: dict[str, Any] = {"result": None, "error": None}
        try:
            exec(request["code"], names)
            answer["result"] = names.get("result")
        except BaseException:
            answer["error"] = traceback.format_exc()
        print(_PREFIX + json.dumps(answer), flush=True)


if __name__ == "__main__":
    _main()
