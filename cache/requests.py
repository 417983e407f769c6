"""A log of the programs that JAX asked for, in order: what a manifest is made of."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

logger = logging.getLogger(__name__)

Outcome = Literal["hit", "compiled", "unstored"]


@dataclass(frozen=True)
class Request:
    """One program that JAX asked the cache for, as it ended.

    outcome: answered by an entry; compiled and handed to the cache; or not stored, whether
        thresholds or host callbacks forbade it or compiling raised.
    digest: the entry's; None where it was compiled here, for only the cache knows it then.
    size_bytes: the entry's payload, 0 where nothing was stored.
    options: the compile options, serialized as XLA does it; they hold the device assignment.
    device_ids: where the program runs, in order.
    host_callbacks: whether it calls back into this process's Python.
    compile_s: what compiling took, here or, for a hit, when the entry was stored.
    """

    key: str
    module: str
    outcome: Outcome
    digest: bytes | None
    size_bytes: int
    options: bytes
    device_ids: tuple[int, ...]
    host_callbacks: bool
    compile_s: float


class RequestLog:
    """All requests of this process; safe among threads without a lock, so safe to fork.

    `on_request` is called with each new one on the thread that compiles, which waits for it.
    """

    def __init__(self, on_request: Callable[[Request], None] | None = None) -> None:
        self.on_request = on_request
        self._requests: list[Request] = []
        self._options: dict[bytes, bytes] = {}

    def intern(self, options: bytes) -> bytes:
        """The one copy of these options: few of them differ, and each has about 1 KB."""
        return self._options.setdefault(options, options)

    def add(self, request: Request) -> None:
        """Append a request and tell of it; never raises."""
        self._requests.append(request)
        if self.on_request is None:
            return
        try:
            self.on_request(request)
        except Exception:
            logger.warning("telling of the request for %s failed", request.module, exc_info=True)

    def all(self) -> tuple[Request, ...]:
        """The requests so far."""
        return tuple(self._requests)
