"""A worker's end of preemption: its SIGTERM, what its agent says, and what user code asks.

SIGTERM from outside is a notice, told to the agent; from the agent it is the end. A notice, from
wherever it came, reaches the program in the way that it listens: `context.preempted()` and
`context.on_preemption`, a handler of its own for SIGTERM, or JAX's preemption sync point, which
Orbax saves at; a program that was told to stop in any of these ways and returns has left. JAX takes
SIGTERM in C++; here Python takes it back and hands notices on to JAX.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from hotstart.cache.signals import end_by, native_handler, watch_signals
from hotstart.launcher.stop_agreement import StopAgreement

logger = logging.getLogger(__name__)

_CATCH_UP_S = 1.0
_TOLD_FIRST_S = 0.3  # what the agent says on the channel comes before the signal that it sends


class WorkerNotice:
    """Made on the main thread, before the cache and user code look at SIGTERM."""

    def __init__(
        self, send: Callable[[dict[str, Any]], None], process_count: int, end: Callable[[], None]
    ) -> None:
        """`send` speaks to the agent; `end` flushes and ends this process by SIGTERM."""
        self._send = send
        self._process_count = process_count
        self._end = end
        self._pid = os.getpid()
        self._agreement = StopAgreement(self._answer, self._tell)
        self._lock = threading.Lock()
        self._callbacks: list[Callable[[], None]] = []
        self._is_noticed = False
        self._is_told = False
        self._is_told_by_signal = False  # and by nothing else
        self._is_stopping = threading.Event()
        self._has_signal = threading.Event()
        self._jax_handler: int | None = None
        signal.signal(signal.SIGTERM, self._on_sigterm)
        self._python_handler = native_handler(signal.SIGTERM)
        self._watched = watch_signals(self._heard_signal, held_back=signal.SIGTERM)

    def ask(self) -> bool:
        """See `context.preempted`."""
        return self._agreement.ask()

    def on_notice(self, callback: Callable[[], None]) -> None:
        """See `context.on_preemption`."""
        with self._lock:
            self._callbacks.append(callback)
            is_late = self._is_noticed
        if is_late:
            self._call([callback])

    def leave(self) -> None:
        """The program leaves now, told or not."""
        self._tell()

    def ends_by_sigterm(self) -> bool:
        """Whether SIGTERM would only end this process: the program has no handler of its own."""
        return signal.getsignal(signal.SIGTERM) in (signal.SIG_DFL, self._on_sigterm)

    def stopping(self) -> None:
        """The launcher ends this worker, so SIGTERM is no notice any more."""
        self._is_stopping.set()
        self._agreement.let_go()

    def initialized(self) -> None:
        """`jax.distributed` has been initialized, and may have taken SIGTERM."""
        from hotstart.cache.jaxlink import hear_sync_points  # imports jax

        hear_sync_points(self._tell)
        native = native_handler(signal.SIGTERM)
        if native is None or native == self._python_handler:
            return
        with contextlib.suppress(ValueError):  # not on the main thread: then JAX keeps it
            signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
            self._jax_handler = native

    def noticed(self, hold_s: float, turn: int) -> None:
        """The launcher has announced a notice to the gang, or tries again to agree on the end."""
        self._agreement.hold(hold_s, turn)
        with self._lock:
            is_new, self._is_noticed = not self._is_noticed, True
            callbacks = list(self._callbacks)
        if not is_new:
            return
        self._call(callbacks)
        if self._jax_handler is not None:
            ctypes.CFUNCTYPE(None, ctypes.c_int)(self._jax_handler)(signal.SIGTERM)
        if self._has_own_handler() and not (self._listens() or self._has_signal.is_set()):
            self._tell()
            self._has_signal.set()
            os.kill(self._pid, signal.SIGTERM)  # the program's own handler

    def settled(self, stop_at: int | None, turn: int) -> None:
        """All workers stop at this call of `preempted`; see `StopAgreement.settle`."""
        self._agreement.settle(stop_at, turn)

    def ended(self, last_step: int | None, *, failed: bool) -> None:
        """The program has ended; say so where it was told to leave and has ended with 0."""
        if self._watched is not None and self._has_own_handler():
            self._watched.catch_up(_CATCH_UP_S)  # its handler for SIGTERM may be what has ended it
        if self._is_told and not failed:
            by_signal = self._is_told_by_signal
            self._send({"left": True, "last_step": last_step, "by_signal": by_signal})

    def _answer(self, calls: int | None, turn: int) -> None:
        self._send({"calls": calls, "turn": turn})

    def _has_own_handler(self) -> bool:
        handler = signal.getsignal(signal.SIGTERM)
        return callable(handler) and handler != self._on_sigterm

    def _listens(self) -> bool:
        return self._agreement.is_asked or bool(self._callbacks)

    def _tell(self) -> None:
        self._is_told = True
        self._is_told_by_signal = False

    def _call(self, callbacks: list[Callable[[], None]]) -> None:
        def run() -> None:
            for callback in callbacks:
                try:
                    callback()
                except Exception:
                    logger.exception("a callback for preemption raised")

        if callbacks:
            self._tell()
            threading.Thread(target=run, name="hotstart-preemption", daemon=True).start()

    def _on_sigterm(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:  # a child that was forked
            end_by(number)
        elif not self._has_signal.is_set():  # where the wake-up descriptor is somebody else's
            threading.Thread(target=self._heard_signal, args=(number,), daemon=True).start()

    def _heard_signal(self, number: int) -> None:
        has_own = self._has_own_handler()
        # The program's own handler runs now, so no waiting; the agent drops its own signals.
        wait_s = 0.0 if has_own else _TOLD_FIRST_S
        if number != signal.SIGTERM or self._is_stopping.wait(wait_s):
            return
        with self._lock:
            if self._has_signal.is_set():
                return
            self._has_signal.set()
        if has_own:
            if not self._is_told:
                self._is_told = self._is_told_by_signal = True
        elif self._process_count == 1 and not self._listens() and self._jax_handler is None:
            self._end()
        self._send({"sigterm": True})
