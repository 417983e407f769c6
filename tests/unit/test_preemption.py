"""What the driver makes of notices, on a clock that only the test moves."""

from __future__ import annotations

import pytest

from hotstart.launcher.preemption import (
    GangPreemption,
    Leaving,
    PreemptionNotice,
    StopPoint,
    first_to_go,
)

pytestmark = pytest.mark.unit

DRAIN = PreemptionNotice("drain", "host-a", 40.0, host_index=0)


def gang(count: int = 2) -> GangPreemption:
    return GangPreemption(count, started_s=100.0, stop_s=3.0)


def test_notice_the_first_is_announced_and_a_second_is_not() -> None:
    preemption = gang()
    assert preemption.heard(DRAIN, 110.0)
    assert not preemption.heard(DRAIN, 111.0)
    assert preemption.hold_s == 20.0


def test_notice_with_little_time_left_holds_nobody_for_long() -> None:
    preemption = gang()
    preemption.heard(PreemptionNotice("drain", "host-a", 4.0), 110.0)
    assert preemption.hold_s == 2.0


def test_stop_is_the_call_after_the_highest_once_all_have_answered() -> None:
    preemption = gang()
    preemption.heard(DRAIN, 110.0)
    assert preemption.answered(StopPoint(0, 7)) is None
    assert preemption.answered(StopPoint(1, 8)) == 9
    assert preemption.answered(StopPoint(1, 8)) is None
    assert preemption.has_no_agreement(130.0) == ()


def test_stop_does_not_wait_for_a_worker_that_has_ended() -> None:
    preemption = gang()
    preemption.heard(DRAIN, 110.0)
    assert preemption.answered(StopPoint(0, 7)) is None
    assert preemption.ended(1) == 8


def test_stop_is_given_up_where_a_worker_does_not_answer() -> None:
    preemption = gang()
    preemption.heard(DRAIN, 110.0)
    preemption.answered(StopPoint(0, 7))
    assert preemption.has_no_agreement(119.0) == ()
    assert preemption.has_no_agreement(121.0) == (1,)
    assert preemption.has_no_agreement(122.0) == ()
    assert preemption.answered(StopPoint(1, 7)) is None


def test_stop_that_was_given_up_is_tried_again_and_counts_new_answers_alone() -> None:
    preemption = gang()
    preemption.heard(PreemptionNotice("drain", "host-a", 3600.0), 110.0)
    preemption.answered(StopPoint(0, 7))
    assert preemption.has_no_agreement(120.0) == (1,)
    assert not preemption.tries_again(121.9)
    assert preemption.tries_again(122.0)
    assert not preemption.tries_again(122.1)
    assert (preemption.turn, preemption.hold_s) == (2, 20.0)
    assert preemption.answered(StopPoint(1, 7)) is None  # to the first, and late
    assert preemption.answered(StopPoint(0, 30, 2)) is None
    assert preemption.answered(StopPoint(1, 29, 2)) == 31
    assert not preemption.tries_again(1000.0)


def test_stop_is_tried_again_less_and_less_often() -> None:
    preemption, now_s, began_s = gang(), 110.0, []
    preemption.heard(PreemptionNotice("metadata", "host-a", 3600.0), now_s)
    while now_s < 500.0:
        now_s += 1.0
        preemption.has_no_agreement(now_s)
        if preemption.tries_again(now_s):
            began_s.append(now_s)
    assert began_s == [122.0, 136.0, 154.0, 180.0, 222.0, 292.0, 362.0, 432.0]


@pytest.mark.parametrize("why", ["some have left", "the rest is about to be ended"])
def test_stop_is_not_tried_again_where(why: str) -> None:
    preemption = gang()
    preemption.heard(DRAIN, 110.0)
    assert preemption.has_no_agreement(120.0) == (0, 1)
    if why == "some have left":
        preemption.left(Leaving(0, 12), 121.0)
    assert not preemption.tries_again(125.0 if preemption._left else 140.1)


def test_overdue_leaves_time_to_stop_and_flush_before_the_deadline() -> None:
    preemption = gang()
    assert preemption.overdue(1000.0) is None
    preemption.heard(DRAIN, 110.0)
    assert preemption.overdue(141.9) is None
    assert preemption.overdue(142.0) == "its workers had not left in time and were ended"


def test_overdue_by_the_earliest_deadline_of_all_notices() -> None:
    preemption = gang()
    preemption.heard(DRAIN, 110.0)
    preemption.heard(PreemptionNotice("metadata", "host-b", 10.0), 112.0)
    assert preemption.overdue(116.9) is None
    assert preemption.overdue(117.0) is not None


def test_overdue_without_a_deadline_is_as_long_as_a_spot_vm_has() -> None:
    preemption = gang()
    preemption.heard(PreemptionNotice("sigterm", "host-a", process_index=1), 110.0)
    assert preemption.overdue(131.9) is None
    assert preemption.overdue(132.0) is not None


def test_overdue_names_who_did_not_leave_with_the_others() -> None:
    preemption = gang()
    preemption.heard(PreemptionNotice("drain", "host-a", 3600.0), 110.0)
    preemption.left(Leaving(0, 12), 115.0)
    assert preemption.overdue(145.0) is None
    assert preemption.overdue(145.1) == "process 1 did not leave within 30 s of the others"


def test_facts_have_each_notice_and_who_left_when() -> None:
    preemption = gang()
    preemption.heard(DRAIN, 110.5)
    preemption.left(Leaving(1, 12), 112.0)
    [fact] = preemption.facts()
    assert fact == {
        "source": "drain",
        "host": "host-a",
        "left_s": 40.0,
        "detail": "",
        "process_index": None,
        "host_index": 0,
        "seen_at_s": 10.5,
        "left": [{"process_index": 1, "at_s": 12.0, "last_step": 12}],
        "ended_by_launcher": False,
    }


def test_notice_of_a_host_comes_before_one_of_a_process() -> None:
    signal = PreemptionNotice("sigterm", "host-b", process_index=1)
    assert first_to_go([signal, DRAIN]) is DRAIN
    assert first_to_go([signal]) is signal
    assert first_to_go([]) is None
    to_agent = PreemptionNotice("sigterm", "host-c")
    assert first_to_go([signal, to_agent]) is to_agent
    assert first_to_go([to_agent, DRAIN]) is DRAIN


def test_notice_says_who_what_and_how_long() -> None:
    assert str(DRAIN) == "preemption notice for host-a: Ray drains its node, 40 s left"
    signal = PreemptionNotice("sigterm", "host-b", process_index=1)
    assert str(signal) == "preemption notice for host-b: SIGTERM to process 1"
    to_agent = PreemptionNotice("sigterm", "host-b")
    assert str(to_agent) == "preemption notice for host-b: SIGTERM to its agent"
    metadata = PreemptionNotice("metadata", "host-a", 30.0, "preempted")
    assert str(metadata) == (
        "preemption notice for host-a: Google Cloud's metadata server (preempted), 30 s left"
    )


def test_gang_that_has_left_may_take_its_time_to_end() -> None:
    preemption = gang(1)
    preemption.left(Leaving(0, 7), 115.0)
    assert preemption.overdue(1000.0) is None
