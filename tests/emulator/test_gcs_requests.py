"""What GcsStore sends, and what it makes of faults: seen by a proxy before the emulator."""

from __future__ import annotations

import time

import pytest

from hotstart.cache.errors import (
    AccessDenied,
    DeadlineExceeded,
    RejectedRequest,
    StoreError,
    TransientError,
)
from hotstart.cache.gcs import GcsStore
from hotstart.cache.gcs_answers import Taken
from tests.support.gcs_proxy import Fault, GcsProxy

pytestmark = pytest.mark.emulator

MEBIBYTE = 1 << 20


class Retries:
    """Counts what `count` is told of retries."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, retries: int = 0, **_: float) -> None:
        self.count += retries


@pytest.fixture
def retries() -> Retries:
    return Retries()


@pytest.fixture
def store(bucket: str, retries: Retries) -> GcsStore:
    return GcsStore(f"{bucket}/prefix", count=retries)


def sent(proxy: GcsProxy) -> list[tuple[str, str, int]]:
    return [(request.method, request.object_name, request.status) for request in proxy.requests()]


@pytest.mark.parametrize("size_bytes", [0, 1000, 60 * MEBIBYTE])
def test_create_and_get_any_size_are_one_request_each(
    store: GcsStore, proxy: GcsProxy, size_bytes: int
) -> None:
    data = b"x" * size_bytes

    assert store.create("name", data) is True
    assert store.get("name") == data

    assert sent(proxy) == [("POST", "prefix/name", 200), ("GET", "prefix/name", 200)]


def test_other_operations_are_one_request_each(store: GcsStore, proxy: GcsProxy) -> None:
    store.create("name", b"data")
    proxy.reset()

    found = store.stat("name")
    assert found is not None
    assert list(store.list("")) == [found]
    assert store.delete("name", found.generation) is True

    assert sent(proxy) == [
        ("GET", "prefix/name", 200),
        ("GET", "", 200),
        ("DELETE", "prefix/name", 200),
    ]


def test_get_absent_probes_for_the_bucket_once_in_a_store_life(
    store: GcsStore, proxy: GcsProxy
) -> None:
    assert [store.get("absent") for _ in range(3)] == [None, None, None]

    assert sent(proxy) == [
        ("GET", "prefix/absent", 404),
        ("GET", "", 200),
        ("GET", "prefix/absent", 404),
        ("GET", "prefix/absent", 404),
    ]


def test_get_absent_after_a_success_is_one_request(store: GcsStore, proxy: GcsProxy) -> None:
    store.create("name", b"")
    proxy.reset()

    assert store.get("absent") is None

    assert sent(proxy) == [("GET", "prefix/absent", 404)]


def test_create_answer_lost_after_the_commit_is_known_as_its_own(
    store: GcsStore, proxy: GcsProxy, retries: Retries
) -> None:
    proxy.inject(Fault("commit_then_status", method="POST", status=503))

    assert store.create("name", b"mine") is True

    assert store.get("name") == b"mine"
    assert retries.count == 1
    assert sent(proxy) == [
        ("POST", "prefix/name", 503),
        ("POST", "prefix/name", 412),
        ("GET", "prefix/name", 200),
        ("GET", "prefix/name", 200),
    ]


def test_create_after_another_writer_won_is_not_taken_for_its_own(
    store: GcsStore, bucket: str, proxy: GcsProxy
) -> None:
    GcsStore(f"{bucket}/prefix").create("name", b"theirs")
    proxy.inject(Fault("status", method="POST", status=503))

    assert store.create("name", b"mine") is False
    assert store.get("name") == b"theirs"


def test_get_503_twice_then_success_counts_two_retries(
    store: GcsStore, proxy: GcsProxy, retries: Retries
) -> None:
    store.create("name", b"data")
    proxy.inject(Fault("status", status=503, times=2))

    assert store.get("name") == b"data"
    assert retries.count == 2


@pytest.mark.parametrize("fault", [Fault("reset"), Fault("short_body")], ids=lambda f: f.kind)
def test_get_broken_connection_is_tried_again(
    store: GcsStore, proxy: GcsProxy, fault: Fault
) -> None:
    data = b"0123456789" * 1000
    store.create("name", data)
    proxy.inject(fault)

    assert store.get("name") == data


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_create_transient_status_is_tried_again(
    store: GcsStore, proxy: GcsProxy, retries: Retries, status: int
) -> None:
    proxy.inject(Fault("status", method="POST", status=status))

    assert store.create("name", b"data") is True
    assert retries.count == 1


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (400, RejectedRequest),
        (401, AccessDenied),
        (403, AccessDenied),
        (409, Taken),
        (413, RejectedRequest),
    ],
)
def test_get_final_status_raises_at_once_and_names_the_object(
    store: GcsStore,
    proxy: GcsProxy,
    retries: Retries,
    status: int,
    expected: type[StoreError],
) -> None:
    proxy.inject(Fault("status", status=status, times=10))

    with pytest.raises(StoreError) as raised:
        store.get("name")
    assert type(raised.value) is expected
    assert f"cannot read {store.url}/name: HTTP {status}" in str(raised.value)
    assert retries.count == 0
    assert len(proxy.requests()) == 1


@pytest.mark.parametrize(
    "fault",
    [
        Fault("status", status=503, times=1000),
        Fault("reset", times=1000),
        Fault("stall", times=1000),
    ],
    ids=lambda fault: fault.kind,
)
def test_get_failing_until_the_deadline_raises_deadline_exceeded_in_time(
    bucket: str, proxy: GcsProxy, fault: Fault
) -> None:
    store = GcsStore(bucket, deadline_s=1.5)
    store.create("name", b"data")
    proxy.inject(fault)
    started = time.monotonic()

    with pytest.raises(DeadlineExceeded, match="given up after") as raised:
        store.get("name")

    assert time.monotonic() - started < 3
    assert type(raised.value.__cause__) is TransientError


def test_create_stalled_until_the_deadline_raises_deadline_exceeded_in_time(
    bucket: str, proxy: GcsProxy
) -> None:
    store = GcsStore(bucket, deadline_s=1.0)
    proxy.inject(Fault("stall", method="POST"))
    started = time.monotonic()

    with pytest.raises(DeadlineExceeded):
        store.create("name", b"x" * 20 * MEBIBYTE)

    assert time.monotonic() - started < 3


def test_get_nothing_listening_raises_deadline_exceeded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:1")
    store = GcsStore("gs://bucket", deadline_s=0.5)

    with pytest.raises(DeadlineExceeded, match=r"gs://bucket/name"):
        store.get("name")
