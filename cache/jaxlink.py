"""The link into JAX: the only module that imports `jax._src`.

Tested with JAX 0.10.2 and 0.12.0. JAX has no public way to register a cache, so this module
replaces, in `jax._src`:

compilation_cache._cache            our backend. With `jax_compilation_cache_dir` unset, JAX uses
                                    an object that is already there and neither builds its own nor
                                    turns on XLA's sub-caches.
compiler._cache_write               stock returns at once where process_id is not 0, so a program
                                    that process 0 takes no part in is never stored.
cache_key._hash_accelerator_config  on CPU only: a digest without the per-process field (keys.py).
compiler.compile_or_get_cached,     counted, and a `jax_compilation_cache_dir` that a script set
compiler.get_compile_options        meanwhile is taken back first: it would have no effect but for
                                    other keys on JAX 0.10.
compiler.backend_compile_and_load   counted and timed.

`install` checks that each looks as expected and otherwise raises `UnsupportedJax` with nothing
changed.
"""

from __future__ import annotations

import functools
import inspect
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hotstart.cache.counters import Counters
from hotstart.cache.entry import Entry, EntryMeta
from hotstart.cache.errors import CacheRequired, UnsupportedJax
from hotstart.cache.keys import cpu_accelerator_digest
from hotstart.cache.shared import SharedCache

logger = logging.getLogger(__name__)

_CACHE_WRITE = ("cache_key", "compile_time_secs", "module_name", "backend", "executable")
_EXPECTED: dict[tuple[str, str], tuple[str, ...]] = {
    ("compiler", "_cache_write"): _CACHE_WRITE,
    ("compiler", "compile_or_get_cached"): ("backend", "computation", "devices"),
    ("compiler", "get_compile_options"): ("num_replicas", "num_partitions"),
    ("compiler", "backend_compile_and_load"): ("backend", "module"),
    ("cache_key", "_hash_accelerator_config"): ("hash_obj", "accelerators"),
    ("compilation_cache", "put_executable_and_time"): (
        "cache_key", "module_name", "executable", "backend", "compile_time",
    ),
    ("compilation_cache", "reset_cache"): (),
}  # fmt: skip


@dataclass
class _Scope(threading.local):
    """What the current thread's `compile_or_get_cached` has done so far."""

    compiled: bool = False
    served: Entry | None = None
    compile_s: float = 0.0
    required: CacheRequired | None = None


