from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest

from hotstart.cache.errors import AccessDenied, DeadlineExceeded, StoreOut, TransientError
from hotstart.cache.retry import (
    FIRST_WAIT_AT_MOST_S,
    LONGEST_WAIT_S,
    retry_policy,
    try_timeout_s,
)

pytestmark = pytest.mark.unit


class FakeTime:
    """A clock that only sleeping, or a call that takes its time, moves on."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.sleeps: list[float] = []

    def clock(self) -> float:
        return self.now_s

    def sleep(self, duration_s: float) -> None:
        self.sleeps.append(duration_s)
        self.now_s += duration_s


@pytest.fixture
def time() -> FakeTime:
    return FakeTime()


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    state = random.getstate()
    random.seed(1234)
    yield
    random.setstate(state)


def failing(times: int, error: Exception) -> Callable[[], str]:
    failures = [error] * times

    def call() -> str:
        if failures:
            raise failures.pop()
        return "done"

    return call


def test_policy_success_returns_without_a_wait(time: FakeTime) -> None:
    policy = retry_policy(deadline_s=10, clock=time.clock, sleep=time.sleep)

    assert policy(lambda a, b: a + b, 1, b=2) == 3
    assert time.sleeps == []


def test_policy_two_transient_failures_counts_two_retries(time: FakeTime) -> None:
    retries: list[float] = []
    policy = retry_policy(
        deadline_s=100,
        clock=time.clock,
        sleep=time.sleep,
        on_retry=lambda: retries.append(time.now_s),
    )

    assert policy(failing(2, TransientError("503"))) == "done"
    assert len(retries) == 2
    assert len(time.sleeps) == 2


def test_policy_waits_are_uniform_up_to_a_doubling_bound(time: FakeTime) -> None:
    policy = retry_policy(deadline_s=1000, clock=time.clock, sleep=time.sleep)

    policy(failing(7, TransientError("503")))

    bounds = [min(FIRST_WAIT_AT_MOST_S * 2**n, LONGEST_WAIT_S) for n in range(7)]
    random.seed(1234)
    assert bounds == [0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0]
    assert time.sleeps == [random.uniform(0, bound) for bound in bounds]


def test_policy_other_error_is_raised_at_once_as_it_is(time: FakeTime) -> None:
    denied = AccessDenied("403")
    policy = retry_policy(deadline_s=10, clock=time.clock, sleep=time.sleep)

    with pytest.raises(AccessDenied) as raised:
        policy(failing(1, denied))
    assert raised.value is denied
    assert time.sleeps == []


def test_policy_deadline_of_an_inner_policy_is_not_retried(time: FakeTime) -> None:
    exceeded = DeadlineExceeded("inner")
    policy = retry_policy(deadline_s=10, clock=time.clock, sleep=time.sleep)

    with pytest.raises(DeadlineExceeded) as raised:
        policy(failing(1, exceeded))
    assert raised.value is exceeded
    assert time.sleeps == []


def test_policy_failures_without_end_raise_deadline_exceeded_in_time(time: FakeTime) -> None:
    last = TransientError("cannot read gs://b/o: HTTP 503")
    policy = retry_policy(deadline_s=30, clock=time.clock, sleep=time.sleep)

    with pytest.raises(DeadlineExceeded, match=r"gs://b/o: HTTP 503; given up .* deadline is 30 s"):
        policy(failing(1000, last))
    assert 30 - LONGEST_WAIT_S <= sum(time.sleeps) < 30


def test_policy_deadline_exceeded_is_chained_to_the_last_failure(time: FakeTime) -> None:
    last = TransientError("503")
    policy = retry_policy(deadline_s=0, clock=time.clock, sleep=time.sleep)

    with pytest.raises(DeadlineExceeded) as raised:
        policy(failing(1, last))
    assert raised.value.__cause__ is last


def test_policy_time_spent_in_the_call_counts_towards_the_deadline(time: FakeTime) -> None:
    calls = 0

    def slow() -> None:
        nonlocal calls
        calls += 1
        time.now_s += 6
        raise TransientError("stalled")

    with pytest.raises(DeadlineExceeded):
        retry_policy(deadline_s=10, clock=time.clock, sleep=time.sleep)(slow)
    assert calls == 2


def test_policy_retry_after_comes_on_top_of_the_jitter(time: FakeTime) -> None:
    policy = retry_policy(deadline_s=100, clock=time.clock, sleep=time.sleep)

    assert policy(failing(2, TransientError("429", retry_after_s=7.0))) == "done"

    random.seed(1234)
    assert time.sleeps == [7.0 + random.uniform(0, 0.5), 7.0 + random.uniform(0, 1.0)]


def test_policy_retry_after_beyond_the_deadline_gives_up_at_once(time: FakeTime) -> None:
    policy = retry_policy(deadline_s=30, clock=time.clock, sleep=time.sleep)

    with pytest.raises(DeadlineExceeded, match=r"given up after 0\.0 s and 1 try "):
        policy(failing(1, TransientError("429", retry_after_s=30.0)))
    assert time.sleeps == []


def test_policy_counts_the_seconds_of_failed_tries_and_waits_but_not_of_the_last_try(
    time: FakeTime,
) -> None:
    lost: list[float] = []
    failures = 2

    def slow() -> str:
        nonlocal failures
        time.now_s += 4
        failures -= 1
        if failures >= 0:
            raise TransientError("503")
        return "done"

    policy = retry_policy(deadline_s=100, clock=time.clock, sleep=time.sleep, on_lost=lost.append)
    assert policy(slow) == "done"
    assert lost == pytest.approx([4 + time.sleeps[0], 4 + time.sleeps[1]])


def test_policy_given_up_counts_the_seconds_of_its_last_try_too(time: FakeTime) -> None:
    lost: list[float] = []

    def slow() -> None:
        time.now_s += 6
        raise TransientError("stalled")

    policy = retry_policy(deadline_s=10, clock=time.clock, sleep=time.sleep, on_lost=lost.append)
    started = time.now_s
    with pytest.raises(DeadlineExceeded):
        policy(slow)
    assert sum(lost) == pytest.approx(time.now_s - started)
    assert lost[-1] == pytest.approx(6)


def test_policy_store_that_is_out_is_not_retried(time: FakeTime) -> None:
    policy = retry_policy(deadline_s=10, clock=time.clock, sleep=time.sleep)

    with pytest.raises(StoreOut):
        policy(failing(1, StoreOut("left alone")))
    assert time.sleeps == []


@pytest.mark.parametrize(
    ("deadline_s", "size_bytes", "expected_s"),
    [(30.0, 0, 10.0), (30.0, 2_000_000, 11.0), (0.9, 200_000, 0.4), (30.0, 100_000_000, 60.0)],
)
def test_try_timeout_is_a_third_of_the_deadline_and_what_the_bytes_may_take(
    deadline_s: float, size_bytes: int, expected_s: float
) -> None:
    assert try_timeout_s(deadline_s, size_bytes) == pytest.approx(expected_s)
