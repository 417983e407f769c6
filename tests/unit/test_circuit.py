"""The circuit's states by a clock that the test sets, and the store with one in front."""

from __future__ import annotations

import logging
import os
import threading

import pytest

from hotstart.cache.circuit import FIRST_PAUSE_S, LONGEST_PAUSE_S, Circuit, Permit
from hotstart.cache.counters import Counters
from hotstart.cache.errors import (
    AccessDenied,
    DeadlineExceeded,
    StoreError,
    StoreMissing,
    StoreOut,
    TransientError,
)
from hotstart.cache.guarded import GuardedStore, insisting
from tests.support.memory_store import MemoryStore

pytestmark = pytest.mark.unit

OUT = DeadlineExceeded("cannot read: HTTP 503; given up")


def opened(now_s: float = 0.0) -> Circuit:
    return Circuit().failed(Permit.GO, now_s).failed(Permit.GO, now_s)


def test_circuit_one_failure_leaves_it_closed() -> None:
    assert Circuit().failed(Permit.GO, 0.0).ask(0.0)[0] is Permit.GO


def test_circuit_failures_that_are_not_in_a_row_leave_it_closed() -> None:
    now = Circuit().failed(Permit.GO, 0.0).answered().failed(Permit.GO, 1.0)
    assert now.ask(1.0)[0] is Permit.GO


def test_circuit_two_failures_in_a_row_refuse_until_the_pause_is_over() -> None:
    now = opened(100.0)
    assert now.ask(100.0 + FIRST_PAUSE_S - 0.1) == (Permit.REFUSED, now)
    permit, now = now.ask(100.0 + FIRST_PAUSE_S)
    assert permit is Permit.PROBE
    assert now.ask(1e9) == (Permit.REFUSED, now)  # one probe at a time


def test_circuit_probe_that_is_answered_closes_it() -> None:
    _, now = opened().ask(FIRST_PAUSE_S)
    assert now.answered() == Circuit()


def test_circuit_probes_that_fail_double_the_pause_up_to_the_longest() -> None:
    now, at_s, pauses = opened(), 0.0, []
    for _ in range(4):
        assert now.open_until_s is not None
        pauses.append(now.open_until_s - at_s)
        at_s = now.open_until_s
        permit, now = now.ask(at_s)
        assert permit is Permit.PROBE
        now = now.failed(permit, at_s)
    assert pauses == [15.0, 30.0, 60.0, LONGEST_PAUSE_S]


def test_circuit_late_failure_of_an_earlier_operation_does_not_prolong_the_pause() -> None:
    now = opened()
    assert now.failed(Permit.GO, 14.0) == now


def test_circuit_late_failure_while_a_probe_is_under_way_is_not_the_probes() -> None:
    _, now = opened().ask(FIRST_PAUSE_S)
    assert now.failed(Permit.GO, FIRST_PAUSE_S) == now


def test_circuit_probe_that_is_interrupted_makes_way_for_another() -> None:
    permit, now = opened().ask(FIRST_PAUSE_S)
    assert now.abandoned(permit).ask(FIRST_PAUSE_S)[0] is Permit.PROBE


class Outage(MemoryStore):
    """Fails with `error` where there is one, and counts what is asked."""

    def __init__(self) -> None:
        super().__init__("gs://bucket/cache")
        self.error: BaseException | None = None
        self.calls = 0
        self.open = threading.Event()
        self.open.set()
        self.entered = threading.Event()

    def get(self, name: str) -> bytes | None:
        self._enter()
        return super().get(name)

    def create(self, name: str, data: bytes) -> bool:
        self._enter()
        return super().create(name, data)

    def _enter(self) -> None:
        self.calls += 1
        self.entered.set()
        assert self.open.wait(20)
        if self.error is not None:
            raise self.error


class Rig:
    def __init__(self) -> None:
        self.now_s = 0.0
        self.counters = Counters()
        self.bucket = Outage()
        self.store = GuardedStore(self.bucket, count=self.counters.add, clock=lambda: self.now_s)

    def fail(self, error: BaseException, times: int) -> None:
        self.bucket.error = error
        for _ in range(times):
            with pytest.raises(type(error)):
                self.store.get("name")
        self.bucket.error = None


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_guarded_store_is_the_store_while_it_answers(rig: Rig) -> None:
    assert rig.store.create("name", b"data") is True
    stat = rig.store.stat("name")
    assert stat is not None
    assert (rig.store.get("name"), list(rig.store.list("n"))) == (b"data", [stat])
    assert rig.store.delete("name", stat.generation) is True
    assert rig.store.url == "gs://bucket/cache"


