"""What each fault on the way to a bucket makes of each operation: its outcome, its requests, its
time. One store of short deadlines; a proxy before the emulator does the harm."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest

from hotstart.cache.counters import Counters
from hotstart.cache.entry import EntryMeta, encode, entry_name
from hotstart.cache.errors import (
    AccessDenied,
    DeadlineExceeded,
    StoreMissing,
    StoreOut,
    TransientError,
)
from hotstart.cache.gcs import GcsStore
from hotstart.cache.guarded import GuardedStore
from hotstart.cache.shared import SharedCache, Tiers
from hotstart.cache.store import open_store
from tests.support.gcs_emulator import GcsEmulator
from tests.support.gcs_proxy import Fault, GcsProxy, gcs_proxy

pytestmark = pytest.mark.emulator

DEADLINE_S = 2.4  # a try has 0.8 s of it
TRY_S = DEADLINE_S / 3
SLACK_S = 0.5  # of a busy machine
NAME = "name"
DATA = bytes(range(256)) * 40  # 10 s at 1 KB/s


@dataclass(frozen=True)
class Operation:
    """One of a store's operations, and what it gives when nothing is wrong."""

    name: str
    call: Callable[[GcsStore], Any]
    gives: Any
    fault: Callable[[Fault], Fault]


GET = Operation(
    "get", lambda store: store.get(NAME), DATA, lambda f: replace(f, method="GET", lists=False)
)
PUT = Operation(
    "put", lambda store: store.create("new", DATA), True, lambda f: replace(f, method="POST")
)
LIST = Operation(
    "list",
    lambda store: [found.name for found in store.list("")],
    [NAME, "name-2", "name-3"],
    lambda f: replace(f, method="GET", lists=True),
)
OPERATIONS = (GET, PUT, LIST)


@pytest.fixture
def counters() -> Counters:
    return Counters()


@pytest.fixture
def store(bucket: str, proxy: GcsProxy, counters: Counters) -> GcsStore:
    """Of a bucket with three objects, seen before."""
    made = GcsStore(f"{bucket}/prefix", deadline_s=DEADLINE_S, count=counters.add)
    for name in LIST.gives:
        made.create(name, DATA)
    proxy.reset()
    return made


