"""The one cache that is enabled in this process, and its life: enable, flush, disable."""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import importlib.util
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import FrameType

from hotstart.cache.ahead import Planned
from hotstart.cache.autotune import Autotune
from hotstart.cache.config import CacheConfig, hotstart_home, node_dir_of
from hotstart.cache.counters import CacheStats, Counters
from hotstart.cache.errors import CacheRequired, StoreError, UnsupportedJax
from hotstart.cache.jaxlink import JaxLink, has_backend
from hotstart.cache.keyring import load_keyring
from hotstart.cache.keys import compile_once_flags, turns_autotuning_off
from hotstart.cache.requests import Request
from hotstart.cache.resolve import EachForItself, Resolver
from hotstart.cache.shared import SharedCache, Tiers
from hotstart.cache.signals import end_by, watch_signals
from hotstart.cache.signing import Keyring, Seal
from hotstart.cache.store import Store, normalize_location, open_store

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Active:
    config: CacheConfig
    cache: SharedCache
    counters: Counters
    link: JaxLink
    autotune: Autotune


_GPU_PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin", "jax_rocm60_plugin", "jax_rocm7_plugin")

_active: _Active | None = None
_lock = threading.RLock()
_exit_hooked = False
_exit_deadline: float | None = None


def default_location() -> str:
    """Where entries go when nobody says: JAX's own setting, else hotstart's home."""
    import jax

    return (
        jax.config.jax_compilation_cache_dir
        or os.environ.get("JAX_COMPILATION_CACHE_DIR")
        or str(hotstart_home() / "cache")
    )


def enable(
    config: CacheConfig,
    on_change: Callable[[], None] = lambda: None,
    resolver: Resolver | None = None,
    on_request: Callable[[Request], None] | None = None,
    keyring: Keyring | None = None,
    on_described: Callable[[str, str], None] = lambda key, parts: None,
) -> None:
    """See `hotstart.cache.enable`.

    `on_change` is called after each change of a counter, `on_request` with each program that JAX
    asked for, `on_described` with the key of each that is compiled and what it was made of.
    `resolver` is the launcher's; without one, processes coordinate in the store. `keyring` is
    this host's signing keys; where it is None they are read here.
    """
    global _active
    config = replace(config, location=normalize_location(config.location))
    with _lock:
        if _active is not None:
            if _active.config != config:
                logger.warning(
                    "the cache stays at %s; hotstart.cache.enable(%s) has no effect before "
                    "hotstart.cache.disable()",
                    _active.config.location,
                    config.location,
                )
            return
        if keyring is None:
            keyring = load_keyring(config.signing_key_file)
        counters = Counters(on_change)
        has_agent = resolver is not None and resolver.has_agent
        tiers = _open_tiers(config, counters, has_agent)
        if config.strict and not has_agent:
            _require_readable(tiers.store)
        resolver = resolver or _resolver(config, tiers, counters)
        cache = SharedCache(
            tiers,
            counters,
            resolver,
            writable=config.mode == "read-write",
            strict=config.strict,
            seal=Seal(keyring, config.location),
        )
        autotune = _autotune(config, keyring)
        link = JaxLink(
            cache,
            counters,
            config.min_compile_time_s,
            compile_once=type(resolver) is not EachForItself,
            autotune=autotune,
        )
        try:
            link.install()
        except UnsupportedJax as error:
            if config.strict:
                raise CacheRequired(f"the cache is required and cannot be used: {error}") from error
            logger.warning("%s", error)
            return
        _active = _Active(config, cache, counters, link, autotune)
        link.requests.on_request = on_request
        link.recorder.on_described = on_described
        link.require_warm(config.require_warm)
        if config.location.startswith("gs://") and not has_agent:
            # Its import is on the way to the first hit. No daemon thread: at its end Python aborts
            # where one of those is inside of native code, as such an import often is.
            threading.Thread(target=_import_gcsfs, name="hotstart-gcsfs").start()
        _flush_at_exit()


def disable() -> None:
    """See `hotstart.cache.disable`."""
    global _active
    with _lock:
        if _active is None:
            return
        flush(None)
        _active.link.uninstall()
        _active.cache.close()
        _active.autotune.close()
        _active = None


def flush(timeout_s: float | None) -> bool:
    """See `hotstart.cache.flush`."""
    active = _active
    if active is None:
        return True
    timeout_s = active.config.flush_timeout_s if timeout_s is None else timeout_s
    deadline = time.monotonic() + timeout_s
    stored = active.cache.flush(timeout_s)
    return active.autotune.flush(max(0.0, deadline - time.monotonic())) and stored


def flush_at_exit(limit_s: float | None = None) -> None:
    """Flush as the process ends. All such calls share one deadline, set by the first.

    `limit_s` is its length where shorter than `flush_timeout_s`.
    """
    global _exit_deadline
    active = _active
    if active is None:
        return
    if _exit_deadline is None:
        timeout_s = active.config.flush_timeout_s
        _exit_deadline = time.monotonic() + min(timeout_s, limit_s or timeout_s)
    flush(max(0.0, _exit_deadline - time.monotonic()))


def stats() -> CacheStats:
    """See `hotstart.cache.stats`."""
    active = _active
    return CacheStats() if active is None else active.counters.snapshot()


