from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from hotstart.cache.errors import AccessDenied, TransientError
from hotstart.launcher.beats import Ownership
from hotstart.launcher.errors import RunOwned, UsageError
from hotstart.launcher.identity import OwnerIdentity
from hotstart.launcher.ownership import take_ownership
from hotstart.launcher.record import RunRecord

pytestmark = pytest.mark.unit

ANN = OwnerIdentity("host-a", "ann", 41, 70, "boot-a", "pid:[1]")
BOB = OwnerIdentity("host-b", "bob", 42, 80, "boot-b", "pid:[1]")


@pytest.fixture
def record(store):
    return RunRecord.create(store, "lm-1", "name: lm\n", {}, 5.0)


@pytest.fixture
def take(record, clock):
    return lambda who, **kw: take_ownership(record, who, clock=clock, sleep=clock.sleep, **kw)


def wait_until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "not within the deadline"
        time.sleep(0.005)


def test_ownership_of_a_new_run_is_epoch_1_at_once(store, take, clock):
    assert take(ANN).epoch == 1
    assert store.names("lm-1/owner/") == ("lm-1/owner/00000001/00000000",)
    assert clock.slept == []


def test_ownership_is_taken_when_the_beat_stands_still_for_the_whole_ttl(take, clock):
    take(ANN)

    assert take(BOB, ttl_s=2.5).epoch == 2
    assert clock.slept == [1.0, 1.0, 0.5]


def test_ownership_that_has_to_be_waited_for_is_told_once(take, clock):
    take(ANN)
    told: list[tuple[float, str]] = []
    take(BOB, tell=lambda text: told.append((clock.now_s, text)))

    assert told == [
        (
            107.0,
            "pid 41 on host-a (user ann) owns the run and gives no beat; taking it over if it "
            "gives none for 30 s",
        )
    ]


def test_ownership_is_refused_when_the_beat_moves(store, take, clock):
    owner = take(ANN)
    clock.on_sleep = lambda: len(clock.slept) == 3 and owner.beat()

    with pytest.raises(RunOwned) as raised:
        take(BOB)

    assert str(raised.value) == (
        "run lm-1 in /runs is owned by pid 41 on host-a (user ann) since "
        "2027-01-15 08:00:00 UTC by the store's clock; stop that driver first "
        "(hotstart stop lm-1)"
    )
    assert len(clock.slept) == 3


def test_ownership_is_refused_when_the_observer_was_stopped_over_a_look_at_a_live_owner(
    store, take, clock, monkeypatch
):
    owner = take(ANN)
    listed = store.list
    looks = []

    def stopped(prefix: str):
        found = list(listed(prefix))
        if prefix.endswith("owner/"):
            looks.append(prefix)
            if len(looks) == 2:  # the answer is there, and is read a minute later
                owner.beat()
                clock.now_s += 60.0
        return iter(found)

    monkeypatch.setattr(store, "list", stopped)

    with pytest.raises(RunOwned):
        take(BOB)


def test_ownership_ignores_what_the_stores_clock_says(store, take):
    take(ANN)
    store.now_s += 1e6

    assert take(BOB).epoch == 2


def test_ownership_of_an_ended_run_is_taken_at_once(record, take, clock):
    record.finish("interrupted", 130, "Ctrl-C", epoch=take(ANN).epoch)

    assert take(BOB).epoch == 2
    assert clock.slept == []


def test_ownership_is_taken_at_once_when_the_end_comes_while_watching(record, take, clock):
    owner = take(ANN)
    clock.on_sleep = lambda: record.finish("failed", 1, "why", epoch=owner.epoch)

    assert take(BOB).epoch == 2
    assert clock.slept == [1.0]


def test_ownership_of_a_done_run_is_refused(record, take):
    record.finish("done", 0, "all exited", epoch=take(ANN).epoch)

    with pytest.raises(UsageError, match="run lm-1 is done; launch the job anew instead"):
        take(BOB)


def test_ownership_of_a_run_that_is_done_just_before_its_owner_is_seen_dead_is_refused(
    record, take, monkeypatch
):
    owner = take(ANN)

    def ends_now(pid: int, started: int) -> bool:
        record.finish("done", 0, "all exited", epoch=owner.epoch)
        return True

    monkeypatch.setattr("hotstart.launcher.identity.is_certainly_gone", ends_now)

    with pytest.raises(UsageError, match="run lm-1 is done; launch the job anew instead"):
        take(replace(ANN, pid=43))


def test_ownership_taken_by_a_third_while_watching_is_refused(store, take, clock):
    take(ANN)
    clock.on_sleep = lambda: store.create("lm-1/owner/00000002/00000000", b"{}")

    with pytest.raises(RunOwned, match="owned by an unreadable owner"):
        take(BOB)


