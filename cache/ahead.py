"""Load ahead: entries become loaded executables while the program imports, builds and restores.

Turning an entry's bytes into an executable takes XLA about a second for a 12-layer step on CPU.
It lets go of the GIL, so a thread can do it beside Python that traces. Which programs will be
asked for is known from the manifest of an earlier attempt.

    waiting -> reading -> loading -> loaded -> gone
       |          |          |         '- taken by JAX, or dropped
       |          |          '- JAX waits for it: it is nearly there
       '----------'- JAX was faster and goes its own way

Nothing is handed out that JAX's own read would not give: key, compile options and devices must
agree with what JAX asks with, and each executable is handed out once. What is held is bounded
by bytes and by patience: a program that has not been asked for `patience` requests after its
turn is not coming. The backend is never initialized from here.
"""

from __future__ import annotations

import enum
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from hotstart.cache.counters import Counters
from hotstart.cache.entry import Entry, EntryMeta

logger = logging.getLogger(__name__)

_POLL_S = 0.01
_LIVENESS_S = 1.0


@dataclass(frozen=True)
class Planned:
    """A program that will be asked for: key, serialized compile options, device ids in order.

    Programs with host callbacks are not to be planned.
    """

    key: str
    options: bytes
    device_ids: tuple[int, ...]


@dataclass(frozen=True)
class Loaded:
    """A loaded executable and what is known of its entry.

    `stored_compile_s` is the whole number of seconds that JAX keeps with an executable.
    """

    executable: Any
    backend: Any
    stored_compile_s: int
    meta: EntryMeta
    digest: bytes
    size_bytes: int


class Runtime(Protocol):
    """The part of JAX that loading needs (`jaxlink`)."""

    def backend(self) -> Any:
        """The default backend, which has a `platform`; None while there is none."""
        ...

    def unpack(self, entry: Entry) -> tuple[bytes, int]:
        """The serialized executable and its compile seconds. Raises for one of another JAX."""
        ...

    def load(self, backend: Any, planned: Planned, serialized: bytes) -> Any:
        """The loaded executable. Blocks; raises for what XLA would not survive, or raises on."""
        ...


class _State(enum.Enum):
    WAITING = enum.auto()
    READING = enum.auto()
    LOADING = enum.auto()
    LOADED = enum.auto()
    GONE = enum.auto()


@dataclass
class _Slot:
    planned: Planned
    position: int
    state: _State = _State.WAITING
    held_bytes: int = 0
    loaded: Loaded | None = field(default=None, repr=False)


