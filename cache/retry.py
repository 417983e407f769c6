"""How a store call is retried: tenacity policies, each with a deadline, never one in another.

Only `TransientError` is retried. Waits are exponential with full jitter, so that many workers
turned away together do not come back together:
https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import NoReturn

import tenacity

from hotstart.cache.errors import DeadlineExceeded, TransientError

FIRST_WAIT_AT_MOST_S = 0.5
LONGEST_WAIT_S = 8.0

logger = logging.getLogger(__name__)


def retry_policy(
    *,
    deadline_s: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    on_retry: Callable[[], None] = lambda: None,
) -> tenacity.Retrying:
    """A policy for one operation, whose deadline counts from this call on.

    Call it as `retry_policy(deadline_s=30)(function, *args)`. It blocks for `deadline_s` seconds
    and the length of the last try at most: it does not begin a wait that would end later.
    `on_retry` is called before each further try. Raises `DeadlineExceeded`, chained to the
    last failure, and whatever else the function raises as it is.
    """
    started = clock()

    def stop(state: tenacity.RetryCallState) -> bool:
        return clock() - started + state.upcoming_sleep >= deadline_s

    def before_sleep(state: tenacity.RetryCallState) -> None:
        logger.info("trying again in %.1f s: %s", state.upcoming_sleep, _failure(state))
        on_retry()

    def give_up(state: tenacity.RetryCallState) -> NoReturn:
        failure = _failure(state)
        raise DeadlineExceeded(
            f"{failure}; given up after {clock() - started:.1f} s and {state.attempt_number} tries "
            f"(the deadline is {deadline_s:g} s)"
        ) from failure

    return tenacity.Retrying(
        retry=tenacity.retry_if_exception(_is_worth_a_retry),
        wait=tenacity.wait_random_exponential(multiplier=FIRST_WAIT_AT_MOST_S, max=LONGEST_WAIT_S),
        stop=stop,
        sleep=sleep,
        before_sleep=before_sleep,
        retry_error_callback=give_up,
    )


def _is_worth_a_retry(error: BaseException) -> bool:
    # A DeadlineExceeded has been retried already, by a policy inside: never again.
    return isinstance(error, TransientError) and not isinstance(error, DeadlineExceeded)


def _failure(state: tenacity.RetryCallState) -> TransientError:
    failure = state.outcome.exception() if state.outcome is not None else None
    if not isinstance(failure, TransientError):
        raise TypeError(f"retried after {failure!r}, which is no TransientError")
    return failure