def load_ahead(planned: Sequence[Planned]) -> None:
    """Load these programs' entries before JAX asks for them; see `ahead.py`. Returns at once."""
    active = _active
    if active is not None:
        active.link.load_ahead(planned, active.cache.ahead)


def stepped() -> None:
    """The program is past its start: what it needs later may be compiled."""
    active = _active
    if active is not None:
        active.link.require_warm(False)


def drop_ahead() -> None:
    """Let go of what was loaded ahead and not asked for; does not block."""
    active = _active
    if active is not None:
        active.link.drop_ahead()


def count(**amounts: int) -> None:
    """Add to the counters of the cache that is enabled."""
    if _active is not None:
        _active.counters.add(**amounts)


def _open_tiers(config: CacheConfig, counters: Counters, has_agent: bool) -> Tiers:
    store = open_store(
        config.location,
        max_size_bytes=config.max_size_bytes,
        deadline_s=config.deadline_s,
        count=counters.add,
        guarded=True,
    )
    node_dir = node_dir_of(config, has_agent)
    if node_dir is None:
        return Tiers(store, store if has_agent else None)
    return Tiers(store, open_store(node_dir, max_size_bytes=config.max_size_bytes))


def _autotune(config: CacheConfig, keyring: Keyring) -> Autotune:
    """XLA's results of this location on this host; touches nothing yet."""
    digest = hashlib.sha256(config.location.encode()).hexdigest()[:16]

    def opened() -> Store:
        return open_store(config.location, deadline_s=config.deadline_s)

    return Autotune(
        hotstart_home() / "autotune" / digest,
        opened,
        seal=Seal(keyring, config.location),
        writable=config.mode == "read-write",
    )


def _resolver(config: CacheConfig, tiers: Tiers, counters: Counters) -> Resolver:
    if config.compile == "every" or config.mode == "read-only" or not _may_compile_alone():
        return EachForItself()
    from hotstart.cache.lease_resolver import LeaseResolver
    from hotstart.cache.leases import StoreLeases

    leases = StoreLeases(tiers.store, on_error=lambda error: counters.add(errors=1))
    return LeaseResolver(leases, on_wait=lambda: counters.add(waits=1))


def _may_compile_alone() -> bool:
    """Whether one process may compile what others wait for; sets `XLA_FLAGS` so on GPU."""
    import jax

    platforms = jax.config.jax_platforms or os.environ.get("JAX_PLATFORMS") or ""
    installed = () if platforms else tuple(filter(importlib.util.find_spec, _GPU_PLUGINS))
    if not (installed or {"cuda", "gpu", "rocm"} & set(platforms.split(","))):
        return True
    before = os.environ.get("XLA_FLAGS", "")
    flags = compile_once_flags(before)
    if flags == before and not turns_autotuning_off(before):
        logger.warning("XLA_FLAGS turn sharded autotuning on: each process compiles for itself")
        return False
    if flags != before and has_backend():
        logger.warning(
            "a GPU backend was initialized before hotstart.cache.enable(): each process compiles "
            "for itself; enable the cache first, or set XLA_FLAGS=%s",
            flags,
        )
        return False
    os.environ["XLA_FLAGS"] = flags
    return True


def _import_gcsfs() -> None:
    from hotstart.cache.gcs_client import prepare

    with contextlib.suppress(Exception):  # the first request says what is wrong
        prepare()


def _require_readable(store: Store) -> None:
    try:
        store.get("entries/reachable")
    except StoreError as error:
        raise CacheRequired(f"the cache is required and cannot be read: {error}") from error


def _flush_at_exit() -> None:
    """Flush when the interpreter ends and, where the program has no handler, on SIGTERM."""
    global _exit_hooked
    if _exit_hooked:
        return
    _exit_hooked = True
    # Before `concurrent.futures` shuts its executors, which name resolution needs; atexit
    # callbacks run after that.
    register = getattr(threading, "_register_atexit", atexit.register)
    register(flush_at_exit)
    atexit.register(_flush_and_close)  # what non-daemon threads and exit handlers compile
    os.register_at_fork(after_in_child=_forget_locks)
    if _sigterm_is_free():
        signal.signal(signal.SIGTERM, _on_sigterm)
        watch_signals(_heard, held_back=signal.SIGTERM)


def _flush_and_close() -> None:
    flush_at_exit()
    if _active is not None:
        _active.cache.close()


def _forget_locks() -> None:
    if _active is not None:
        _active.counters.forget_locks()
        _active.cache.forget_locks()


def _sigterm_is_free() -> bool:
    # jax.distributed takes SIGTERM in C++, unseen by `signal`, and reads it as a preemption
    # notice (`reached_preemption_sync_point`). The process does not end by it then.
    import jax

    return (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        and not (jax.distributed.is_initialized() and jax.config.jax_enable_preemption_service)
    )


def flush_and_end(number: int) -> None:
    """Flush, then end this process by a signal, as if it had no handler for it."""
    with contextlib.suppress(Exception):
        flush(None)
        if _active is not None:
            _active.cache.close()
    end_by(number)


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    flush_and_end(number)


def _heard(number: int) -> None:
    if number == signal.SIGTERM and signal.getsignal(signal.SIGTERM) is _on_sigterm:
        flush_and_end(number)