class JaxLink:
    """One installation of a `SharedCache` in this process's JAX."""

    def __init__(self, cache: SharedCache, counters: Counters, min_compile_time_s: float) -> None:
        self._cache = cache
        self._counters = counters
        self._min_compile_time_s = min_compile_time_s
        self._scope = _Scope()
        self._undo: list[Callable[[], None]] = []
        self._writer = f"{socket.gethostname()}/{os.getpid()}"
        self._dir_warned = False

    def install(self) -> None:
        """Put the cache in place; raises `UnsupportedJax` with nothing changed."""
        try:
            self._install()
        except Exception as error:
            self.uninstall()
            raise _unfamiliar(f"what it has inside ({error})") from error

    def _install(self) -> None:
        from jax._src import cache_key, compilation_cache, compiler

        _check(compiler=compiler, cache_key=cache_key, compilation_cache=compilation_cache)
        self._counters.note_compiled_before(_alive_executables())
        self._set_jax_option("jax_persistent_cache_min_compile_time_secs", self._min_compile_time_s)
        self._set_jax_option("jax_compilation_cache_dir", None)
        self._replace(compiler, "_cache_write", self._cache_write)
        self._wrap(cache_key, "_hash_accelerator_config", self._around_hash_accelerators)
        self._wrap(compiler, "get_compile_options", self._around_options)
        self._wrap(compiler, "compile_or_get_cached", self._around_request)
        self._wrap(compiler, "backend_compile_and_load", self._around_compile)
        self._backend = _backend(self._get, self._put, self._cache.url)
        self._undo.append(compilation_cache.reset_cache)
        compilation_cache.reset_cache()
        self._hold_place()

    def uninstall(self) -> None:
        """Leave JAX as it was before `install`."""
        while self._undo:
            self._undo.pop()()

    # The backend's two methods; JAX calls them on the thread that compiles.

    def _get(self, key: str) -> bytes | memoryview | None:
        try:
            entry = self._cache.get(key)
        except CacheRequired as error:  # JAX would make a warning of it
            self._scope.required = error
            return None
        self._scope.served = entry
        return None if entry is None else entry.payload

    def _put(self, key: str, value: bytes) -> None:
        import jax

        meta = EntryMeta(
            compile_s=round(self._scope.compile_s, 3),
            jax=jax.__version__,
            jaxlib=_jaxlib_version(),
            platform=jax.default_backend(),
            writer=self._writer,
        )
        unloadable = self._scope.served
        self._cache.put(key, value, meta, replaces=unloadable.digest if unloadable else None)

    # What stands in for JAX's own functions.

    def _cache_write(
        self,
        cache_key: str,
        compile_time_secs: float,
        module_name: str,
        backend: Any,
        executable: Any,
        host_callbacks: Any = (),
    ) -> None:
        """`compiler._cache_write` without the test for process 0, else the same."""
        import warnings

        import jax
        from jax._src import compilation_cache, compiler

        if host_callbacks or compile_time_secs < self._min_compile_time():
            return
        self._scope.compile_s = compile_time_secs
        try:
            compilation_cache.put_executable_and_time(
                cache_key, module_name, executable, backend, int(compile_time_secs)
            )
        except Exception as error:
            if compiler._should_raise_persistent_cache_error(error):
                raise
            self._counters.add(errors=1)
            warnings.warn(
                f"{module_name} was not stored (JAX {jax.__version__}): "
                f"{type(error).__name__}: {error}",
                stacklevel=1,
            )

    def _around_hash_accelerators(
        self, stock: Callable[..., Any], hash_obj: Any, accelerators: Any
    ) -> None:
        devices = list(accelerators.flat)
        if devices and devices[0].platform == "cpu":
            hash_obj.update(cpu_accelerator_digest(devices))
        else:
            stock(hash_obj, accelerators)

    def _around_options(self, stock: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._hold_place()
        return stock(*args, **kwargs)

    def _around_request(self, stock: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._hold_place()
        scope = self._scope
        scope.compiled, scope.served, scope.required = False, None, None
        try:
            return stock(*args, **kwargs)
        finally:
            served, scope.served = scope.served, None
            if served is None:
                self._counters.add(requests=1)
            elif scope.compiled:  # JAX could not load it
                self._counters.add(requests=1, errors=1)
            else:
                self._counters.add(requests=1, hits=1, saved_s=served.meta.compile_s)

    def _around_compile(self, stock: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._scope.compiled = True
        if self._scope.required is not None:
            raise self._scope.required
        started = time.monotonic()
        executable = stock(*args, **kwargs)
        self._counters.add(compiled=1, compile_s=time.monotonic() - started)
        return executable

    def _hold_place(self) -> None:
        """Take the place back that a script took from us, and say so once."""
        import jax
        from jax._src import compilation_cache

        wanted = jax.config.jax_compilation_cache_dir
        if wanted is not None:
            jax.config.update("jax_compilation_cache_dir", None)
            if not self._dir_warned:
                self._dir_warned = True
                logger.warning(
                    "jax_compilation_cache_dir was set to %s after hotstart's cache was put in "
                    "place at %s; the latter stays. Set cache.location (or call "
                    "hotstart.cache.disable() first) to use the other.",
                    wanted,
                    self._cache.url,
                )
        if compilation_cache._cache is not self._backend:
            compilation_cache.reset_cache()
            compilation_cache._cache = self._backend
            compilation_cache._cache_initialized = True

    def _min_compile_time(self) -> float:
        import jax

        return float(jax.config.jax_persistent_cache_min_compile_time_secs)

    # How they are put there, and taken back.

    def _set_jax_option(self, name: str, value: object) -> None:
        import jax

        before = getattr(jax.config, name)
        jax.config.update(name, value)
        self._undo.append(lambda: jax.config.update(name, before))

    def _replace(self, module: Any, name: str, replacement: Callable[..., Any]) -> None:
        stock = getattr(module, name)
        setattr(module, name, replacement)
        self._undo.append(lambda: setattr(module, name, stock))

    def _wrap(self, module: Any, name: str, around: Callable[..., Any]) -> None:
        stock = getattr(module, name)
        self._replace(module, name, functools.wraps(stock)(functools.partial(around, stock)))


def _backend(
    get: Callable[[str], bytes | memoryview | None], put: Callable[[str, bytes], None], url: str
) -> Any:
    from jax._src.compilation_cache_interface import CacheInterface

    class Backend(CacheInterface):
        """JAX's cache interface over a `SharedCache`. `reset_cache` logs `_path`."""

        _path = Path(url)

        def get(self, key: str) -> bytes | memoryview | None:
            return get(key)

        def put(self, key: str, value: bytes) -> None:
            put(key, value)

    return Backend()


def _unfamiliar(what: str) -> UnsupportedJax:
    import jax

    return UnsupportedJax(
        f"JAX {jax.__version__} is not one that this hotstart knows: {what} differs. "
        "JAX's own cache stays in use; upgrade hotstart, or use JAX 0.10 to 0.12."
    )


def _check(**modules: Any) -> None:
    for (module, name), expected in _EXPECTED.items():
        function = getattr(modules[module], name, None)
        if function is None:
            raise _unfamiliar(f"{module}.{name}")
        parameters = tuple(inspect.signature(function).parameters)
        if parameters[: len(expected)] != expected:
            raise _unfamiliar(f"{module}.{name}{parameters}")
    if set(inspect.signature(modules["compiler"]._cache_write).parameters) - {
        *_CACHE_WRITE,
        "host_callbacks",
    }:
        raise _unfamiliar("compiler._cache_write")
    for name in ("_cache", "_cache_initialized"):
        if not hasattr(modules["compilation_cache"], name):
            raise _unfamiliar(f"compilation_cache.{name}")


def _alive_executables() -> tuple[str, ...]:
    """The names of programs that were compiled, and are still loaded, in this process."""
    from jax._src import xla_bridge

    names: list[str] = []
    for backend in getattr(xla_bridge, "_backends", {}).values():
        try:
            executables = list(backend.live_executables())
        except Exception:  # a plugin need not be able to tell
            continue
        for executable in executables:
            try:
                names.extend(module.name for module in executable.hlo_modules())
            except Exception:
                names.append("unknown")
    return tuple(sorted(names))


def _jaxlib_version() -> str:
    import jaxlib

    return str(jaxlib.__version__)