class LoadAhead:
    """Loads `entries`, the last one first, on `threads` daemon threads; safe among threads.

    read: gives the verified entry of a key or None, and takes no lease. May block.
    budget_bytes: of serialized, uncompressed executables held and not yet taken.
    platforms: where the backend's platform is none of these, nothing is loaded.
    """

    def __init__(
        self,
        entries: Sequence[Planned],
        read: Callable[[str], Entry | None],
        *,
        runtime: Runtime,
        counters: Counters,
        budget_bytes: int = 1 << 30,
        threads: int = 1,
        platforms: Collection[str] = ("cpu",),
        patience: int = 64,
    ) -> None:
        self._read = read
        self._runtime = runtime
        self._counters = counters
        self._budget_bytes = budget_bytes
        self._platforms = platforms
        self._patience = patience
        self._pid = os.getpid()
        self._changed = threading.Condition()
        self._slots: dict[str, _Slot] = {}
        for planned in entries:
            self._slots.setdefault(planned.key, _Slot(planned, len(self._slots)))
        # Backwards: what JAX asks for last is farthest off, and a restored start, which asks for
        # less, asks for that as well. So this and JAX's own loading meet in the middle.
        self._queue = deque(reversed(self._slots.values()))
        self._turns = deque(self._slots.values())
        self._held_bytes = 0
        self._inside_xla = 0
        self._requests = 0
        self._closed = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, name="hotstart-load-ahead", daemon=True)
            for _ in range(threads)
        ]

    def start(self) -> None:
        """Begin as soon as the program has initialized the backend; returns at once."""
        for thread in self._threads:
            thread.start()

    def take(
        self, key: str, options: bytes, device_ids: tuple[int, ...], backend: Any
    ) -> Loaded | None:
        """The executable of `key` if it is the one that JAX wants, else None. Called once a key.

        Blocks while just this one is being loaded.
        """
        if os.getpid() != self._pid:  # the parent may have held the lock when it forked
            return None
        with self._changed:
            self._requests += 1
            self._drop_overdue()
            slot = self._slots.get(key)
            if slot is None or self._closed.is_set():
                return None
            planned = slot.planned
            agrees = (planned.options, planned.device_ids) == (options, device_ids)
            while agrees and slot.state is _State.LOADING and not self._closed.is_set():
                if not any(thread.is_alive() for thread in self._threads):
                    break
                self._changed.wait(_LIVENESS_S)
            loaded = slot.loaded
            if loaded is None or not agrees or loaded.backend is not backend:
                self._let_go(slot)
                return None
            self._free(slot)
        self._counters.add(loaded_ahead=1)
        return loaded

    def skip(self, key: str) -> None:
        """JAX has asked for `key` in a way that no loaded executable can answer."""
        self.take(key, b"", (), None)

    def drop(self) -> None:
        """Let go of all that was not taken, and load no more; does not block on a load."""
        if os.getpid() != self._pid:
            return
        self._closed.set()
        with self._changed:
            for slot in self._slots.values():
                self._let_go(slot)
            self._queue.clear()

    def close(self) -> None:
        """As `drop`, and block until no thread is inside XLA any more: one load at most.

        The backend must not be torn down before. A thread that still reads is not waited for.
        """
        self.drop()
        if os.getpid() != self._pid:
            return
        with self._changed:
            self._changed.wait_for(lambda: self._inside_xla == 0)

    # On the threads.

    def _run(self) -> None:
        try:
            backend = self._await_backend()
        except AttributeError as error:
            logger.warning("nothing is loaded ahead: this JAX is not known to hotstart: %s", error)
            backend = None
        if backend is None or backend.platform not in self._platforms:
            self.drop()
            return
        while (slot := self._next()) is not None:
            try:
                loaded = self._load(slot, backend)
                failed = False
            except Exception as error:
                logger.debug("%s was not loaded ahead: %s", slot.planned.key, error)
                loaded, failed = None, True
            self._settle(slot, loaded, failed=failed)

    def _await_backend(self) -> Any:
        while not self._closed.is_set():
            backend = self._runtime.backend()
            if backend is not None:
                return backend
            self._closed.wait(_POLL_S)
        return None

    def _next(self) -> _Slot | None:
        with self._changed:
            while self._queue:
                slot = self._queue.popleft()
                if slot.state is _State.WAITING:
                    slot.state = _State.READING
                    return slot
        return None

    def _load(self, slot: _Slot, backend: Any) -> Loaded | None:
        entry = self._read(slot.planned.key)
        if entry is None:
            return None
        serialized, stored_compile_s = self._runtime.unpack(entry)
        if not self._reserve(slot, len(serialized)):
            return None
        try:
            executable = self._runtime.load(backend, slot.planned, serialized)
        finally:
            with self._changed:
                self._inside_xla -= 1
                self._changed.notify_all()
        return Loaded(
            executable=executable,
            backend=backend,
            stored_compile_s=stored_compile_s,
            meta=entry.meta,
            digest=entry.digest,
            size_bytes=len(entry.payload),
        )

    def _reserve(self, slot: _Slot, size_bytes: int) -> bool:
        """Wait for room in the budget; False where there is none to come, or no need any more."""
        if size_bytes > self._budget_bytes:
            return False
        with self._changed:
            while slot.state is _State.READING:
                if self._held_bytes + size_bytes <= self._budget_bytes:
                    self._held_bytes += size_bytes
                    slot.held_bytes = size_bytes
                    slot.state = _State.LOADING
                    self._inside_xla += 1
                    return True
                self._changed.wait()
        return False

    def _settle(self, slot: _Slot, loaded: Loaded | None, *, failed: bool) -> None:
        with self._changed:
            unwanted = loaded is not None and slot.state is not _State.LOADING
            if loaded is None or unwanted:
                self._free(slot)
            else:
                slot.state, slot.loaded = _State.LOADED, loaded
                self._changed.notify_all()
        if failed or unwanted:
            self._counters.add(load_ahead_dropped=1)

    # With the lock held.

    def _drop_overdue(self) -> None:
        while self._turns and self._turns[0].position + self._patience < self._requests:
            self._let_go(self._turns.popleft())

    def _let_go(self, slot: _Slot) -> None:
        """JAX does not want it, or not any more; what is being loaded goes when it is."""
        if slot.state is _State.LOADED:
            self._counters.add(load_ahead_dropped=1)
            self._free(slot)
        slot.state = _State.GONE
        self._changed.notify_all()

    def _free(self, slot: _Slot) -> None:
        self._held_bytes -= slot.held_bytes
        slot.held_bytes, slot.loaded, slot.state = 0, None, _State.GONE
        self._changed.notify_all()
