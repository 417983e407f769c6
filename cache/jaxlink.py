"""The link into JAX: the only module that imports `jax._src`.

Tested with JAX 0.10.2 and 0.12.0. JAX has no public way to register a cache, so this module
replaces, in `jax._src`:

compilation_cache._cache            our backend. With `jax_compilation_cache_dir` unset, JAX uses
                                    an object that is already there and neither builds its own nor
                                    turns on XLA's sub-caches.
compiler._cache_write               stock returns at once where process_id is not 0, so a program
                                    that process 0 takes no part in is never stored.
cache_key._hash_accelerator_config, on CPU with several processes only: without what differs by
                                    process (keys.py).
distributed.global_state            its preemption sync manager, in front of which one stands that
                                    also tells the launcher (`hear_sync_points`).
cache_key.get
cache_key._hash_...                 pass on what they hash to a recorder (key_recorder.py), where
                                    they are there; the cache does not need it.
compiler.get_compile_options,       a `jax_compilation_cache_dir` that a script set meanwhile is
compiler.compile_or_get_cached      taken back first: it would have no effect but for other keys on
                                    JAX 0.10.
compiler.backend_compile_and_load,  on GPU: with XLA's autotune results in a directory of this host
                                    (autotune.py), set after the key was made, which holds the
                                    path otherwise.
compiler.compile_or_get_cached,     served from the shared cache (serving.py).
compiler.backend_compile_and_load,
compilation_cache.get_executable_and_time,
compilation_cache.is_executable_in_cache

`install` checks that each looks as expected and otherwise raises `UnsupportedJax` with nothing
changed.
"""

from __future__ import annotations

import atexit
import copy
import functools
import logging
import os
import socket
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from hotstart.cache.ahead import LoadAhead, Planned
from hotstart.cache.autotune import Autotune, identity_of
from hotstart.cache.counters import Counters
from hotstart.cache.entry import Entry, EntryMeta
from hotstart.cache.familiar import check as _check
from hotstart.cache.familiar import unfamiliar
from hotstart.cache.key_recorder import KeyRecorder
from hotstart.cache.keys import cpu_accelerator_digest, process_independent_options
from hotstart.cache.requests import RequestLog
from hotstart.cache.serving import Serving
from hotstart.cache.shared import SharedCache

logger = logging.getLogger(__name__)


