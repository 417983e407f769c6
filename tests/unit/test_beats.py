"""Beats through outages, and what an owner believes that was silent for a while."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from hotstart.cache.errors import TransientError
from hotstart.launcher.beats import BEAT_AGAIN_S, BEAT_DEADLINE_S, BEAT_INTERVAL_S
from hotstart.launcher.errors import RunOwned
from hotstart.launcher.identity import OwnerIdentity
from hotstart.launcher.owner_watch import SURE_S
from hotstart.launcher.ownership import OWNER_TTL_S, take_ownership
from hotstart.launcher.record import RunRecord
from tests.support.launch import await_true

pytestmark = pytest.mark.unit

ANN = OwnerIdentity("host-a", "ann", 41, 70, "boot-a", "pid:[1]")
BOB = OwnerIdentity("host-b", "bob", 42, 80, "boot-b", "pid:[1]")
CLAIM = "lm-1/owner/00000002/00000000"
BEAT = "lm-1/owner/00000001/00000001"


@pytest.fixture
def record(store):
    return RunRecord.create(store, "lm-1", "name: lm\n", {}, 5.0)


@pytest.fixture
def take(record, clock):
    return lambda who, **kw: take_ownership(record, who, clock=clock, sleep=clock.sleep, **kw)


@pytest.fixture
def before_create(store, monkeypatch):
    """Does something just before the object of a name is created."""

    def before(name: str, act: Callable[[], object]) -> None:
        create = store.create

        def created(wanted: str, data: bytes) -> bool:
            if wanted == name:
                monkeypatch.setattr(store, "create", create)
                act()
            return create(wanted, data)

        monkeypatch.setattr(store, "create", created)

    return before


def test_beat_between_whose_look_and_write_another_claims_leaves_the_owner_in_doubt(
    store, take, clock, before_create
):
    owner = take(ANN)
    clock.now_s += 31.0
    before_create(BEAT, lambda: store.create(CLAIM, b"{}"))

    assert owner.beat() is False
    assert owner.doubt() == "another driver has taken the run"


def test_beat_that_was_long_on_its_way_leaves_the_owner_in_doubt_until_it_has_looked(
    store, take, clock, before_create
):
    owner = take(ANN)
    clock.now_s += 10.0

    def stopped() -> None:
        clock.now_s += 21.0
        store.create(CLAIM, b"{}")

    before_create(BEAT, stopped)

    assert owner.beat() is False


def test_beat_after_a_silence_in_which_nobody_claimed_makes_the_owner_sure_again(take, clock):
    owner = take(ANN)
    clock.now_s += 31.0

    assert owner.beat() is True
    assert owner.doubt() is None


def test_beat_in_time_costs_one_list(store, take, clock, monkeypatch):
    owner, listed, everything = take(ANN), [], store.list
    monkeypatch.setattr(store, "list", lambda prefix: listed.append(prefix) or everything(prefix))
    clock.now_s += 21.0

    assert owner.beat() is True
    assert listed == ["lm-1/owner/"]


def test_takeover_from_an_owner_that_beats_in_that_moment_waits_for_its_end(
    record, take, clock, before_create
):
    old = take(ANN)
    before_create(CLAIM, old.beat)
    told: list[str] = []

    def ends() -> None:
        if clock.now_s >= 139.0:
            assert old.beat() is False  # its next one
            record.finish("interrupted", 130, "another driver has taken the run", epoch=1)

    clock.on_sleep = ends
    new = take(BOB, tell=told.append)

    assert (new.epoch, clock.now_s) == (2, 139.0)  # 30 s of watching and 9 of waiting
    assert new.doubt() is None
    assert told[-1] == (
        "pid 41 on host-a (user ann) gives beats again; waiting until it has ended its workers"
    )


def test_takeover_from_an_owner_that_beats_once_more_waits_until_that_one_must_have_ended(
    record, store, take, clock, before_create
):
    old = take(ANN)
    before_create(CLAIM, old.beat)
    new = take(BOB)

    assert clock.now_s == 100.0 + 2 * OWNER_TTL_S
    assert new.doubt() is None  # it beats meanwhile
    assert record.owner().epoch == 2


def test_takeover_whose_claim_was_answered_after_a_later_one_is_refused(
    store, take, clock, monkeypatch
):
    take(ANN)
    create = store.create

    def suspended(name: str, data: bytes) -> bool:
        made = create(name, data)
        if name == CLAIM:
            create("lm-1/owner/00000003/00000000", b"{}")
        return made

    monkeypatch.setattr(store, "create", suspended)

    with pytest.raises(RunOwned):
        take(BOB)


def test_beats_that_hang_do_not_keep_others_from_being_written(store, record, monkeypatch):
    owner = take_ownership(record, ANN)
    create, hangs, hung = store.create, threading.Event(), []

    def hanging(name: str, data: bytes) -> bool:
        if len(hung) < 3:
            hung.append(name)
            hangs.wait(20.0)
            raise TransientError("no full answer")
        return create(name, data)

    monkeypatch.setattr(store, "create", hanging)
    owner.keep(lambda: None, interval_s=0.02)
    try:
        await_true(lambda: store.names("lm-1/owner/")[-1] > "lm-1/owner/00000001/00000004", 5.0)
        assert (len(hung), hangs.is_set()) == (3, False)
    finally:
        owner.stop()
        hangs.set()


def test_beats_that_all_hang_are_bounded_in_number_and_go_on_afterwards(store, record, monkeypatch):
    owner = take_ownership(record, ANN)
    listed, hangs, looks = store.list, threading.Event(), []

    def hanging(prefix: str):
        if not hangs.is_set():
            looks.append(prefix)
            hangs.wait(20.0)
        return listed(prefix)

    monkeypatch.setattr(store, "list", hanging)
    owner.keep(lambda: None, interval_s=0.01)
    try:
        await_true(lambda: len(looks) == 6, 5.0)
        hangs.set()
        await_true(lambda: len(store.names("lm-1/owner/")) > 1, 5.0)
        assert len(looks) == 6
    finally:
        owner.stop()
        hangs.set()


def test_beats_that_were_written_out_of_order_leave_the_later_one(store, take, before_create):
    owner = take(ANN)
    before_create(BEAT, owner.beat)

    assert owner.beat() is True
    assert "lm-1/owner/00000001/00000002" in store.names()


def test_beats_have_time_for_an_outage_of_fifteen_seconds():
    assert SURE_S - BEAT_INTERVAL_S - BEAT_AGAIN_S == 15.0
    assert BEAT_DEADLINE_S < SURE_S
