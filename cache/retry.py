"""How a store call is retried: tenacity policies, each with a deadline, never one in another.

Only `TransientError` is retried. Waits are exponential with full jitter, so that many workers
turned away together do not come back together:
https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
Where the store says when to come back (`Retry-After`), that time comes on top.

Each try has a bound of its own, so that a connection which trickles, and so is never silent for
long, costs a part of the deadline and not all of it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import NoReturn

import tenacity

from hotstart.cache.errors import DeadlineExceeded, StoreOut, TransientError

FIRST_WAIT_AT_MOST_S = 0.5
LONGEST_WAIT_S = 8.0
_TRIES_IN_A_DEADLINE = 3
SLOWEST_BYTES_PER_S = 2e6

logger = logging.getLogger(__name__)


def try_timeout_s(deadline_s: float, size_bytes: int) -> float:
    """How long one try may take of an operation with this deadline that moves so many bytes.

    A third of the deadline, and what the bytes take at 2 MB/s: slower than that, another
    connection is likely to be faster. What is left of the deadline bounds it besides.
    """
    return deadline_s / _TRIES_IN_A_DEADLINE + size_bytes / SLOWEST_BYTES_PER_S


def retry_policy(
    *,
    deadline_s: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    on_retry: Callable[[], None] = lambda: None,
    on_lost: Callable[[float], None] = lambda lost_s: None,
) -> tenacity.Retrying:
    """A policy for one operation, whose deadline counts from this call on.

    Call it as `retry_policy(deadline_s=30)(function, *args)`. It blocks for `deadline_s` seconds
    and the length of the last try at most: it does not begin a wait that would end later, also
    where the store asks for it. `on_retry` is called before each further try; `on_lost`, after
    each failed try, with the seconds that it and the wait after it take. Raises
    `DeadlineExceeded`, chained to the last failure, and whatever else the function raises as it
    is.
    """
    started = clock()
    lost_until = started
    jitter = tenacity.wait_random_exponential(multiplier=FIRST_WAIT_AT_MOST_S, max=LONGEST_WAIT_S)

    def wait(state: tenacity.RetryCallState) -> float:
        return jitter(state) + (_failure(state).retry_after_s or 0.0)

    def stop(state: tenacity.RetryCallState) -> bool:
        return clock() - started + state.upcoming_sleep >= deadline_s

    def note_lost(until: float) -> None:
        nonlocal lost_until
        on_lost(until - lost_until)
        lost_until = until

    def before_sleep(state: tenacity.RetryCallState) -> None:
        logger.info("trying again in %.1f s: %s", state.upcoming_sleep, _failure(state))
        on_retry()
        note_lost(clock() + state.upcoming_sleep)

    def give_up(state: tenacity.RetryCallState) -> NoReturn:
        failure = _failure(state)
        note_lost(clock())
        tries = "1 try" if state.attempt_number == 1 else f"{state.attempt_number} tries"
        raise DeadlineExceeded(
            f"{failure}; given up after {clock() - started:.1f} s and {tries} "
            f"(the deadline is {round(deadline_s, 1):g} s)"
        ) from failure

    return tenacity.Retrying(
        retry=tenacity.retry_if_exception(_is_worth_a_retry),
        wait=wait,
        stop=stop,
        sleep=sleep,
        before_sleep=before_sleep,
        retry_error_callback=give_up,
    )


def _is_worth_a_retry(error: BaseException) -> bool:
    # A DeadlineExceeded has been retried already, by a policy inside: never again.
    return isinstance(error, TransientError) and not isinstance(error, DeadlineExceeded | StoreOut)


def _failure(state: tenacity.RetryCallState) -> TransientError:
    failure = state.outcome.exception() if state.outcome is not None else None
    if not isinstance(failure, TransientError):
        raise TypeError(f"retried after {failure!r}, which is no TransientError")
    return failure