class JaxLink:
    """One installation of a `SharedCache` in this process's JAX."""

    def __init__(
        self,
        cache: SharedCache,
        counters: Counters,
        min_compile_time_s: float,
        *,
        compile_once: bool = False,
        autotune: Autotune | None = None,
        tuned_platforms: Collection[str] = ("gpu", "cuda", "rocm"),
    ) -> None:
        """`compile_once` turns JAX's own way of that off: it waits for process 0 to compile."""
        self._autotune = autotune
        self._tuned_platforms = tuned_platforms
        self._cache = cache
        self._counters = counters
        self._min_compile_time_s = min_compile_time_s
        self.recorder = KeyRecorder(JaxReader())
        self._serving = Serving(cache, counters, _describe, self.recorder.describe)
        self._undo: list[Callable[[], None]] = []
        self._dir_warned = False
        self._compile_once = compile_once

    @property
    def requests(self) -> RequestLog:
        """What JAX has asked for so far."""
        return self._serving.requests

    def install(self) -> None:
        """Put the cache in place; raises `UnsupportedJax` with nothing changed."""
        try:
            self._install()
        except Exception as error:
            self.uninstall()
            raise unfamiliar(f"what it has inside ({error})") from error

    def _install(self) -> None:
        from jax._src import cache_key, compilation_cache, compiler

        _check(compiler=compiler, cache_key=cache_key, compilation_cache=compilation_cache)
        self._counters.note_compiled_before(_alive_executables())
        self._set_jax_option("jax_persistent_cache_min_compile_time_secs", self._min_compile_time_s)
        self._set_jax_option("jax_compilation_cache_dir", None)
        if self._compile_once:
            self._set_jax_option("jax_share_binary_between_hosts", False)
        serving = self._serving
        self._replace(compiler, "_cache_write", self._cache_write)
        self._wrap(cache_key, "_hash_accelerator_config", self._around_hash_accelerators)
        self._wrap(cache_key, "get", self._around_key)
        for name, component in _HASHES.items():
            if hasattr(cache_key, name):
                around = functools.partial(self.recorder.around_component, component)
                self._wrap(cache_key, name, around)
        if hasattr(cache_key, "_hash_string"):
            self._wrap(cache_key, "_hash_string", self.recorder.around_text)
        self._wrap(compiler, "get_compile_options", self._around_options)
        self._wrap(compiler, "compile_or_get_cached", serving.around_request)
        self._wrap(compiler, "compile_or_get_cached", self._around_options)
        if self._autotune is not None:
            self._wrap(compiler, "backend_compile_and_load", self._around_tuning)
        self._wrap(compiler, "backend_compile_and_load", serving.around_compile)
        self._wrap(compilation_cache, "get_executable_and_time", serving.around_read)
        self._wrap(compilation_cache, "is_executable_in_cache", serving.around_probe)
        self._backend = _backend(serving.get, serving.put, self._cache.url)
        self._undo.append(compilation_cache.reset_cache)
        compilation_cache.reset_cache()
        self._hold_place()

    def uninstall(self) -> None:
        """Leave JAX as it was before `install`."""
        self.drop_ahead()
        while self._undo:
            self._undo.pop()()

    def require_warm(self, required: bool) -> None:
        """Whether a program that is not in the cache raises `WarmRequired` from now on."""
        self._serving.require_warm = required

    def load_ahead(
        self,
        planned: Sequence[Planned],
        read: Callable[[str], Entry | None],
        *,
        budget_bytes: int = 1 << 30,
        threads: int = 1,
        platforms: Collection[str] = ("cpu",),
    ) -> None:
        """Begin to load these entries (ahead.py) once the program has initialized its backend.

        Takes the place of an earlier plan. Returns at once.
        """
        self.drop_ahead()
        ahead = LoadAhead(
            planned,
            read,
            runtime=_Runtime(),
            counters=self._counters,
            budget_bytes=budget_bytes,
            threads=threads,
            platforms=platforms,
        )
        # JAX takes its backends down at exit; no thread may be inside one then.
        atexit.register(ahead.close)
        self._undo.append(lambda: atexit.unregister(ahead.close))
        self._serving.ahead = ahead
        ahead.start()

    def drop_ahead(self) -> None:
        """Free what was loaded ahead and not asked for, and load no more; does not block."""
        ahead, self._serving.ahead = self._serving.ahead, None
        if ahead is not None:
            ahead.drop()

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
        """`compiler._cache_write` without the test for process 0, else the same.

        Serializing holds the GIL for its whole length; compressing does not, and is left to the
        background writer.
        """
        import warnings

        import jax
        from jax._src import compilation_cache, compiler

        if host_callbacks or compile_time_secs < self._min_compile_time():
            return
        compile_s = int(compile_time_secs)
        try:
            if _is_size_needed():
                compilation_cache.put_executable_and_time(
                    cache_key, module_name, executable, backend, compile_s
                )
            else:
                pack = functools.partial(_pack, compile_s)
                self._serving.put(cache_key, executable.serialize(), pack)
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
        import jax

        devices = list(accelerators.flat)
        # A process alone has no peer to agree with. What stock hashes for it names the processor
        # too, and under stock's keys entries can be exchanged with stock JAX (stock.py).
        if devices and devices[0].platform == "cpu" and jax.process_count() > 1:
            hash_obj.update(cpu_accelerator_digest(devices))
        else:
            stock(hash_obj, accelerators)

    def _around_key(
        self,
        stock: Callable[..., Any],
        module: Any,
        devices: Any,
        compile_options: Any,
        backend: Any,
        *rest: Any,
        **kwargs: Any,
    ) -> Any:
        from jax._src import cache_key

        used = list(devices.flat)
        options = process_independent_options(compile_options, used, backend)
        jaxlib = str(getattr(cache_key, "jaxlib_version_str", ""))
        recorded = self.recorder.recording(used, jaxlib, lambda: _argument_names(module))
        key = stock(module, devices, options, backend, *rest, **kwargs)
        self.recorder.finish(recorded, key)
        self._serving.note_key(recorded)
        return key

    def _around_options(self, stock: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._hold_place()
        return stock(*args, **kwargs)

    def _around_tuning(self, stock: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """`backend_compile_and_load` with XLA's autotune directory, unless it has one already."""
        named = dict(
            zip(("backend", "module", "executable_devices", "options"), args, strict=False)
        )
        named |= kwargs
        options, backend = named.get("options"), named["backend"]
        if self._autotune is None or backend.platform not in self._tuned_platforms:
            return stock(*args, **kwargs)
        try:
            identity = _tuning_identity(backend)
            with_folder = _with_autotune_folder(options, self._autotune.begin(identity))
        except Exception as error:  # what XLA's options look like is not ours
            logger.warning("autotune results are not kept: %s: %s", type(error).__name__, error)
            return stock(*args, **kwargs)
        if with_folder is None:
            return stock(*args, **kwargs)
        if "options" in kwargs:
            kwargs = {**kwargs, "options": with_folder}
        else:
            args = (*args[:3], with_folder, *args[4:])
        try:
            return stock(*args, **kwargs)
        finally:
            self._autotune.ended(identity)

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


# JAX's functions that hash a component each, with `description.COMPONENTS`.
_HASHES = {
    "_hash_computation": "computation",
    "_hash_platform": "backend version",
    "_hash_xla_flags": "XLA flags",
    "_hash_serialized_compile_options": "compile options",
    "_hash_accelerator_config": "devices",
}
# Settings that go into the compile options, and not into tracing on JAX 0.10.
_IN_OPTIONS = ("jax_optimization_level", "jax_memory_fitting_level")
_BESIDE_TRACING = ("jax_default_prng_impl",)  # what it makes is in the program all the same
_MAX_NAMES = 100  # of arguments: each takes some microseconds of the thread that compiles
_LARGE_CONSTANT = 16  # elements


def _argument_names(module: Any) -> list[str]:
    """What the program calls its first arguments; the key's form of it no longer says."""
    for operation in module.body.operations:
        if str(operation.name).strip('"') == "main":
            return [
                str(argument.location).removeprefix("loc(").removesuffix(")").strip('"')
                for argument in list(operation.arguments)[:_MAX_NAMES]
            ]
    return []


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


def _tuning_identity(backend: Any) -> str:
    import jaxlib

    kinds = [device.device_kind for device in backend.local_devices()]
    return identity_of(str(jaxlib.__version__), str(backend.platform_version), kinds)


def _with_autotune_folder(options: Any, folder: Path | None) -> Any | None:
    """A copy of XLA's compile options with this directory; None where they are to stay."""
    from jax._src.lib import xla_client

    own = options.executable_build_options.debug_options.xla_gpu_per_fusion_autotune_cache_dir
    if folder is None or own:  # the user's own flag
        return None
    changed = copy.deepcopy(options)
    debug = changed.executable_build_options.debug_options
    debug.xla_gpu_per_fusion_autotune_cache_dir = str(folder)
    debug.xla_gpu_experimental_autotune_cache_mode = xla_client.AutotuneCacheMode.UPDATE
    return changed


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


def _describe(compile_s: float) -> EntryMeta:
    import jax
    import jaxlib

    return EntryMeta(
        compile_s=round(compile_s, 3),
        jax=jax.__version__,
        jaxlib=str(jaxlib.__version__),
        platform=jax.default_backend(),
        writer=f"{socket.gethostname()}/{os.getpid()}",
    )


def has_backend() -> bool:
    """Whether a backend is initialized, so that `XLA_FLAGS` have been read."""
    from jax._src import xla_bridge

    return bool(xla_bridge._backends)


def hear_sync_points(told: Callable[[], None]) -> None:
    """Have `told` called when JAX tells the program to stop for a preemption.

    However it asks: `reached_preemption_sync_point`, imported by name or not, looks for the
    manager at each call. Call it once `jax.distributed` is initialized; does nothing where JAX
    has no manager, or one that looks unfamiliar.
    """
    try:
        from jax._src import distributed

        state = distributed.global_state
        manager = state.preemption_sync_manager
    except (ImportError, AttributeError):
        return
    if hasattr(manager, "reached_sync_point") and not isinstance(manager, _HeardSyncPoints):
        state.preemption_sync_manager = _HeardSyncPoints(manager, told)


class _HeardSyncPoints:
    """JAX's preemption sync manager, which says it when it has told the program to stop."""

    def __init__(self, manager: Any, told: Callable[[], None]) -> None:
        self._manager = manager
        self._told = told

    def reached_sync_point(self, step_id: int) -> bool:
        reached: bool = self._manager.reached_sync_point(step_id)
        if reached:
            self._told()
        return reached

    def __getattr__(self, name: str) -> Any:
        return getattr(self._manager, name)


class JaxReader:
    """See `key_recorder.Reader`."""

    def __init__(self) -> None:
        self._names: tuple[str, ...] | None = None

    def module_text(self, bytecode: bytes) -> str:
        from jax._src.interpreters import mlir
        from jax._src.lib.mlir import ir

        with mlir.make_ir_context():
            module = ir.Module.parse(bytecode)
            return str(module.operation.get_asm(large_elements_limit=_LARGE_CONSTANT))

    def options(self, serialized: bytes) -> dict[str, str]:
        from jax._src.lib import xla_client

        options = xla_client.CompileOptions.ParseFromString(serialized)
        build = options.executable_build_options
        fields = {
            **_fields(options, "executable_build_options", "env_option_overrides"),
            **{f"build.{k}": v for k, v in _fields(build, "debug_options").items()},
        }
        for name, value in options.env_option_overrides:
            fields[f"override.{name}"] = str(value)
        # Protobuf's own text, whose first line is not stable.
        for line in repr(build.debug_options).splitlines():
            name, _, value = line.partition(": ")
            if value:
                known = fields.get(f"debug.{name}")
                fields[f"debug.{name}"] = f"{known}, {value}" if known else value
        return fields

    def versions(self) -> dict[str, str]:
        import jax

        return {"jax": jax.__version__}

    def settings(self) -> Mapping[str, Any]:
        import jax
        from jax._src import config

        if self._names is None:
            names = dict.fromkeys((*config.trace_context_names(), *_IN_OPTIONS, *_BESIDE_TRACING))
            self._names = tuple(
                name
                for name in names
                if isinstance(name, str) and name.startswith("jax_") and hasattr(jax.config, name)
            )
        return {name: getattr(jax.config, name) for name in self._names}

    def device_count(self) -> int:
        import jax

        return jax.device_count()


def _fields(holder: Any, *but: str) -> dict[str, str]:
    """The plain attributes of one of XLA's options."""
    fields = {}
    for name in dir(holder):
        if name.startswith("_") or name in but:
            continue
        value = getattr(holder, name)
        if name == "device_assignment":
            value = None if value is None else value.serialize().hex()
        if not callable(value):
            fields[name] = str(value)
    return fields


class _Runtime:
    """See `ahead.Runtime`."""

    def backend(self) -> Any:
        from jax._src import xla_bridge

        # `jax.default_backend()` would initialize it. While that goes on the lock is held.
        if not xla_bridge._backends or xla_bridge._backend_lock.locked():
            return None
        return xla_bridge._default_backend

    def unpack(self, entry: Entry) -> tuple[bytes, int]:
        from jax._src import compilation_cache

        # A key of another JAX is in a plan that is older than the installation.
        here, there = _describe(0.0), entry.meta
        if (here.jax, here.jaxlib) != (there.jax, there.jaxlib):
            raise ValueError(f"compiled by JAX {there.jax}, jaxlib {there.jaxlib}")
        return compilation_cache.extract_executable_and_time(
            compilation_cache.decompress_executable(entry.payload)
        )

    def load(self, backend: Any, planned: Planned, serialized: bytes) -> Any:
        import numpy as np
        from jax._src.lib import xla_client

        # XLA aborts the process over options without a device assignment, and parses anything.
        options = xla_client.CompileOptions.ParseFromString(planned.options)
        assignment = options.device_assignment
        if options.SerializeAsString() != planned.options or assignment is None:
            raise ValueError("these are no compile options of this JAX")
        shape = (assignment.replica_count(), assignment.computation_count())
        ids = np.array(planned.device_ids).reshape(shape)
        if type(assignment).create(ids).serialize() != assignment.serialize():
            raise ValueError("the compile options are for other devices")
        by_id = {device.id: device for device in backend.devices()}
        devices = xla_client.DeviceList(tuple(by_id[i] for i in planned.device_ids))
        return backend.deserialize_executable(serialized, devices, options)


def _is_size_needed() -> bool:
    """Whether JAX decides by the compressed size, or has something to say about a write."""
    import jax

    config = jax.config
    return bool(
        config.jax_persistent_cache_min_entry_size_bytes > 0
        or config.jax_compilation_cache_expect_pgle
    )


def _pack(compile_s: int, serialized: bytes | memoryview) -> bytes:
    """What JAX gives to a cache for an executable: its compile time before it, compressed."""
    from jax._src import compilation_cache

    combined = compilation_cache.combine_executable_and_time(serialized, compile_s)
    return compilation_cache.compress_executable(combined)
