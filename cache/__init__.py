"""JAX's persistent compilation cache, shared: one call, before the first compilation.

    import hotstart.cache
    hotstart.cache.enable("gs://bucket/prefix")

Works in any process that runs JAX (Slurm, Kubernetes, a notebook); knows neither Ray nor YAML.
Every process stores its programs, writes happen in the background and are retried, and what
does not verify is never handed to JAX.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hotstart.cache.config import Compile, Mode
    from hotstart.cache.counters import CacheStats

__all__ = ["disable", "enable", "flush", "stats"]


def enable(
    location: str | None = None,
    *,
    mode: Mode = "read-write",
    strict: bool = False,
    compile: Compile = "once",
    min_compile_time_s: float = 0.0,
    node_dir: str | None = None,
    max_size_bytes: int | None = 50 << 30,
    deadline_s: float = 30.0,
    flush_timeout_s: float = 60.0,
    signing_key_file: str | None = None,
) -> None:
    """Put the shared cache in place for all later compilations of this process.

    The settings are those of `hotstart.cache.config.CacheConfig`. Without a location,
    `JAX_COMPILATION_CACHE_DIR` is adopted, else `$HOTSTART_HOME/cache` is used. Entries are
    flushed at exit and on SIGTERM (unless the program has a handler of its own).

    Does not block on the network, except in strict mode, where one request shows that the
    location can be read. Raises `InvalidLocation`, `SigningKeyError` where a signing key is set
    and can't be used, and `CacheRequired` in strict mode. Where JAX's internals are unfamiliar,
    warns and leaves JAX its own cache. A second call with other settings warns and changes
    nothing: call `disable` first.
    """
    from hotstart.cache import active, config

    active.enable(
        config.CacheConfig(
            location=location or active.default_location(),
            mode=mode,
            strict=strict,
            compile=compile,
            min_compile_time_s=min_compile_time_s,
            node_dir=node_dir,
            max_size_bytes=max_size_bytes,
            deadline_s=deadline_s,
            flush_timeout_s=flush_timeout_s,
            signing_key_file=signing_key_file,
        )
    )


def disable() -> None:
    """Flush, then leave JAX as it was before `enable`. Blocks at most `flush_timeout_s`."""
    from hotstart.cache import active

    active.disable()


def flush(timeout_s: float | None = None) -> bool:
    """Block until all entries put so far are stored; False at the timeout.

    None takes the `flush_timeout_s` that `enable` was given. True where no cache is enabled.
    """
    from hotstart.cache import active

    return active.flush(timeout_s)


def stats() -> CacheStats:
    """What the cache has done in this process so far; zeros where it is not enabled."""
    from hotstart.cache import active

    return active.stats()
