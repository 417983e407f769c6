"""What one call of JAX's `compile_or_get_cached` does, from its start to its end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from hotstart.cache.ahead import Loaded
from hotstart.cache.entry import Entry
from hotstart.cache.errors import CacheRequired
from hotstart.cache.key_recorder import Recorded
from hotstart.cache.requests import Outcome, Request


@dataclass
class Scope:
    """The notes of one call.

    probing: JAX only looks whether a key is there.
    asked: the keys that JAX asked for; the last one is the program's.
    read: reads the program as JAX has done, once more.
    served: what JAX was last given, as an entry or as a loaded executable.
    unloadable: the entries that JAX was given and could not load.
    superseded: the gang has published another executable than the one compiled here.
    required: what strict mode raises in place of the next compilation.
    recorded: the keys that JAX has made, as they were made.
    described: the description of the key of what is compiled, once it is there.
    """

    host_callbacks: bool = False
    probing: bool = False
    asked: list[str] = field(default_factory=list)
    read: Callable[[], tuple[Any, int | None]] = lambda: (None, None)
    options: bytes = b""
    device_ids: tuple[int, ...] = ()
    served: Entry | Loaded | None = None
    unloadable: list[Entry] = field(default_factory=list)
    compiled: bool = False
    compile_s: float = 0.0
    stored_bytes: int | None = None
    superseded: bool = False
    required: CacheRequired | None = None
    recorded: dict[str, Recorded] = field(default_factory=dict)
    described: Future[str] | None = None

    @property
    def hit(self) -> Entry | Loaded | None:
        """What answered the call, if nothing was compiled."""
        return None if self.compiled else self.served

    def summary(self) -> Request | None:
        """The call for the log; None where JAX did not ask the cache."""
        if not self.asked:
            return None
        key, hit = self.asked[-1], self.hit
        outcome: Outcome = "unstored" if self.stored_bytes is None else "compiled"
        size_bytes = self.stored_bytes or 0
        if hit is not None:
            outcome = "hit"
            size_bytes = len(hit.payload) if isinstance(hit, Entry) else hit.size_bytes
        return Request(
            key=key,
            module=key.rpartition("-")[0],
            outcome=outcome,
            digest=(hit.digest or None) if hit else None,
            size_bytes=size_bytes,
            options=self.options,
            device_ids=self.device_ids,
            host_callbacks=self.host_callbacks,
            compile_s=hit.meta.compile_s if hit else self.compile_s,
        )


class Current(threading.local):
    """The scope of the current thread; None outside of one."""

    scope: Scope | None = None
