"""Counters of one process's cache."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class CacheStats:
    """What the cache of one process has done since it was enabled.

    requests: programs that JAX asked for.
    in_flight: those that it asks for now: they are read, waited for or compiled.
    hits: requests answered by a stored executable.
    compiled: backend compilations.
    waits: requests that waited for another process's answer.
    errors: entries that did not verify or load, and store operations that failed for good.
    unsigned, bad_signature: entries refused for want of a signature, or for a wrong one; only
        where there is a signing key, and not among the errors.
    read_bytes, written_bytes: entry bytes read from, and created in, the location; what the
        node directory answers is not read from the location.
    compile_s: seconds spent in backend compilations.
    saved_s: seconds that the compilation of each hit took when it was stored.
    retries: store requests that were sent again.
    retry_s: seconds that failed tries of store requests took, and the waits after them; of all
        threads together.
    outages: times that the store was left alone for a while, because operations in a row failed.
    loaded_ahead: hits whose executable had been loaded before JAX asked for it.
    load_ahead_dropped: executables that were loaded ahead in vain, and entries that were to be
        and could not.
    compiled_before_enable: executables that were alive before the cache was in place, with
        their names.
    """

    requests: int = 0
    in_flight: int = 0
    hits: int = 0
    compiled: int = 0
    waits: int = 0
    errors: int = 0
    unsigned: int = 0
    bad_signature: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    compile_s: float = 0.0
    saved_s: float = 0.0
    retries: int = 0
    retry_s: float = 0.0
    outages: int = 0
    loaded_ahead: int = 0
    load_ahead_dropped: int = 0
    compiled_before_enable: int = 0
    compiled_before_enable_names: tuple[str, ...] = field(default=())


class Counters:
    """The mutable side of `CacheStats`; safe among threads."""

    def __init__(self, on_change: Callable[[], None] = lambda: None) -> None:
        self._lock = threading.Lock()
        self._stats = CacheStats()
        self._on_change = on_change

    def add(self, **amounts: int | float) -> None:
        """Add to counters by name."""
        with self._lock:
            self._stats = replace(
                self._stats, **{name: getattr(self._stats, name) + n for name, n in amounts.items()}
            )
        self._on_change()

    def note_compiled_before(self, names: tuple[str, ...]) -> None:
        """Record the programs that were compiled before the cache was in place."""
        with self._lock:
            self._stats = replace(
                self._stats,
                compiled_before_enable=len(names),
                compiled_before_enable_names=names,
            )

    def forget_locks(self) -> None:
        """For a forked child: a thread of the parent may have held the lock."""
        self._lock = threading.Lock()

    def snapshot(self) -> CacheStats:
        """The counters now."""
        with self._lock:
            return self._stats
