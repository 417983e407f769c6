"""How one request of JAX is served: what stands around its read, its compilation, its write.

    compile_or_get_cached       around_request   a scope; what was asked for is let go of at its
      is_executable_in_cache      around_probe   end, whatever happened
      get_executable_and_time     around_read    taken if loaded ahead, else JAX's own, which
        backend.get                 get          calls us back
      backend_compile_and_load    around_compile
      backend.put                 put            may say that another executable counts

`jaxlink` puts these in place; nothing here imports JAX's internals. Safe among threads: each has
a scope of its own.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from hotstart.cache.ahead import LoadAhead
from hotstart.cache.counters import Counters
from hotstart.cache.entry import Entry, EntryMeta
from hotstart.cache.errors import CacheRequired, WarmRequired
from hotstart.cache.key_recorder import Recorded
from hotstart.cache.requests import RequestLog
from hotstart.cache.scope import Current, Scope
from hotstart.cache.shared import SharedCache

logger = logging.getLogger(__name__)

_DESCRIBE_S = 2.0


class Serving:
    """Serves the requests of this process's JAX from a `SharedCache`.

    describe: gives the metadata of an entry that took these seconds to compile here.
    describe_key: begins to describe a key in the background, where that can be.
    """

    def __init__(
        self,
        cache: SharedCache,
        counters: Counters,
        describe: Callable[[float], EntryMeta],
        describe_key: Callable[[Recorded], Future[str] | None] = lambda recorded: None,
    ) -> None:
        self.requests = RequestLog()
        self.ahead: LoadAhead | None = None
        self.require_warm = False
        self._cache = cache
        self._counters = counters
        self._current = Current()
        self._describe = describe
        self._describe_key = describe_key

    def note_key(self, recorded: Recorded) -> None:
        """JAX has made a key; a request makes several where it probes."""
        if (scope := self._current.scope) is not None:
            scope.recorded[recorded.key] = recorded

    # The backend's two methods.

    def get(self, key: str) -> bytes | memoryview | None:
        """What JAX stored under `key`. Outside of a request nothing is leased."""
        scope = self._current.scope
        try:
            if scope is None or scope.probing:
                entry = self._cache.probe(key)
            else:
                scope.asked.append(key)
                scope.served = entry = self._cache.get(key)
        except CacheRequired as error:  # JAX would make a warning of it
            if scope is not None:
                scope.required = error
            return None
        return None if entry is None else entry.payload

    def put(
        self,
        key: str,
        value: bytes,
        pack: Callable[[bytes | memoryview], bytes] | None = None,
    ) -> None:
        """Store what JAX has compiled; `pack` is still to be done to it, in the background."""
        scope = self._current.scope or Scope()
        replaces = scope.unloadable[-1].digest if scope.unloadable else None
        meta, parts = self._describe(scope.compile_s), scope.described
        scope.superseded = self._cache.put(
            key, value, meta, replaces=replaces, pack=pack, parts=parts
        )
        scope.stored_bytes = len(value)

    # Around JAX's own functions, whose first parameters these have.

    def around_request(
        self,
        stock: Callable[..., Any],
        backend: Any,
        computation: Any,
        devices: Any,
        compile_options: Any,
        host_callbacks: Any,
        *rest: Any,
        **kwargs: Any,
    ) -> Any:
        """`compile_or_get_cached`."""
        outer, scope = self._current.scope, Scope(host_callbacks=bool(host_callbacks))
        self._current.scope = scope
        self._counters.add(in_flight=1)
        try:
            executable = stock(
                backend, computation, devices, compile_options, host_callbacks, *rest, **kwargs
            )
            return self._published(scope) or executable if scope.superseded else executable
        finally:
            self._current.scope = outer
            self._end(scope)

    def around_probe(self, stock: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """`is_executable_in_cache`."""
        scope = self._current.scope or Scope()
        scope.probing = True
        try:
            return stock(*args, **kwargs)
        finally:
            scope.probing = False

    def around_read(
        self,
        stock: Callable[..., Any],
        cache_key: str,
        compile_options: Any,
        backend: Any,
        executable_devices: Any,
        *rest: Any,
        **kwargs: Any,
    ) -> Any:
        """`get_executable_and_time`."""
        read = functools.partial(
            stock, cache_key, compile_options, backend, executable_devices, *rest, **kwargs
        )
        scope = self._current.scope
        if scope is None:
            return read()
        scope.read = read
        scope.options = self.requests.intern(compile_options.SerializeAsString())
        scope.device_ids = tuple(device.id for device in executable_devices)
        loaded = self._take_ahead(scope, cache_key, backend)
        if loaded is not None:
            return loaded
        try:
            return read()
        except Exception as error:
            if not self._note_unloadable(scope, error):
                raise
            try:
                found = read()
            except Exception as again:
                self._note_unloadable(scope, again)
                raise
            if scope.served is None:
                raise  # JAX warns, or raises if it was told to
            return found

    def around_compile(self, stock: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """`backend_compile_and_load`."""
        scope = self._current.scope or Scope()
        scope.compiled = True
        recorded = scope.recorded.get(scope.asked[-1]) if scope.asked else None
        if recorded is not None:
            scope.described = self._describe_key(recorded)
        if scope.required is not None:
            raise scope.required
        if self.require_warm and scope.asked and not scope.host_callbacks:
            raise self._not_warm(scope)
        started = time.monotonic()
        executable = stock(*args, **kwargs)
        scope.compile_s = time.monotonic() - started
        self._counters.add(compiled=1, compile_s=scope.compile_s)
        return executable

    def _not_warm(self, scope: Scope) -> WarmRequired:
        if scope.described is not None:  # so that it is told of before this process ends
            with contextlib.suppress(TimeoutError):
                scope.described.result(_DESCRIBE_S)
        key = scope.asked[-1]
        return WarmRequired(f"{key} is not in {self._cache.url}, and nothing is to be compiled")

    def _end(self, scope: Scope) -> None:
        hit = scope.hit
        saved = {} if hit is None else {"hits": 1, "saved_s": hit.meta.compile_s}
        self._counters.add(in_flight=-1, requests=1, **saved)  # first: nothing may leave it open
        for key in scope.asked:
            self._cache.done(key)
        request = scope.summary()
        if request is not None:
            self.requests.add(request)

    def _published(self, scope: Scope) -> Any:
        """The gang's executable in place of the one compiled here; None where it does not load.

        On GPU two compilations of one program can differ in the order of their collectives.
        """
        reason = "it is not there"
        self._cache.done(scope.asked[-1])  # or the read would wait for this very process
        try:
            executable, _ = scope.read()
            if executable is not None:
                return executable
        except Exception as error:
            self._note_unloadable(scope, error)
            reason = f"{type(error).__name__}: {error}"
        logger.warning(
            "this process runs its own executable of %s, as the one that another process has "
            "published does not load here (%s); where the gang hangs in a collective, restart it",
            scope.asked[-1],
            reason,
        )
        return None

    def _note_unloadable(self, scope: Scope, error: Exception) -> bool:
        """Tell of the entry that was just served; False where there was none."""
        entry, scope.served = scope.served, None
        if not isinstance(entry, Entry):
            return False
        logger.info("an entry of %s does not load here: %s", entry.key, error)
        scope.unloadable.append(entry)
        self._counters.add(errors=1)
        self._cache.failed(entry.key, entry)
        return True

    def _take_ahead(self, scope: Scope, key: str, backend: Any) -> tuple[Any, int] | None:
        ahead = self.ahead
        if ahead is None:
            return None
        if scope.host_callbacks:
            ahead.skip(key)
            return None
        loaded = ahead.take(key, scope.options, scope.device_ids, backend)
        if loaded is None:
            return None
        scope.asked.append(key)
        scope.served = loaded
        return loaded.executable, loaded.stored_compile_s
