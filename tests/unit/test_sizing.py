"""Which size of gang is asked for, and when there is something to say; the clock is the test's."""

from __future__ import annotations

import pytest

from hotstart.launcher.sizing import FALL_S, GROW_S, SETTLE_S, Sizing, Waiting

pytestmark = pytest.mark.unit


def sizing(room: int, least: int = 2, most: int = 8, step: int = 2) -> Sizing:
    made = Sizing(least, most, step, 0.0)
    made.begin(room)
    return made


@pytest.mark.parametrize(
    ("room", "asked"), [(0, 2), (1, 2), (2, 2), (3, 2), (5, 4), (8, 8), (99, 8)]
)
def test_first_size_is_what_there_is_room_for_in_whole_steps(room: int, asked: int) -> None:
    assert sizing(room).wanted == asked


def test_job_of_one_size_is_taken_when_it_is_granted() -> None:
    made = Sizing(4, 4, 2, 0.0)
    assert not made.is_elastic
    assert made.wanted == 4
    made.refused(0, 1000.0)
    assert made.wanted == 4
    assert made.granted(0, 1000.0)


def test_most_is_taken_at_once() -> None:
    assert sizing(8).granted(0, 0.1)


def test_fewer_are_taken_after_a_look_for_more() -> None:
    made = sizing(4)
    assert not made.granted(0, 1.0)
    assert not made.granted(0, 0.9 + SETTLE_S)
    assert made.granted(0, 1.0 + SETTLE_S)
    assert made.wanted == 4


def test_what_shows_meanwhile_is_asked_for_in_whole_steps() -> None:
    made = sizing(2)
    assert not made.granted(3, 1.0)
    assert made.wanted == 4
    assert not made.granted(99, 2.0)
    assert made.wanted == 8
    assert made.granted(0, 2.1)


def test_growing_ends_though_hosts_keep_coming() -> None:
    made = Sizing(1, 1000, 1, 0.0)
    made.begin(1)
    now_s = 1.0
    while not made.granted(1, now_s):
        now_s += 0.5
    assert now_s == 1.0 + GROW_S


def test_size_that_is_not_granted_falls_to_the_least_and_stays_there() -> None:
    made = sizing(8)
    made.refused(8, FALL_S - 0.1)
    assert made.wanted == 8
    made.refused(8, FALL_S)
    assert made.wanted == 6
    made.refused(3, 2 * FALL_S)
    assert made.wanted == 2
    made.refused(0, 100.0)
    assert made.wanted == 2


def test_words_come_soon_then_on_a_change_then_once_a_minute() -> None:
    waiting = Waiting(0.0)
    spoken = []
    for tenth in range(1500):
        now_s = tenth / 10
        text = "needs 4" if now_s < 31 else "needs 3"
        if waiting.may_speak(now_s) and waiting.speaks(text, now_s):
            spoken.append((now_s, text))
    assert spoken == [(2.0, "needs 4"), (31.0, "needs 3"), (91.0, "needs 3")]
