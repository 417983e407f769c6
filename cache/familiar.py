"""Whether the functions of JAX that `jaxlink` stands in for look as it expects."""

from __future__ import annotations

import inspect
from types import ModuleType

from hotstart.cache.errors import UnsupportedJax

CACHE_WRITE = ("cache_key", "compile_time_secs", "module_name", "backend", "executable")

# The first parameters; what may follow is passed on. `_cache_write` is replaced, so all count.
_EXPECTED: dict[tuple[str, str], tuple[str, ...]] = {
    ("compiler", "_cache_write"): CACHE_WRITE,
    ("compiler", "compile_or_get_cached"): (
        "backend", "computation", "devices", "compile_options", "host_callbacks",
        "executable_devices",
    ),
    ("compiler", "get_compile_options"): ("num_replicas", "num_partitions"),
    ("compiler", "backend_compile_and_load"): ("backend", "module"),
    ("cache_key", "get"): ("module", "devices", "compile_options", "backend"),
    ("cache_key", "_hash_accelerator_config"): ("hash_obj", "accelerators"),
    ("compilation_cache", "get_executable_and_time"): (
        "cache_key", "compile_options", "backend", "executable_devices",
    ),
    ("compilation_cache", "is_executable_in_cache"): ("backend", "cache_key"),
    ("compilation_cache", "put_executable_and_time"): (
        "cache_key", "module_name", "executable", "backend", "compile_time",
    ),
    ("compilation_cache", "combine_executable_and_time"): (
        "serialized_executable", "compile_time",
    ),
    ("compilation_cache", "compress_executable"): ("executable",),
    ("compilation_cache", "decompress_executable"): ("executable",),
    ("compilation_cache", "extract_executable_and_time"): ("executable_and_time",),
    ("compilation_cache", "reset_cache"): (),
}  # fmt: skip


def check(**modules: ModuleType) -> None:
    """Raise `UnsupportedJax`, which names the first thing that differs."""
    for (module, name), expected in _EXPECTED.items():
        function = getattr(modules[module], name, None)
        if function is None:
            raise unfamiliar(f"{module}.{name}")
        parameters = tuple(inspect.signature(function).parameters)
        if parameters[: len(expected)] != expected:
            raise unfamiliar(f"{module}.{name}{parameters}")
    parameters = tuple(inspect.signature(modules["compiler"]._cache_write).parameters)
    if set(parameters) - {*CACHE_WRITE, "host_callbacks"}:
        raise unfamiliar("compiler._cache_write")
    for name in ("_cache", "_cache_initialized"):
        if not hasattr(modules["compilation_cache"], name):
            raise unfamiliar(f"compilation_cache.{name}")


def unfamiliar(what: str) -> UnsupportedJax:
    """The error that says that `what` in this JAX differs."""
    import jax

    return UnsupportedJax(
        f"JAX {jax.__version__} is not one that this hotstart knows: {what} differs. "
        "JAX's own cache stays in use; upgrade hotstart, or use JAX 0.10 to 0.12."
    )
