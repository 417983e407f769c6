"""A call that may never come back, such as a request without a timeout: waited for so long."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def within(timeout_s: float, call: Callable[[], T]) -> T:
    """What `call` returns, or raises; blocks for at most `timeout_s`, then raises TimeoutError.

    It goes on all the same, on a thread that keeps no process from ending.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="hotstart-timed-call", daemon=True)
    thread.start()
    thread.join(timeout_s)
    if errors:
        raise errors[0]
    if results:
        return results[0]
    raise TimeoutError(f"no answer within {timeout_s:g} s")
