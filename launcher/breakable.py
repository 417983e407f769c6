"""Signals while Ray starts: they break it off, whatever handlers Ray installs meanwhile."""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def breakable() -> Iterator[None]:
    """Let SIGINT and SIGTERM break off what is inside, once their handlers have run.

    Ray takes seconds to start. It also puts handlers of its own in place of ours (absl's failure
    handler on SIGTERM), so ours are installed again afterwards.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {int(n): signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}

    def pass_on(number: int, frame: FrameType | None) -> None:
        before = signal.getsignal(number)
        handlers[number](number, frame)  # type: ignore[operator, misc]
        now = signal.getsignal(number)
        handlers[number] = handlers[number] if now is before else now  # it was replaced

    def break_off(number: int, frame: FrameType | None) -> None:
        pass_on(number, frame)
        raise _BrokenOff

    for number, handler in handlers.items():
        if callable(handler):
            signal.signal(number, break_off)
    unraisable = sys.unraisablehook

    def pass_over(error: sys.UnraisableHookArgs) -> None:
        if not isinstance(error.exc_value, _BrokenOff):  # lost in a fork hook, say: Ray starts
            unraisable(error)

    sys.unraisablehook = pass_over
    try:
        yield
    except _BrokenOff:
        logger.info("told to stop while connecting to Ray")
    except SystemExit as error:  # from the handler that ray.init has put over ours meanwhile
        if error.code != int(signal.SIGTERM) or not callable(handlers[signal.SIGTERM]):
            raise
        pass_on(signal.SIGTERM, None)
        logger.info("told to stop while connecting to Ray")
    finally:
        sys.unraisablehook = unraisable
        for number, handler in handlers.items():
            signal.signal(number, handler)


class _BrokenOff(BaseException):
    """A signal came while Ray started."""
