"""Who can't be sure to own a run ends its workers before anybody else may take it."""

from __future__ import annotations

import threading

import pytest

from hotstart.cache.errors import TransientError
from hotstart.launcher.following import Following, Keep
from hotstart.launcher.identity import OwnerIdentity
from hotstart.launcher.outcome import WorkerExit
from hotstart.launcher.owner_watch import OwnerWatch
from hotstart.launcher.ownership import OWNER_TTL_S, SURE_S, take_ownership
from hotstart.launcher.plan import AttemptPlan, Program
from hotstart.launcher.record import RunRecord
from hotstart.launcher.workers import OnItsOwn, Unowned
from tests.support.launch import await_true

pytestmark = pytest.mark.unit

ANN = OwnerIdentity("host-a", "ann", 41, 70, "boot-a", "pid:[1]")
BOB = OwnerIdentity("host-b", "bob", 42, 80, "boot-b", "pid:[1]")


@pytest.fixture
def record(store):
    return RunRecord.create(store, "lm-1", "name: lm\n", {}, 5.0)


@pytest.fixture
def watch(clock):
    ended: list[float] = []
    made = OwnerWatch(lambda: ended.append(clock.now_s), sure_s=20.0, clock=clock)
    made.close()  # no thread: the test looks
    made.begin()
    return made, ended


def pass_s(clock, watch, seconds: float) -> None:
    for _ in range(int(2 * seconds)):
        clock.now_s += 0.5
        watch.look()


def test_owner_watch_of_a_driver_that_polls_and_beats_ends_nothing(watch, clock):
    looks, ended = watch
    for age_s in (4.0, 3.0, 0.5) * 20:
        looks.heard(age_s)
        pass_s(clock, looks, 4.0)
        looks.answered()

    assert ended == []


def test_owner_watch_ends_workers_when_the_driver_is_silent(watch, clock):
    looks, ended = watch
    looks.answered()
    looks.heard(5.0)
    pass_s(clock, looks, 60.0)

    assert ended == [100.0 + 15.0]


def test_owner_watch_ends_workers_when_the_driver_cannot_beat(watch, clock):
    looks, ended = watch
    for age_s in range(0, 60, 4):
        looks.heard(float(age_s))
        pass_s(clock, looks, 4.0)
        looks.answered()

    [at_s] = ended
    assert at_s <= 100.0 + 20.0


def test_owner_watch_is_not_deceived_by_a_poll_that_was_long_on_its_way(watch, clock):
    looks, ended = watch
    looks.heard(1.0)
    looks.answered()
    clock.now_s += 18.0  # the poll was sent at once and comes now
    looks.heard(1.0)
    pass_s(clock, looks, 5.0)

    assert ended == [119.0]


def test_owner_watch_after_the_attempt_ends_nothing(watch, clock):
    looks, ended = watch
    looks.heard(1.0)
    looks.end()
    pass_s(clock, looks, 100.0)

    assert ended == []


def test_owner_that_cannot_beat_doubts_before_another_may_take_the_run(record, store, clock):
    owner = take_ownership(record, ANN, clock=clock, sleep=clock.sleep)
    assert owner.beat() is True
    clock.now_s += SURE_S - 0.1
    assert owner.doubt() is None
    clock.now_s += 0.1

    assert owner.doubt() == "the owner's beat was not written for 22 s"
    assert SURE_S + 5.0 < OWNER_TTL_S  # to end the workers in


def test_owner_in_doubt_says_why_and_is_sure_again_with_the_next_beat(record, store):
    owner = take_ownership(record, ANN)
    store.error = TransientError("503 from the store")
    owner.keep(lambda: None, interval_s=0.01)
    try:
        await_true(lambda: owner._problem == "503 from the store", 5.0)
        store.error = None
        await_true(lambda: owner._problem == "", 5.0)
    finally:
        owner.stop()
    assert owner.doubt() is None


def test_owner_that_was_superseded_doubts_for_good(record, clock):
    owner = take_ownership(record, ANN, clock=clock, sleep=clock.sleep)
    take_ownership(record, BOB, clock=clock, sleep=clock.sleep)
    assert owner.beat() is False

    assert owner.doubt() == "another driver has taken the run"


@pytest.mark.parametrize("interval_s", [0.01, 2.5])
def test_owner_sees_a_stop_request_with_its_beat_and_in_a_directory_before(record, interval_s):
    owner = take_ownership(record, ANN)
    asked = threading.Event()
    owner.keep(lambda: None, interval_s=interval_s, on_stop=asked.set)
    try:
        assert record.ask_to_stop(1, {"host": "host-b"}) is True
        assert record.ask_to_stop(1, {"host": "host-c"}) is False
        assert asked.wait(2.0)
    finally:
        owner.stop()
    assert record.stop_request(1) == {"host": "host-b"}
    assert record.stop_request(2) is None


class Gang:
    """Gives its events once; its workers end when they are stopped."""

    def __init__(self, *events: object) -> None:
        self.lost: list[object] = []
        self.stops: list[tuple[float, bool]] = []
        self._events = list(events)

    def events(self):
        events, self._events = self._events, []
        return [(1, event) for event in events]

    def stop(self, grace_s: float, *, ask: bool) -> None:
        self.stops.append((grace_s, ask))
        self._events.append(WorkerExit(0, None, 9, "host-a", 1.0, True))

    def finish(self):
        return {}

    def asked(self):
        return {}

    def drained(self) -> bool:
        return not self._events

    def look_at_nodes(self) -> None:
        pass


def followed(gang: Gang, doubt, interrupted: bool = False):
    program = Program("/t.py", None, (), (), "/")
    plan = AttemptPlan("lm-1", 1, 1, "", False, 1.0, program, None)
    keep = Keep(lambda r: None, lambda s, d: None, lambda s: "")
    following = Following(
        gang, plan, 0.0, keep=keep, watcher=None, is_interrupted=lambda: interrupted,
        doubt=doubt, stop_s=7.0,
    )  # fmt: skip
    return following.to_the_end().outcome


def test_attempt_whose_owner_doubts_is_ended_without_asking_user_code():
    gang = Gang()
    outcome = followed(gang, lambda: "the owner's beat was not written for 22 s")

    assert gang.stops == [(1.0, False)]
    assert (outcome.kind, outcome.reason) == (
        "preempted",
        "the owner's beat was not written for 22 s; workers ended in case another took the run",
    )


def test_attempt_of_a_superseded_driver_is_ended_without_asking_user_code():
    gang = Gang()
    outcome = followed(gang, lambda: "another driver has taken the run", interrupted=True)

    assert gang.stops == [(1.0, False)]
    assert outcome.kind == "interrupted"


def test_attempt_whose_agent_did_not_hear_from_the_driver_is_no_failure_of_the_job():
    killed = WorkerExit(0, None, 9, "host-a", 1.0, False)
    outcome = followed(Gang(Unowned("host-a"), killed), lambda: None)

    assert (outcome.kind, outcome.reason) == (
        "preempted",
        "the agent on host-a did not hear from the driver in time; workers ended in case another "
        "took the run",
    )


def test_attempt_with_a_host_that_compiles_on_its_own_is_ended_as_failed():
    gang = Gang(OnItsOwn("host-a"))
    outcome = followed(gang, lambda: None)

    assert gang.stops == [(1.0, False)]
    assert (outcome.kind, outcome.reason) == (
        "failed",
        "host-a has lost the coordinator and compiles by itself: on GPU two executables of one "
        "program can wait for each other for ever",
    )
