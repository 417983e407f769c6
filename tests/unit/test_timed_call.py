"""A call that may never come back."""

from __future__ import annotations

import threading

import pytest

from hotstart.launcher.timed_call import within

pytestmark = pytest.mark.unit


def test_call_in_time_gives_what_it_returns() -> None:
    assert within(10.0, lambda: None) is None
    assert within(10.0, lambda: 7) == 7


def test_call_that_raises_raises_its_error_with_its_cause() -> None:
    def call() -> None:
        try:
            raise KeyError("under it")
        except KeyError:
            raise ValueError("over it")  # noqa: B904

    with pytest.raises(ValueError, match="over it") as caught:
        within(10.0, call)
    assert isinstance(caught.value.__context__, KeyError)


def test_call_that_does_not_come_back_is_left_alone() -> None:
    may_end, ended = threading.Event(), threading.Event()

    def call() -> None:
        may_end.wait(30)
        ended.set()

    with pytest.raises(TimeoutError) as caught:
        within(0.05, call)
    assert str(caught.value) == "no answer within 0.05 s"
    may_end.set()
    assert ended.wait(10)