def test_guarded_store_in_an_outage_raises_without_a_request_and_says_why(rig: Rig) -> None:
    rig.fail(OUT, 2)
    rig.now_s = 5.0
    with pytest.raises(StoreOut) as raised:
        rig.store.get("name")
    assert str(raised.value) == (
        "gs://bucket/cache is out and left alone, to be tried again in 10 s; "
        "the last failure: cannot read: HTTP 503; given up"
    )
    assert isinstance(raised.value, TransientError)
    for operation in (
        lambda: rig.store.create("name", b""),
        lambda: rig.store.stat("name"),
        lambda: rig.store.delete("name", 1),
        lambda: list(rig.store.list("")),
    ):
        with pytest.raises(StoreOut):
            operation()
    assert rig.bucket.calls == 2


def test_guarded_store_says_once_that_it_is_out_and_once_that_it_is_back(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "hotstart.cache.guarded")
    rig.fail(OUT, 2)
    rig.fail(StoreOut("left alone"), 3)
    rig.now_s = FIRST_PAUSE_S
    rig.fail(OUT, 1)
    rig.now_s += 2 * FIRST_PAUSE_S
    assert rig.store.get("name") is None
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [
        (
            "WARNING",
            "gs://bucket/cache is out: 2 operations in a row have failed; reads fail at once "
            f"until it answers again, tried first in 15 s: {OUT}",
        ),
        ("INFO", "gs://bucket/cache answers again after 45 s"),
    ]
    assert rig.counters.snapshot().outages == 1


@pytest.mark.parametrize("error", [AccessDenied("403"), StoreMissing("404"), StoreError("?")])
def test_guarded_store_that_refuses_is_there(rig: Rig, error: StoreError) -> None:
    rig.fail(error, 5)
    rig.fail(OUT, 1)
    rig.fail(error, 1)
    rig.fail(OUT, 1)
    assert rig.bucket.calls == 8


def test_guarded_store_lets_one_of_two_threads_probe(rig: Rig) -> None:
    rig.fail(OUT, 2)
    rig.now_s = FIRST_PAUSE_S
    rig.bucket.open.clear()
    rig.bucket.entered.clear()
    got: list[bytes | None] = []
    prober = threading.Thread(target=lambda: got.append(rig.store.get("name")))
    prober.start()
    assert rig.bucket.entered.wait(20)
    with pytest.raises(StoreOut):
        rig.store.get("name")
    rig.bucket.open.set()
    prober.join(20)
    assert (got, rig.bucket.calls) == ([None], 3)
    assert rig.store.get("name") is None


def test_guarded_store_probe_that_is_interrupted_is_followed_by_another(rig: Rig) -> None:
    rig.fail(OUT, 2)
    rig.now_s = FIRST_PAUSE_S
    rig.fail(KeyboardInterrupt(), 1)
    assert rig.store.get("name") is None


def test_insisting_write_is_tried_in_an_outage_and_its_success_ends_it_for_all(rig: Rig) -> None:
    rig.fail(OUT, 2)
    with pytest.raises(StoreOut):
        rig.store.create("name", b"data")
    assert insisting(rig.store).create("name", b"data") is True
    assert rig.store.get("name") == b"data"


def test_insisting_writes_that_fail_open_the_circuit_for_reads(rig: Rig) -> None:
    rig.bucket.error = OUT
    for _ in range(3):
        with pytest.raises(DeadlineExceeded):
            insisting(rig.store).create("name", b"data")
    with pytest.raises(StoreOut):
        rig.store.get("name")
    assert (rig.bucket.calls, rig.counters.snapshot().outages) == (3, 1)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_forked_child_of_an_outage_begins_with_a_closed_circuit(rig: Rig) -> None:
    rig.fail(OUT, 2)
    child = os.fork()
    if child == 0:
        os._exit(0 if rig.store.get("name") is None else 1)
    assert os.waitpid(child, 0)[1] == 0
    with pytest.raises(StoreOut):
        rig.store.get("name")