def test_ownership_race_has_exactly_one_winner(store, record, take):
    record.finish("failed", 1, "why", epoch=take(ANN).epoch)
    barrier, won, refused = threading.Barrier(16), [], []

    def contend(index: int) -> None:
        barrier.wait()
        me = replace(BOB, host=f"host-{index}")
        try:
            won.append(take_ownership(RunRecord(store, "lm-1"), me, poll_s=0.01).epoch)
        except RunOwned:
            refused.append(index)

    # A contender that comes after the winner's claim watches it and is refused by its beat.
    threads = [threading.Thread(target=contend, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    wait_until(lambda: bool(won))
    winner = Ownership(record, 2)
    winner.keep(lambda: None, interval_s=0.01)
    for thread in threads:
        thread.join(20)
    winner.stop()

    assert won == [2]
    assert len(refused) == 15


def test_ownership_claim_of_a_lost_race_is_refused(store, record, take, monkeypatch):
    create = store.create

    def overtaken(name: str, data: bytes) -> bool:
        create(name, b"{}")
        return create(name, data)

    monkeypatch.setattr(store, "create", overtaken)

    with pytest.raises(RunOwned):
        take(ANN)


def test_ownership_beat_replaces_the_one_before_and_keeps_the_claim(store, take):
    owner = take(ANN)

    assert [owner.beat() for _ in range(3)] == [True, True, True]
    assert store.names("lm-1/owner/") == (
        "lm-1/owner/00000001/00000000",
        "lm-1/owner/00000001/00000003",
    )


def test_ownership_beat_of_a_superseded_owner_writes_nothing(store, take):
    old = take(ANN)
    take(BOB)
    before = store.names()

    assert old.beat() is False
    assert old.superseded is True
    assert store.names() == before


def test_ownership_beat_after_the_record_was_removed_is_superseded(store, take):
    owner = take(ANN)
    claim = "lm-1/owner/00000001/00000000"
    store.delete(claim, store.stat(claim).generation)

    assert owner.beat() is False


def test_ownership_beat_without_the_right_to_delete_goes_on(store, take, monkeypatch):
    owner = take(ANN)

    def refuse(name: str, generation: int) -> bool:
        raise AccessDenied("no storage.objects.delete")

    monkeypatch.setattr(store, "delete", refuse)

    assert [owner.beat() for _ in range(3)] == [True, True, True]
    assert len(store.names("lm-1/owner/")) == 4

    listed: list[str] = []
    everything = store.list
    monkeypatch.setattr(store, "list", lambda prefix: listed.append(prefix) or everything(prefix))
    assert owner.beat()
    assert listed == ["lm-1/owner/00000002/", "lm-1/owner/00000001/stop"]  # not all old beats

    asked: list[int] = []
    owner._record.ask_to_stop(1, {})
    assert owner.beat(on_stop=lambda: asked.append(1))
    assert asked == [1]
    take(BOB)
    assert not owner.beat()
    assert owner.superseded


def test_ownership_keep_beats_on_through_store_errors(store, take):
    owner = take(ANN)
    store.error = TransientError("503")
    owner.keep(lambda: None, interval_s=0.01)
    try:
        store.error = None
        wait_until(lambda: store.names("lm-1/owner/")[-1] > "lm-1/owner/00000001/00000002")
    finally:
        owner.stop()

    assert owner.superseded is False


def test_ownership_keep_calls_back_once_when_superseded(store, take):
    owner = take(ANN)
    take(BOB)
    calls: list[int] = []

    owner.keep(lambda: calls.append(1), interval_s=0.01)
    wait_until(lambda: bool(calls))
    owner.stop()

    assert calls == [1]


@pytest.fixture
def process():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield child
    child.kill()
    child.communicate()


def identity_of(process: subprocess.Popen) -> OwnerIdentity:
    code = "from hotstart.cache.process import process_started as s; print(s({}))"
    started = subprocess.run(
        [sys.executable, "-c", code.format(process.pid)], capture_output=True, text=True, check=True
    )
    me = OwnerIdentity.of_this_process()
    return replace(me, pid=process.pid, pid_started=int(started.stdout))


def test_ownership_of_a_killed_driver_here_is_taken_at_once(take, clock, process):
    take(identity_of(process))
    process.kill()
    process.wait()

    assert take(OwnerIdentity.of_this_process()).epoch == 2
    assert clock.slept == []


def test_ownership_of_a_killed_driver_not_yet_reaped_is_taken_at_once(take, clock, process):
    take(identity_of(process))
    os.kill(process.pid, signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)

    assert take(OwnerIdentity.of_this_process()).epoch == 2
    assert clock.slept == []


def test_identity_of_a_live_process_is_not_dead(process):
    assert OwnerIdentity.of_this_process().knows_dead(identity_of(process)) is False


def test_identity_of_a_reused_pid_is_dead(process):
    owner = identity_of(process)
    earlier = replace(owner, pid_started=owner.pid_started - 1)

    assert OwnerIdentity.of_this_process().knows_dead(earlier) is True


@pytest.mark.parametrize(
    "elsewhere", [{"host": "x"}, {"boot_id": "x"}, {"pid_namespace": "x"}, {"pid_started": 0}]
)
def test_identity_that_cannot_be_looked_up_is_not_dead(process, elsewhere):
    owner = identity_of(process)
    process.kill()
    process.wait()

    assert OwnerIdentity.of_this_process().knows_dead(replace(owner, **elsewhere)) is False
