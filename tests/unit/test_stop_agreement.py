"""All processes stop at one call, and none waits for ever."""

from __future__ import annotations

import random
import threading

import pytest

from hotstart.launcher.stop_agreement import StopAgreement
from tests.support.launch import await_true

pytestmark = pytest.mark.unit


class Process:
    """One process of a gang: its agreement, what it has answered, and what it was told."""

    def __init__(self) -> None:
        self.answers: list[int | None] = []
        self.told = 0
        self.agreement = StopAgreement(lambda calls, turn: self.answers.append(calls), self._tell)

    def _tell(self) -> None:
        self.told += 1


def test_ask_without_a_notice_is_false_and_answers_nothing() -> None:
    process = Process()
    assert [process.agreement.ask() for _ in range(3)] == [False] * 3
    assert (process.answers, process.told) == ([], 0)


def test_ask_after_a_notice_waits_and_is_true_from_the_agreed_call_on() -> None:
    process = Process()
    for _ in range(3):
        process.agreement.ask()
    process.agreement.hold(30.0, 1)
    assert process.answers == [3]
    got: list[bool] = []
    asker = threading.Thread(target=lambda: got.extend(process.agreement.ask() for _ in range(4)))
    asker.start()
    asker.join(0.2)
    assert got == []
    process.agreement.settle(6, 1)
    asker.join(5)
    assert got == [False, False, True, True]
    assert (process.answers, process.told) == ([3], 1)


def test_ask_where_nobody_settles_goes_on_after_a_while_and_stops_nowhere() -> None:
    process = Process()
    process.agreement.ask()
    process.agreement.hold(0.05, 1)
    assert process.agreement.ask() is False
    process.agreement.settle(2, 1)
    assert process.agreement.ask() is False
    assert (process.answers, process.told) == ([1, None], 0)


def test_ask_settled_late_but_ahead_still_stops() -> None:
    process = Process()
    process.agreement.hold(0.05, 1)
    assert process.agreement.ask() is False
    process.agreement.settle(3, 1)
    assert [process.agreement.ask() for _ in range(2)] == [False, True]
    assert process.answers == [0]


def test_settle_without_an_agreement_lets_go() -> None:
    process = Process()
    process.agreement.hold(30.0, 1)
    got: list[bool] = []
    asker = threading.Thread(target=lambda: got.append(process.agreement.ask()))
    asker.start()
    process.agreement.settle(None, 1)
    asker.join(5)
    assert got == [False]


def test_turn_that_is_over_settles_nothing_in_the_next() -> None:
    process = Process()
    process.agreement.hold(30.0, 1)
    process.agreement.settle(None, 1)
    assert [process.agreement.ask() for _ in range(5)] == [False] * 5
    process.agreement.hold(30.0, 2)
    got: list[bool] = []
    asker = threading.Thread(target=lambda: got.extend(process.agreement.ask() for _ in range(2)))
    asker.start()
    process.agreement.hold(30.0, 1)
    process.agreement.settle(3, 1)
    asker.join(0.2)
    assert got == []
    process.agreement.settle(7, 2)
    asker.join(5)
    assert (got, process.answers, process.told) == ([False, True], [0, 5], 1)


@pytest.mark.parametrize("seed", range(20))
def test_gang_in_lockstep_stops_at_the_same_step_whenever_the_notice_comes(seed: int) -> None:
    """Collectives bind the processes: one may be a step ahead, and a wrong stop would hang."""
    count, rng = 4, random.Random(seed)
    step = threading.Barrier(count)
    processes = [Process() for _ in range(count)]
    stopped: list[int | None] = [None] * count
    begun = [0] * count

    def train(index: int) -> None:
        for number in range(1, 400):
            begun[index] = number
            try:
                step.wait(10)  # a collective
            except threading.BrokenBarrierError:
                return
            if processes[index].agreement.ask():
                stopped[index] = number
                return

    threads = [threading.Thread(target=train, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    at = rng.randrange(1, 100)
    await_true(lambda: max(begun) >= at, 10)
    order = rng.sample(range(count), count)
    for index in order:
        processes[index].agreement.hold(10.0, 1)
    numbers = [number for p in processes for number in p.answers if number is not None]
    for index in rng.sample(order, count):
        processes[index].agreement.settle(max(numbers) + 1, 1)
    for thread in threads:
        thread.join(20)
    assert not step.broken
    assert stopped == [max(numbers) + 1] * count
