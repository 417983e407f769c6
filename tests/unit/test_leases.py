"""Leases in a store in memory, on a clock that only moves when told."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hotstart.cache.errors import AccessDenied, DeadlineExceeded, StoreError
from hotstart.cache.lease_holder import Holder
from hotstart.cache.lease_resolver import LeaseResolver
from hotstart.cache.leases import StoreLeases, poll_interval_s
from hotstart.cache.resolve import Answer, Compile, InNode, InStore
from hotstart.cache.store import ObjectStat, open_store
from tests.support import memory_store
from tests.support.memory_store import MemoryStore
from tests.unit.conftest import FakeClock

pytestmark = pytest.mark.unit

HASH = "0123456789abcdef" * 4
KEY = f"jit_step-{HASH}"
OTHER_KEY = f"jit_other-{HASH}"
PREFIX = f"leases/v1/{HASH}-jit_step@"
ENTRY = f"entries/v1/{HASH}-jit_step"
FAILED_ONCE = (InNode(), InStore())
FAILED_TWICE = FAILED_ONCE * 2
PATIENCE_S = 20.0


class RecordingStore(MemoryStore):
    """A memory store that logs requests, and fails or forbids where told.

    `before` is called ahead of each request, so that another process can come between two.
    """

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[str] = []
        self.error: StoreError | None = None
        self.may_delete = True
        self.before: Callable[[str], None] = lambda verb: None

    def get(self, name: str) -> bytes | None:
        self._note("get")
        return super().get(name)

    def create(self, name: str, data: bytes) -> bool:
        self._note("create")
        return super().create(name, data)

    def delete(self, name: str, generation: int) -> bool:
        self._note("delete")
        if not self.may_delete:
            raise AccessDenied("this role may not delete")
        return super().delete(name, generation)

    def list(self, prefix: str) -> Iterator[ObjectStat]:
        self._note("list")
        return super().list(prefix)

    def stat(self, name: str) -> ObjectStat | None:
        self._note("stat")
        return super().stat(name)

    def names(self) -> list[str]:
        return [found.name for found in MemoryStore.list(self, "")]

    def _note(self, verb: str) -> None:
        self.before(verb)
        self.requests.append(verb)
        if self.error is not None:
            raise self.error


@pytest.fixture
def store() -> RecordingStore:
    return RecordingStore()


@pytest.fixture
def process(store: RecordingStore, clock: Any) -> Iterator[Callable[..., StoreLeases]]:
    """Makes the leases of one more process, which lives when its `renew` is called."""
    made: list[StoreLeases] = []

    def make(**settings: Any) -> StoreLeases:
        arguments = {"clock": clock, "sleep": clock.sleep, "renew_in_background": False}
        made.append(StoreLeases(store, **(arguments | settings)))
        return made[-1]

    yield make
    store.before, store.error = lambda verb: None, None
    for leases in made:
        leases.close()


def on_sleep_number(clock: Any, number: int, act: Callable[[], object]) -> None:
    clock.on_sleep = lambda: len(clock.slept) == number and act()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "not within the deadline"
        time.sleep(0.005)


def lease_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "hotstart-lease"]


# Claiming and letting go.


def test_claim_of_a_free_key_is_one_create_and_its_release_a_list_and_a_delete(store, process):
    leases = process()

    assert leases.claim(KEY) is True
    assert store.requests == ["create"]
    assert store.names() == [f"{PREFIX}00001"]

    leases.release(KEY)

    assert store.requests == ["create", "list", "delete"]
    assert store.names() == []


def test_claim_says_who_has_it(store, process):
    process().claim(KEY)

    claim = json.loads(MemoryStore.get(store, f"{PREFIX}00001"))

    assert claim["holder"].rpartition("/")[2] == str(os.getpid())


def test_claim_of_a_held_key_is_refused_at_once(process, clock):
    process().claim(KEY)

    assert process().claim(KEY) is False
    assert clock.slept == []


def test_claim_twice_by_one_process_is_refused(process):
    leases = process()

    assert [leases.claim(KEY), leases.claim(KEY)] == [True, False]


def test_claim_of_another_key_is_free(process):
    process().claim(KEY)

    assert process().claim(f"jit_step-{HASH[::-1]}") is True


def test_claim_race_of_16_threads_has_one_winner(process):
    racers = [process() for _ in range(16)]
    barrier, won = threading.Barrier(16), []

    def race(leases: StoreLeases) -> None:
        barrier.wait(PATIENCE_S)
        won.append(leases.claim(KEY))

    threads = [threading.Thread(target=race, args=(leases,)) for leases in racers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)

    assert sorted(won) == [False] * 15 + [True]


def test_release_of_a_key_that_is_not_held_sends_nothing(store, process):
    process().release(KEY)

    assert store.requests == []


def test_release_by_a_process_without_the_lease_leaves_the_holders(store, process):
    process().claim(KEY)

    process().release(KEY)

    assert store.names() == [f"{PREFIX}00001"]


def test_close_lets_go_of_all_and_gives_no_more(store, process):
    leases = process()
    for module in ("jit_a", "jit_b", "jit_c"):
        leases.claim(f"{module}-{HASH}")

    leases.close()

    assert store.names() == []
    assert leases.claim(KEY) is False
    assert leases.await_or_claim(KEY) == "unusable"


@pytest.mark.parametrize(
    ("waited_s", "first_s", "interval_s"),
    [(0, 0.1, 0.1), (0.5, 0.1, 0.1), (4, 0.1, 0.5), (16, 0.1, 2), (900, 0.1, 2), (900, 3, 3)],
)
def test_poll_interval_grows_with_the_wait_within_bounds(waited_s, first_s, interval_s):
    assert poll_interval_s(waited_s, first_s) == interval_s


# Waiting.


def test_wait_ends_when_the_holder_releases(store, process, clock):
    holder, waiter, waits = process(), process(), []
    holder.claim(KEY)
    on_sleep_number(clock, 5, lambda: holder.release(KEY))

    assert waiter.await_or_claim(KEY, on_wait=lambda: waits.append(1)) == "released"
    assert len(clock.slept) == 5
    assert waits == [1]
    assert store.names() == []


def test_wait_is_one_list_a_poll(store, process, clock):
    holder = process()
    holder.claim(KEY)
    on_sleep_number(clock, 50, lambda: holder.release(KEY))
    store.requests.clear()

    process().await_or_claim(KEY)

    # The refused claim, the first look and who it is; at the end the holder's release.
    assert store.requests == ["create", "list", "get", *["list"] * 49, "list", "delete", "list"]


@pytest.mark.parametrize(("url", "first_poll_s"), [("/a/directory", 0.02), ("gs://bucket", 0.1)])
def test_wait_polls_a_directory_sooner_than_a_bucket(clock, url, first_poll_s):
    store = MemoryStore(url)
    holder = StoreLeases(store, clock=clock)
    waiter = StoreLeases(store, clock=clock, sleep=clock.sleep)
    holder.claim(KEY)
    on_sleep_number(clock, 1, lambda: holder.release(KEY))

    assert waiter.await_or_claim(KEY) == "released"
    assert clock.slept == [first_poll_s]


def test_wait_of_a_free_key_is_a_claim(store, process):
    waits: list[int] = []

    assert process().await_or_claim(KEY, on_wait=lambda: waits.append(1)) == "mine"
    assert waits == []
    assert store.requests == ["create"]


def test_wait_ends_when_the_caller_says_that_it_is_over(process, clock):
    process().claim(KEY)

    assert process().await_or_claim(KEY, is_over=lambda: len(clock.slept) == 3) == "released"
    assert len(clock.slept) == 3


def test_wait_ends_when_the_leases_are_closed(process, clock):
    process().claim(KEY)
    waiter = process()
    on_sleep_number(clock, 3, waiter.close)

    assert waiter.await_or_claim(KEY) == "released"
    assert len(clock.slept) == 3


def test_wait_for_a_lease_that_was_released_and_claimed_anew_ends(store, process, clock):
    holder, next_holder = process(), process()
    holder.claim(KEY)
    on_sleep_number(clock, 2, lambda: (holder.release(KEY), next_holder.claim(KEY)))

    assert process().await_or_claim(KEY) == "released"
    assert store.names() == [f"{PREFIX}00001"]


def test_wait_of_a_second_thread_of_the_holding_process_ends_at_its_release(process, clock):
    leases = process()
    leases.claim(KEY)
    on_sleep_number(clock, 2, lambda: leases.release(KEY))

    assert leases.await_or_claim(KEY) == "released"


def test_wait_longer_than_10_s_is_logged_and_again_each_minute(process, clock, caplog):
    caplog.set_level(logging.INFO, "hotstart.cache.leases")
    holder = process()
    holder.claim(KEY)

    def live() -> None:
        holder.renew()
        if clock.now_s > 100 + 135:
            holder.release(KEY)

    clock.on_sleep = live
    process(first_poll_s=1.0).await_or_claim(KEY)

    waits = [record.args for record in caplog.records if "waiting for" in record.message]
    assert [round(args[3]) for args in waits] == [10, 70, 130]
    assert {args[0] for args in waits} == {KEY}
    assert {args[1].rpartition("/")[2] for args in waits} == {str(os.getpid())}
    assert {args[2] for args in waits} == {"memory://store"}


def test_wait_for_a_holder_with_an_unreadable_claim_goes_on(store, process, clock, caplog):
    caplog.set_level(logging.INFO, "hotstart.cache.leases")
    store.create(f"{PREFIX}00001", b"\xff not JSON")

    assert process(ttl_s=15.0).await_or_claim(KEY) == "mine"
    assert "waiting for another process, which has its lease" in caplog.text


# Renewing, and taking over.


def test_renewal_makes_a_beat_when_due_and_removes_the_one_before(store, process, clock):
    leases = process()
    leases.claim(KEY)

    leases.renew()
    before_due = store.names()
    clock.now_s += 7.5
    leases.renew()
    first = store.names()
    clock.now_s += 7.5
    leases.renew()

    assert before_due == [f"{PREFIX}00001"]
    assert [name[: len(PREFIX) + 12] for name in first] == [
        f"{PREFIX}00001",
        f"{PREFIX}00001.000001",
    ]
    assert [name[: len(PREFIX) + 12] for name in store.names()] == [
        f"{PREFIX}00001",
        f"{PREFIX}00001.000002",
    ]


def test_release_after_renewals_leaves_nothing(store, process, clock):
    leases = process()
    leases.claim(KEY)
    for _ in range(5):
        clock.now_s += 8
        leases.renew()

    leases.release(KEY)

    assert store.names() == []


def test_holder_that_beats_is_never_taken_over(process, clock):
    holder = process()
    holder.claim(KEY)

    def live() -> None:
        holder.renew()
        if clock.now_s > 100 + 3600:
            holder.release(KEY)

    clock.on_sleep = live

    assert process().await_or_claim(KEY) == "released"
    assert clock.now_s > 3700


def test_holder_that_died_is_taken_over_after_the_time_to_live(store, process, clock):
    process().claim(KEY)
    waiter = process()

    assert waiter.await_or_claim(KEY) == "mine"
    assert 130.0 <= clock.now_s <= 132.5
    assert store.names() == [f"{PREFIX}00001", f"{PREFIX}00002"]

    waiter.release(KEY)

    assert store.names() == []


def test_leftovers_of_a_dead_process_cost_its_time_to_live_once(process, clock):
    dead, waiter = process(), process()
    for key in (KEY, OTHER_KEY):
        dead.claim(key)
    clock.now_s += 8
    dead.renew()

    assert waiter.await_or_claim(KEY) == "mine"
    taken_s = clock.now_s
    assert waiter.await_or_claim(OTHER_KEY) == "mine"
    assert clock.now_s == taken_s


def test_lease_that_a_process_takes_after_it_was_thought_dead_is_waited_for(
    store, process, clock, monkeypatch
):
    monkeypatch.setattr(memory_store.time, "time", clock)
    suspended, waiter = process(), process()
    suspended.claim(KEY)
    assert waiter.await_or_claim(KEY) == "mine"

    suspended.claim(OTHER_KEY)
    taken_s = clock.now_s

    assert waiter.await_or_claim(OTHER_KEY) == "mine"
    assert clock.now_s >= taken_s + 30


DIES = """
import os, signal, sys
from hotstart.cache.leases import StoreLeases
from hotstart.cache.store import open_store
print(StoreLeases(open_store(sys.argv[1])).claim(sys.argv[2]), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_holder_of_this_host_that_died_is_taken_over_at_once(tmp_path, clock):
    done = subprocess.run([sys.executable, "-c", DIES, str(tmp_path), KEY], stdout=subprocess.PIPE)
    leases = StoreLeases(open_store(str(tmp_path)), clock=clock, sleep=clock.sleep)

    assert (done.returncode, done.stdout) == (-9, b"True\n")
    assert leases.await_or_claim(KEY) == "mine"
    assert clock.slept == []
    leases.release(KEY)
    assert list(open_store(str(tmp_path)).list("leases/")) == []


def test_holder_that_is_a_zombie_is_certainly_dead():
    command = [sys.executable, "-c", "input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        me = Holder.of_this_process("0123abcd")
        started = int(Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[19])
        holder = replace(me, pid=process.pid, started=started)
        living = holder.is_certainly_dead()
        process.kill()
        wait_until(holder.is_certainly_dead)  # nobody has waited for it yet

    assert living is False
    assert holder.is_certainly_dead() is True


@pytest.mark.parametrize(
    ("changes", "is_dead"),
    [
        ({}, False),
        ({"started": 1}, True),  # the pid was given to another process since
        ({"started": 1, "where": "another boot pid:[1]"}, False),
        ({"started": 1, "where": ""}, False),
        ({"started": 0}, False),
        ({"started": 1, "pid": -1}, False),
        ({"started": 1, "pid": 0}, False),
        ({"started": 1, "pid": 2**40}, False),
        ({"pid": 2**31 - 1}, True),
        ({"pid": 1}, True),  # of another user, where this is not root
    ],
)
def test_holder_is_certainly_dead_only_where_that_can_be_told(changes, is_dead):
    assert replace(Holder.of_this_process("0123abcd"), **changes).is_certainly_dead() is is_dead


@pytest.mark.parametrize(
    "claim",
    [None, b"", b"\xff", b"[]", b"7", b'{"pid": 1, "other": 2}', b'{"pid": "1"}', b'{"pid": true}'],
)
def test_holder_of_an_unreadable_claim_is_another_process(claim):
    assert Holder.read(claim) == Holder()


def test_holder_reads_what_a_claim_says(store, process):
    process().claim(KEY)

    holder = Holder.read(MemoryStore.get(store, f"{PREFIX}00001"))

    assert holder == Holder.of_this_process(holder.id, holder.owner)
    assert len(holder.owner) == 32


def test_holder_that_died_after_beats_leaves_nothing_when_its_successor_releases(
    store, process, clock
):
    holder, waiter = process(), process()
    holder.claim(KEY)
    clock.now_s += 8
    holder.renew()

    assert waiter.await_or_claim(KEY) == "mine"
    clock.now_s += 8
    waiter.renew()
    waiter.release(KEY)

    assert store.names() == []


def test_holder_that_hangs_is_taken_over_when_its_renewals_end(process, clock):
    holder = process(renew_for_s=100.0)
    holder.claim(KEY)
    clock.on_sleep = holder.renew

    assert process().await_or_claim(KEY) == "mine"
    assert 225 < clock.now_s < 235


@pytest.mark.parametrize("jump_s", [-1e6, 1e6])
def test_holders_own_clock_does_not_matter_to_its_observers(process, clock, jump_s):
    theirs = type(clock)()
    theirs.now_s = clock.now_s + jump_s
    process(clock=theirs).claim(KEY)

    assert process().await_or_claim(KEY) == "mine"
    assert 130.0 <= clock.now_s <= 132.5


def test_observer_that_slept_past_the_time_to_live_looks_before_it_takes_over(process, clock):
    holder = process()
    holder.claim(KEY)

    def oversleep() -> None:
        if len(clock.slept) == 1:
            clock.now_s += 500
            holder.renew()
        else:
            holder.release(KEY)

    clock.on_sleep = oversleep

    assert process().await_or_claim(KEY) == "released"


def test_takeover_backs_out_where_the_holder_beats_in_between(store, process, clock):
    holder, waiter = process(), process()
    holder.claim(KEY)
    beaten: list[float] = []

    def beat_at_the_last_moment(verb: str) -> None:
        if verb == "create" and clock.now_s >= 130 and not beaten:
            beaten.append(clock.now_s)
            holder.renew()

    store.before = beat_at_the_last_moment
    clock.on_sleep = lambda: beaten and clock.now_s > 140 and holder.release(KEY)

    assert waiter.await_or_claim(KEY) == "released"
    assert len(beaten) == 1
    assert store.names() == []


def test_takeover_backs_out_where_the_holder_releases_in_between(store, process, clock):
    holder, waiter = process(), process()
    holder.claim(KEY)

    def release_at_the_last_moment(verb: str) -> None:
        if verb == "create" and clock.now_s >= 130:
            store.before = lambda verb: None
            holder.release(KEY)

    store.before = release_at_the_last_moment

    assert waiter.await_or_claim(KEY) == "released"
    assert store.names() == []


def test_takeover_of_a_killed_holder_is_by_exactly_one_waiter(store, process):
    process().claim(KEY)  # nobody beats for it: its clock stands still
    waiters = [
        process(clock=time.monotonic, sleep=time.sleep, ttl_s=0.5, first_poll_s=0.02)
        for _ in range(6)
    ]
    verdicts: list[str] = []

    def wait(leases: StoreLeases) -> None:
        verdicts.append(leases.await_or_claim(KEY))

    threads = [threading.Thread(target=wait, args=(leases,)) for leases in waiters]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(verdicts) == 1)
    assert f"{PREFIX}00002" in store.names()
    for leases in waiters:
        leases.release(KEY)
    for thread in threads:
        thread.join(PATIENCE_S)

    assert sorted(verdicts) == ["mine"] + ["released"] * 5
    assert store.names() == []


def test_takeover_of_a_holder_that_had_taken_over_itself(store, process, clock):
    process().claim(KEY)
    assert process().await_or_claim(KEY) == "mine"
    third = process()

    assert third.await_or_claim(KEY) == "mine"
    assert store.names() == [f"{PREFIX}0000{epoch}" for epoch in (1, 2, 3)]

    third.release(KEY)

    assert store.names() == []


def test_release_after_a_takeover_leaves_the_successors_lease(store, process, clock):
    slow, successor = process(), process()
    slow.claim(KEY)
    assert successor.await_or_claim(KEY) == "mine"

    slow.release(KEY)

    assert store.names() == [f"{PREFIX}00001", f"{PREFIX}00002"]
    assert process().claim(KEY) is False

    successor.release(KEY)

    assert store.names() == []


def test_release_after_a_takeover_of_a_takeover_removes_its_own_claim_only(store, process, clock):
    process().claim(KEY)
    slow, successor = process(), process()
    assert slow.await_or_claim(KEY) == "mine"
    assert successor.await_or_claim(KEY) == "mine"

    slow.release(KEY)

    assert store.names() == [f"{PREFIX}00001", f"{PREFIX}00003"]

    successor.release(KEY)

    assert store.names() == []


def test_release_that_is_cut_short_leaves_the_gate(store, process):
    process().claim(KEY)
    successor = process()
    assert successor.await_or_claim(KEY) == "mine"
    store.requests.clear()

    def fail_at_the_second_delete(verb: str) -> None:
        if verb == "delete" and "delete" in store.requests:
            store.error = DeadlineExceeded("no answer")

    store.before = fail_at_the_second_delete
    successor.release(KEY)
    store.before, store.error = lambda verb: None, None

    assert store.names() == [f"{PREFIX}00001"]
    assert process().claim(KEY) is False


def test_release_that_lets_a_newcomer_in_beside_a_successor_does_so_once(store, process):
    """The one way to two holders: a live one is taken over, between two requests of its release."""
    slow, successor, newcomer = process(), process(), process()
    slow.claim(KEY)

    def take_over_in_between(verb: str) -> None:
        if verb == "delete":
            store.before = lambda verb: None
            assert successor.await_or_claim(KEY) == "mine"

    store.before = take_over_in_between
    slow.release(KEY)

    assert store.names() == [f"{PREFIX}00002"]
    assert newcomer.claim(KEY) is True
    successor.release(KEY)
    assert store.names() == [f"{PREFIX}00001"]
    newcomer.release(KEY)
    assert store.names() == []


def test_takeover_backs_out_where_the_gate_is_a_newcomers(store, process, clock):
    process().claim(KEY)
    assert process().await_or_claim(KEY) == "mine"
    newcomer = process()

    def replace_the_gate(verb: str) -> None:
        if verb == "create" and clock.now_s >= 160:
            store.before = lambda verb: None
            gate = MemoryStore.stat(store, f"{PREFIX}00001")
            MemoryStore.delete(store, gate.name, gate.generation)
            assert newcomer.claim(KEY) is True

    store.before = replace_the_gate

    assert process().await_or_claim(KEY) == "released"
    assert store.names() == [f"{PREFIX}00001", f"{PREFIX}00002"]


def test_release_of_a_taken_over_epoch_leaves_the_same_epoch_of_a_later_lease(store, process):
    process().claim(KEY)
    slow, third = process(), process()
    assert slow.await_or_claim(KEY) == "mine"
    assert third.await_or_claim(KEY) == "mine"
    third.release(KEY)
    process().claim(KEY)
    assert process().await_or_claim(KEY) == "mine"

    slow.release(KEY)

    assert store.names() == [f"{PREFIX}00001", f"{PREFIX}00002"]


@pytest.mark.parametrize("beats", [0, 1])
def test_release_of_a_lease_lost_long_ago_leaves_a_newcomers_of_the_same_epoch(
    store, process, clock, beats
):
    slow, successor, newcomer = process(), process(), process()
    slow.claim(KEY)
    for _ in range(beats):
        clock.now_s += 8
        slow.renew()
    assert successor.await_or_claim(KEY) == "mine"
    successor.release(KEY)
    newcomer.claim(KEY)

    slow.release(KEY)

    assert store.names() == [f"{PREFIX}00001"]
    assert process().claim(KEY) is False


def test_renewal_of_a_lease_lost_long_ago_ends_it(store, process, clock):
    slow, successor, newcomer = process(), process(), process()
    slow.claim(KEY)
    assert successor.await_or_claim(KEY) == "mine"
    successor.release(KEY)
    newcomer.claim(KEY)

    slow.renew()
    store.requests.clear()
    clock.now_s += 8
    slow.renew()

    assert store.requests == []
    assert store.names() == [f"{PREFIX}00001"]


@pytest.mark.parametrize("verb", ["create", "list"])
def test_release_while_the_lease_is_being_renewed_leaves_nothing(
    store, process, clock, caplog, verb
):
    caplog.set_level(logging.INFO, "hotstart.cache.leases")
    leases = process()
    leases.claim(KEY)
    clock.now_s += 8

    def release_in_between(asked: str) -> None:
        if asked == verb:
            store.before = lambda verb: None
            leases.release(KEY)

    store.before = release_in_between
    leases.renew()

    assert store.names() == []
    assert caplog.records == []


def test_renewal_between_the_two_requests_of_a_release_leaves_nothing(store, process, clock):
    leases = process()
    leases.claim(KEY)
    clock.now_s += 8
    has_looked, may_delete = threading.Event(), threading.Event()
    releasing = threading.Thread(target=leases.release, args=(KEY,))

    def hold_up_the_release(verb: str) -> None:
        if threading.current_thread() is releasing and verb == "delete":
            has_looked.set()
            may_delete.wait(PATIENCE_S)
        elif verb == "create":
            releasing.start()
            has_looked.wait(PATIENCE_S)

    store.before = hold_up_the_release
    leases.renew()
    may_delete.set()
    releasing.join(PATIENCE_S)

    assert store.names() == []


def test_beat_that_comes_after_the_release_hinders_nobody_and_goes_with_the_next(store, process):
    store.create(f"{PREFIX}00003.000007.0123abcd", b"")  # its creator saw no answer to it
    leases = process()

    assert leases.claim(KEY) is True
    leases.release(KEY)

    assert store.names() == []


def test_objects_of_other_forms_are_left_alone(store, process):
    store.create(f"{PREFIX}notes", b"")
    leases = process()
    leases.claim(KEY)

    leases.release(KEY)

    assert store.names() == [f"{PREFIX}notes"]


def test_background_thread_renews_and_ends_with_the_last_lease(store):
    leases = StoreLeases(store, ttl_s=0.2)
    before = lease_threads()
    leases.claim(KEY)
    leases.claim(f"jit_other-{HASH}")
    (thread,) = set(lease_threads()) - set(before)
    wait_until(lambda: {"000003" in name for name in store.names()} == {True, False})

    leases.release(KEY)
    leases.release(f"jit_other-{HASH}")
    thread.join(PATIENCE_S)

    assert not thread.is_alive()
    assert store.names() == []


# Roles that may not delete.


def test_release_without_the_right_to_delete_says_that_it_is_done(store, process):
    store.may_delete = False
    leases = process()
    leases.claim(KEY)

    leases.release(KEY)

    assert store.names() == [f"{PREFIX}00001", f"{PREFIX}00001.done"]


def test_wait_for_a_holder_without_the_right_to_delete_ends_at_its_release(store, process, clock):
    store.may_delete = False
    holder = process()
    holder.claim(KEY)
    on_sleep_number(clock, 3, lambda: holder.release(KEY))

    assert process().await_or_claim(KEY) == "released"
    assert len(clock.slept) == 3


def test_wait_ends_where_the_next_epoch_is_claimed_right_after_the_end(store, process, clock):
    store.may_delete = False
    holder, next_holder = process(), process()
    holder.claim(KEY)
    on_sleep_number(clock, 3, lambda: (holder.release(KEY), next_holder.await_or_claim(KEY)))

    assert process().await_or_claim(KEY) == "released"
    assert f"{PREFIX}00002" in store.names()


def test_lease_that_is_done_is_taken_at_once_by_one_and_waited_for_by_the_next(
    store, process, clock
):
    store.may_delete = False
    first, second, third = process(), process(), process()
    first.claim(KEY)
    first.release(KEY)

    assert second.await_or_claim(KEY) == "mine"
    assert clock.slept == []
    on_sleep_number(clock, 2, lambda: second.release(KEY))
    assert third.await_or_claim(KEY) == "released"


def test_lease_that_is_done_and_taken_by_another_at_that_moment_is_waited_for(
    store, process, clock
):
    store.may_delete = False
    first, second = process(), process()
    first.claim(KEY)
    first.release(KEY)

    def take_it_first(verb: str) -> None:
        if verb == "create" and store.requests[-1] == "list":
            store.before = lambda verb: None
            assert second.await_or_claim(KEY) == "mine"

    store.before = take_it_first
    on_sleep_number(clock, 2, lambda: second.release(KEY))

    assert process().await_or_claim(KEY) == "released"
    assert len(clock.slept) == 2


def test_wait_for_a_successor_goes_on_when_the_holder_before_says_that_it_is_done(
    store, process, clock
):
    store.may_delete = False
    slow = process()
    slow.claim(KEY)
    clock.now_s += 8
    slow.renew()

    def take_over_and_then_release() -> None:
        if len(clock.slept) == 20:
            store.create(f"{PREFIX}00002", b"")
        elif len(clock.slept) == 40:
            slow.release(KEY)

    clock.on_sleep = take_over_and_then_release

    waiter = process(ttl_s=1000.0)

    assert waiter.await_or_claim(KEY, is_over=lambda: len(clock.slept) == 60) == "released"
    assert len(clock.slept) == 60
    assert f"{PREFIX}00001.done" in store.names()


def test_done_leases_go_with_the_release_of_one_that_may_delete(store, process):
    store.may_delete = False
    first, second = process(), process()
    first.claim(KEY)
    first.release(KEY)
    second.await_or_claim(KEY)
    store.may_delete = True

    second.release(KEY)

    assert store.names() == []


def test_role_without_the_right_to_delete_is_no_error(store, process, clock):
    errors: list[StoreError] = []
    store.may_delete = False
    leases = process(on_error=errors.append)
    leases.claim(KEY)
    for _ in range(3):
        clock.now_s += 8
        leases.renew()

    leases.release(KEY)

    assert errors == []


# A store that fails.


def test_claim_in_a_store_that_fails_is_counted_and_then_left_alone_for_a_minute(
    store, process, clock
):
    errors: list[StoreError] = []
    leases = process(on_error=errors.append)
    store.error = DeadlineExceeded("no answer")

    assert leases.claim(KEY) is False
    assert leases.await_or_claim(KEY) == "unusable"
    assert errors == [store.error]
    assert store.requests == ["create"]

    store.error = None
    clock.now_s += 60

    assert leases.await_or_claim(KEY) == "mine"


def test_wait_in_a_store_that_begins_to_fail_ends_unusable(store, process, clock):
    errors: list[StoreError] = []
    process().claim(KEY)
    on_sleep_number(clock, 3, lambda: setattr(store, "error", DeadlineExceeded("no answer")))

    assert process(on_error=errors.append).await_or_claim(KEY) == "unusable"
    assert len(clock.slept) == 3
    assert len(errors) == 1


def test_renewal_and_release_in_a_store_that_fails_are_counted_and_do_not_raise(
    store, process, clock
):
    errors: list[StoreError] = []
    leases = process(on_error=errors.append)
    leases.claim(KEY)
    store.error = DeadlineExceeded("no answer")
    clock.now_s += 8

    leases.renew()
    leases.release(KEY)

    assert len(errors) == 2


def test_renewal_goes_on_after_a_failure(store, process, clock):
    leases = process()
    leases.claim(KEY)
    store.error = DeadlineExceeded("no answer")
    clock.now_s += 8
    leases.renew()
    store.error = None
    clock.now_s += 8
    leases.renew()

    assert "000002" in store.names()[1]


def test_close_with_a_store_that_fails_tries_once(store, process):
    leases = process()
    for module in ("jit_a", "jit_b", "jit_c"):
        leases.claim(f"{module}-{HASH}")
    store.error = DeadlineExceeded("no answer")
    store.requests.clear()

    leases.close()

    assert store.requests == ["list"]


# A fork.

FORKED = """
import os, sys, threading
from hotstart.cache.leases import StoreLeases
from hotstart.cache.store import open_store

KEY = "jit_step-" + "0123456789abcdef" * 4
leases = StoreLeases(open_store(sys.argv[1]))
assert leases.claim(KEY)
held, forked = threading.Event(), threading.Event()

def hold():
    with leases._changed:
        held.set()
        forked.wait(20)

threading.Thread(target=hold).start()
held.wait(20)
child = os.fork()
if child == 0:
    leases.release(KEY)
    right = (leases.claim(KEY), leases.claim("jit_child-" + KEY[9:])) == (False, True)
    leases.close()
    os._exit(0 if right else 1)
_, status = os.waitpid(child, 0)
forked.set()
names = [found.name.rpartition("-")[2] for found in open_store(sys.argv[1]).list("leases/")]
print(os.waitstatus_to_exitcode(status), names)
leases.release(KEY)
print(list(open_store(sys.argv[1]).list("leases/")))
"""


def test_forked_child_has_leases_of_its_own_and_leaves_the_parents(tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKED, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert (done.stdout, done.stderr) == ("0 ['jit_step@00001']\n[]\n", "")


# Any order of events.

STEPS = st.lists(
    st.tuples(st.sampled_from(["claim", "release", "renew", "wait"]), st.integers(0, 3)),
    max_size=30,
)


@settings(max_examples=300, deadline=None)
@given(
    STEPS, st.lists(st.tuples(st.sampled_from(["claim", "release", "renew"]), st.integers(0, 3)))
)
def test_leases_of_live_processes_have_one_believer_and_leave_nothing(steps, between):
    """Four processes in any order, with steps of others also between two requests of one."""
    clock, store = FakeClock(), RecordingStore()
    processes = [
        StoreLeases(store, clock=clock, sleep=clock.sleep, renew_in_background=False)
        for _ in range(4)
    ]
    believers: list[int] = []
    busy: set[int] = set()

    def step(action: str, who: int) -> None:
        if who in busy:
            return
        busy.add(who)
        leases = processes[who]
        if action == "renew":
            leases.renew()
        elif action == "release" and who in believers:
            believers.remove(who)
            leases.release(KEY)
        elif action == "claim" and who not in believers and leases.claim(KEY):
            believers.append(who)
        elif action == "wait" and who not in believers:
            until_s = clock.now_s + 60
            if leases.await_or_claim(KEY, is_over=lambda: clock.now_s > until_s) == "mine":
                believers.append(who)
        busy.discard(who)
        assert len(believers) <= 1

    def others_come_between(verb: str) -> None:
        if between and busy:
            step(*between.pop())

    def all_live() -> None:
        for who, leases in enumerate(processes):
            if who not in busy:
                leases.renew()

    store.before = others_come_between
    clock.on_sleep = all_live
    for action, who in steps:
        step(action, who)
        clock.now_s += 1
        all_live()
    for leases in processes:
        leases.close()

    assert store.names() == []


ANY_STEP = st.tuples(
    st.sampled_from(["claim", "release", "renew", "wait", "oversleep"]), st.integers(0, 3)
)


@settings(max_examples=300, deadline=None)
@given(st.lists(ANY_STEP, max_size=30), st.lists(ANY_STEP, max_size=30))
def test_leases_of_processes_that_oversleep_can_always_be_had_again_and_then_leave_nothing(
    steps, between
):
    """Whoever is taken over alive, and whatever it then does in between the others' requests."""
    clock, store = FakeClock(), RecordingStore()
    processes = [
        StoreLeases(store, clock=clock, sleep=clock.sleep, renew_in_background=False)
        for _ in range(5)
    ]
    busy: set[int] = set()

    def step(action: str, who: int) -> None:
        if action == "oversleep":
            clock.now_s += 40
        if who in busy:
            return
        busy.add(who)
        leases = processes[who]
        if action == "wait":
            until_s = clock.now_s + 60
            leases.await_or_claim(KEY, is_over=lambda: clock.now_s > until_s)
        elif action != "oversleep":
            leases.renew() if action == "renew" else getattr(leases, action)(KEY)
        busy.discard(who)

    store.before = lambda verb: step(*between.pop()) if between and busy else None
    for action, who in steps:
        step(action, who)
    for leases in processes[:4]:
        leases.close()
    last, verdicts = processes[4], []
    while store.names() or not verdicts:
        verdicts.append(last.await_or_claim(KEY))
        last.release(KEY)
        assert len(verdicts) <= 3

    assert verdicts[-1] == "mine"


# The resolver.


def publish_entry(store: RecordingStore) -> None:
    MemoryStore.create(store, ENTRY, b"entry")


def test_resolve_names_the_node_then_the_store_without_a_request(store, process):
    resolver = LeaseResolver(process())

    assert resolver.resolve(KEY) == InNode()
    assert resolver.resolve(KEY, (InNode(),)) == InStore()
    assert store.requests == []


def test_resolve_counts_only_what_it_has_named(process):
    resolver = LeaseResolver(process())
    unloadable = (InNode(b"digest"),)

    assert resolver.resolve(KEY, unloadable) == InNode()
    assert resolver.resolve(KEY, (*unloadable, InNode())) == InStore()


def test_resolve_of_what_nobody_has_is_a_leased_compilation_in_two_requests(store, process):
    resolver = LeaseResolver(process())

    assert resolver.resolve(KEY, FAILED_ONCE) == Compile(leased=True)
    assert store.requests == ["create", "stat"]
    assert store.names() == [f"{PREFIX}00001"]


def test_resolve_looks_again_where_a_holder_published_between_read_and_claim(store, process):
    publish_entry(store)
    resolver = LeaseResolver(process())

    assert resolver.resolve(KEY, FAILED_ONCE) == InNode()
    assert resolver.resolve(KEY, (*FAILED_ONCE, InNode())) == InStore()
    assert store.names() == [ENTRY]


def test_resolve_waits_for_a_live_holder_then_looks_again(store, process, clock):
    waits: list[int] = []
    holder = LeaseResolver(process())
    waiter = LeaseResolver(process(), on_wait=lambda: waits.append(1))
    assert holder.resolve(KEY, FAILED_ONCE) == Compile(leased=True)
    on_sleep_number(
        clock, 4, lambda: (publish_entry(store), holder.publish(KEY, b"d", 5, in_node=False))
    )

    assert waiter.resolve(KEY, FAILED_ONCE) == InNode()
    assert waiter.resolve(KEY, (*FAILED_ONCE, InNode())) == InStore()
    assert waits == [1]
    assert store.names() == [ENTRY]


def test_resolve_after_a_wait_in_vain_compiles_without_a_lease(store, process, clock):
    holder, waiter = LeaseResolver(process()), LeaseResolver(process())
    holder.resolve(KEY, FAILED_ONCE)
    on_sleep_number(clock, 4, lambda: holder.release(KEY))

    assert waiter.resolve(KEY, FAILED_ONCE) == InNode()
    assert waiter.resolve(KEY, FAILED_TWICE) == Compile(leased=False)
    assert store.names() == []


def test_resolve_after_the_holders_death_is_a_leased_compilation(process, clock):
    process().claim(KEY)

    assert LeaseResolver(process()).resolve(KEY, FAILED_ONCE) == Compile(leased=True)


def test_resolve_without_usable_leases_compiles_without_one(store, process):
    store.error = AccessDenied("a reader may not create")

    assert LeaseResolver(process()).resolve(KEY, FAILED_ONCE) == Compile(leased=False)


def test_resolve_where_the_second_look_fails_keeps_the_lease(store, process):
    def fail_at_the_look(verb: str) -> None:
        store.error = DeadlineExceeded("no answer") if verb == "stat" else None

    store.before = fail_at_the_look

    assert LeaseResolver(process()).resolve(KEY, FAILED_ONCE) == Compile(leased=True)


def test_every_request_ends_whatever_leads_to_nothing(process):
    resolver = LeaseResolver(process())
    failed: list[Answer] = []

    while not isinstance(answer := resolver.resolve(KEY, failed), Compile):
        failed.append(answer)

    assert failed == list(FAILED_ONCE)


def test_probe_takes_no_lease_and_waits_for_nobody(store, process, clock):
    holder, prober = process(), LeaseResolver(process())
    holder.claim(KEY)
    store.requests.clear()

    assert prober.probe(KEY) == InNode()
    assert prober.probe(KEY, (InNode(),)) == InStore()
    assert prober.probe(KEY, FAILED_ONCE) == Compile(leased=False)
    assert (store.requests, clock.slept) == ([], [])


def test_publish_keeps_the_lease_until_the_entry_is_in_the_store(store, process):
    resolver = LeaseResolver(process())
    resolver.resolve(KEY, FAILED_ONCE)

    assert resolver.publish(KEY, b"digest", 5, in_node=True) == b"digest"
    assert store.names() == [f"{PREFIX}00001"]
    assert resolver.publish(KEY, b"digest", 5, in_node=False) == b"digest"
    assert store.names() == []


def test_flush_has_nothing_to_wait_for(process):
    assert LeaseResolver(process()).flush(0.0) is True
