"""Hear of a signal while the main thread is inside a computation.

Python runs handlers between two bytecodes of the main thread; one that waits for a dead peer's
collective may never get there. The signal's number is written to a pipe at once, though
(`signal.set_wakeup_fd`), and a thread reads it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import threading
from collections import deque
from collections.abc import Callable


class Watched:
    """What `watch_signals` has begun to watch."""

    def __init__(self, writer: int) -> None:
        self._writer = writer
        self._marks: deque[threading.Event] = deque()

    def catch_up(self, timeout_s: float) -> None:
        """Block until `on_signal` has been called for what came before, at most `timeout_s`."""
        mark = threading.Event()
        self._marks.append(mark)
        with contextlib.suppress(OSError):
            os.write(self._writer, b"\0")
            mark.wait(timeout_s)

    def _caught_up(self) -> None:
        self._marks.popleft().set()


def watch_signals(on_signal: Callable[[int], None], *, held_back: signal.Signals) -> Watched | None:
    """Call `on_signal` with the number of each signal that Python has a handler for.

    On a thread of its own. Call it on the main thread. None where somebody else has taken the
    one wake-up descriptor of the process. `held_back` is not delivered while the process forks.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    others = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    if others != -1:
        signal.set_wakeup_fd(others)
        os.close(reader)
        os.close(writer)
        return None

    watched = Watched(writer)

    def watch() -> None:
        while number := os.read(reader, 1):
            if number[0]:
                on_signal(number[0])
            else:
                watched._caught_up()

    # A forked child shares the pipe, so its own signal would be taken for the parent's: it waits
    # until the child has let go.
    masks = threading.local()

    def hold_back() -> None:
        masks.before = signal.pthread_sigmask(signal.SIG_BLOCK, {held_back})

    def go_on() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, masks.before)

    def let_go() -> None:
        other = signal.set_wakeup_fd(-1)
        if other != writer:
            signal.set_wakeup_fd(other)
        go_on()

    os.register_at_fork(before=hold_back, after_in_parent=go_on, after_in_child=let_go)
    threading.Thread(target=watch, name="hotstart-signals", daemon=True).start()
    return watched


def end_by(number: int) -> None:
    """End this process by a signal, as if it had no handler for it; from any thread."""
    # `signal.signal` works on the main thread only.
    ctypes.CDLL(None).signal(number, 0)  # SIG_DFL
    os.kill(os.getpid(), number)


def native_handler(number: int) -> int | None:
    """The address of the process's handler, also of one that Python doesn't know of.

    None without one. Of glibc's and musl's `struct sigaction` the handler is the first member.
    """
    action = ctypes.create_string_buffer(512)
    if ctypes.CDLL(None).sigaction(number, None, action) != 0:
        return None
    address = ctypes.c_void_p.from_buffer(action).value
    return address if address is not None and address > 1 else None  # 1: SIG_IGN