@pytest.fixture(autouse=True)
def quick_and_seeded_jitter(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("hotstart.cache.retry.FIRST_WAIT_AT_MOST_S", 0.02)
    state = random.getstate()
    random.seed(1234)
    yield
    random.setstate(state)


def objects(store: GcsStore) -> list[str]:
    return [found.name for found in store.list("")]


PASSING = [
    *((operation, Fault("status", status=503), 0.0) for operation in OPERATIONS),
    *((operation, Fault("status", status=408), 0.0) for operation in OPERATIONS),
    *((operation, Fault("status", status=429, retry_after="1"), 1.0) for operation in OPERATIONS),
    # Where a connection in use is reset before an answer, aiohttp itself sends a GET again, once.
    *(
        (operation, Fault(kind, times=1 if operation is PUT else 2), 0.0)
        for operation in OPERATIONS
        for kind in ("reset", "reset_after")
    ),
    *((operation, Fault("short_body"), 0.0) for operation in OPERATIONS),
    *((operation, Fault("commit_then_status"), 0.0) for operation in OPERATIONS),
    *((operation, Fault("stall"), TRY_S) for operation in OPERATIONS),
    (PUT, Fault("reset_in_upload"), 0.0),
    (PUT, Fault("trickle_upload"), TRY_S),
    (GET, Fault("trickle"), TRY_S),
    (LIST, Fault("trickle"), TRY_S),
]


@pytest.mark.parametrize(
    ("operation", "fault", "takes_s"),
    PASSING,
    ids=lambda value: getattr(value, "name", None) or getattr(value, "kind", None),
)
def test_fault_that_passes_costs_one_retry_and_nothing_else(
    store: GcsStore,
    proxy: GcsProxy,
    counters: Counters,
    operation: Operation,
    fault: Fault,
    takes_s: float,
) -> None:
    proxy.inject(operation.fault(fault))
    started = time.monotonic()

    assert operation.call(store) == operation.gives

    took_s = time.monotonic() - started
    assert takes_s <= took_s < takes_s + SLACK_S
    assert proxy.faults_left() == 0
    counted = counters.snapshot()
    assert counted.retries == 1
    assert takes_s <= counted.retry_s <= took_s
    assert objects(store) == [*LIST.gives, *(["new"] if operation is PUT else [])]
    assert store.get(NAME) == DATA


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
@pytest.mark.parametrize(
    "fault",
    [
        Fault("status", status=503),
        Fault("status", status=429, retry_after="0"),
        Fault("reset"),
        Fault("stall"),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.status}",
)
def test_fault_that_stays_ends_at_the_deadline(
    bucket: str, proxy: GcsProxy, counters: Counters, operation: Operation, fault: Fault
) -> None:
    store = GcsStore(f"{bucket}/prefix", deadline_s=0.6, count=counters.add)
    assert store.create(NAME, DATA)
    proxy.inject(operation.fault(replace(fault, times=10_000)))
    started = time.monotonic()

    with pytest.raises(DeadlineExceeded) as raised:
        operation.call(store)

    took_s = time.monotonic() - started
    assert took_s < 0.6 + SLACK_S
    assert type(raised.value.__cause__) is TransientError
    proxy.reset()
    counted = counters.snapshot()
    assert counted.retries >= 1
    assert counted.retry_s == pytest.approx(took_s, abs=0.05)
    assert objects(store) == [NAME]


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_store_that_asks_to_be_left_alone_for_longer_than_the_deadline_is_given_up_at_once(
    store: GcsStore, proxy: GcsProxy, counters: Counters, operation: Operation
) -> None:
    proxy.inject(operation.fault(Fault("status", status=429, retry_after="3600", times=10)))
    started = time.monotonic()

    with pytest.raises(DeadlineExceeded, match="it asks to be left alone for 3600 s"):
        operation.call(store)

    assert time.monotonic() - started < SLACK_S
    assert (proxy.faults_left(), counters.snapshot().retries) == (1, 0)
    assert len(proxy.requests()) == 1


@pytest.mark.parametrize(
    ("operation", "status", "outcome"),
    [
        (GET, 403, AccessDenied),
        (PUT, 403, AccessDenied),
        (LIST, 403, AccessDenied),
        (GET, 404, None),
        (PUT, 404, StoreMissing),
        (LIST, 404, StoreMissing),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_refusal_is_not_tried_again(
    store: GcsStore,
    proxy: GcsProxy,
    counters: Counters,
    operation: Operation,
    status: int,
    outcome: type[Exception] | None,
) -> None:
    proxy.inject(operation.fault(Fault("status", status=status, times=10)))

    if outcome is None:  # the answer that an absent object gets
        assert operation.call(store) is None
    else:
        with pytest.raises(outcome):
            operation.call(store)

    # A refused write looks once whether the name is taken.
    looks = 1 if (operation, status) == (PUT, 403) else 0
    assert len(proxy.requests()) == 1 + looks
    assert counters.snapshot().retries == 0


@pytest.mark.parametrize("seed", range(3))
def test_faults_at_random_that_pass_change_no_result(
    store: GcsStore, proxy: GcsProxy, counters: Counters, seed: int
) -> None:
    chance = random.Random(seed)
    quick = [
        Fault("status", status=503),
        Fault("status", status=408),
        Fault("status", status=429, retry_after="0"),
        Fault("reset"),
        Fault("reset_after"),
        Fault("short_body"),
        Fault("commit_then_status", status=503),
    ]
    expected = {name: DATA for name in LIST.gives}
    injected = 0
    for step in range(40):
        operation = chance.choice(OPERATIONS)
        faults = chance.choices(quick, k=chance.randrange(3))
        proxy.inject(*map(operation.fault, faults))
        injected += len(faults)
        if operation is GET:
            name = chance.choice([*expected, "absent"])
            assert store.get(name) == expected.get(name)
        elif operation is PUT:
            name, data = f"new-{chance.randrange(20):02}", str(step).encode()
            assert store.create(name, data) is (name not in expected)
            expected.setdefault(name, data)
        else:
            assert objects(store) == sorted(expected)
    assert proxy.faults_left() <= injected - counters.snapshot().retries
    proxy.reset()
    assert {name: store.get(name) for name in objects(store)} == expected


def test_fair_transfer_that_takes_longer_than_a_try_of_nothing_is_one_request(
    bucket: str, emulator: GcsEmulator, monkeypatch: pytest.MonkeyPatch, counters: Counters
) -> None:
    data = random.Random(1).randbytes(4_000_000)
    with gcs_proxy(emulator.url, bandwidth_mb_s=4.0) as slow:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", slow.url)
        store = GcsStore(bucket, deadline_s=DEADLINE_S, count=counters.add)
        started = time.monotonic()

        assert store.create(NAME, data) is True
        assert store.get(NAME) == data

        assert time.monotonic() - started > 2 * TRY_S
        assert [(r.method, r.status) for r in slow.requests()] == [("POST", 200), ("GET", 200)]
    assert counters.snapshot() == Counters().snapshot()


def test_flipped_byte_is_no_entry_and_the_next_put_changes_nothing_good(
    bucket: str, proxy: GcsProxy
) -> None:
    key = "jit_step-" + "ab" * 32
    bucket_store, counters = GcsStore(f"{bucket}/cache"), Counters()
    entry = encode(key, b"executable" * 1000, EntryMeta())
    bucket_store.create(entry_name(key), entry)
    cache = SharedCache(Tiers(bucket_store), counters)
    proxy.inject(Fault("flipped_byte", object_contains="entries/"))

    assert cache.get(key) is None
    assert counters.snapshot().errors == 1

    cache.put(key, b"compiled here", EntryMeta())
    assert cache.flush(20.0)
    assert bucket_store.get(entry_name(key)) == entry
    assert [found.name for found in bucket_store.list("")] == [entry_name(key)]


def test_outage_costs_two_deadlines_and_then_nobody_waits_until_a_probe_closes_it(
    bucket: str, proxy: GcsProxy, counters: Counters
) -> None:
    now_s = 0.0
    store = GuardedStore(
        GcsStore(f"{bucket}/prefix", deadline_s=0.3, count=counters.add),
        count=counters.add,
        clock=lambda: now_s,
    )
    store.create(NAME, DATA)
    proxy.inject(Fault("status", times=10_000))
    for _ in range(2):
        with pytest.raises(DeadlineExceeded):
            store.get(NAME)
    sent = len(proxy.requests())
    started = time.monotonic()

    for _ in range(100):
        with pytest.raises(StoreOut, match="left alone, to be tried again in 15 s"):
            store.get(NAME)

    assert time.monotonic() - started < SLACK_S
    assert len(proxy.requests()) == sent
    proxy.reset()
    now_s = 15.0
    assert store.get(NAME) == DATA
    assert counters.snapshot().outages == 1


def test_open_store_of_a_bucket_is_guarded_where_that_is_asked_for(bucket: str) -> None:
    assert type(open_store(bucket, guarded=True)) is GuardedStore
    assert type(open_store(bucket)) is GcsStore
