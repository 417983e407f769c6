"""What the driver learns of an attempt's programs, where it keeps it, and whom it tells."""

from __future__ import annotations

import base64
import logging
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import pytest

from hotstart.cache.config import CacheConfig
from hotstart.cache.errors import StoreError
from hotstart.launcher.ahead import Ahead, AheadSettings, installed_versions
from hotstart.launcher.asked import Versions
from hotstart.launcher.manifest import Manifest, ManifestEntry
from hotstart.launcher.placement import GangSize
from hotstart.launcher.record import RunRecord

pytestmark = pytest.mark.unit

VERSIONS = Versions("0.10.2", "0.10.2", "cpu")
JOB = "f" * 64


def manifest(*keys: str, jaxlib: str = "0.10.2") -> Manifest:
    entries = (ManifestEntry(key, 10, None, ((0, 0),), b"", (0,), True) for key in keys)
    return Manifest(tuple(entries), "0.10.2", jaxlib, "cpu", 1)


def asked(*keys: str) -> Any:
    """What one worker's agent answers."""
    requests = [
        {
            "key": key,
            "size_bytes": 10,
            "digest": None,
            "options": base64.b64encode(b"").decode(),
            "devices": [0],
            "callbacks": False,
            "order": order,
        }
        for order, key in enumerate(keys)
    ]
    return lambda: {0: requests}


class FakeGang:
    """Keeps what it is told; `stored` is the manifest in the cache's location."""

    def __init__(self, stored: bytes | None = None) -> None:
        self.stored = stored
        self.size = GangSize(1, 1, 1, 1)
        self.sent: list[tuple[int, Manifest]] = []
        self.saved: list[Manifest] = []
        self.looked = 0
        self.may_answer = threading.Event()
        self.may_answer.set()

    def read_ahead(self, attempt: int, manifest_json: bytes) -> None:
        self.sent.append((attempt, Manifest.from_json(manifest_json)))

    def latest_manifest(self, cache: CacheConfig, fingerprint: str) -> bytes | None:
        assert (cache.location, fingerprint) == ("/cache", JOB)
        assert self.may_answer.wait(10)
        self.looked += 1
        return self.stored

    def latest_manifest_of(self, cache: CacheConfig, fingerprints: Sequence[str]) -> bytes | None:
        raise AssertionError("only for a job of several sizes")

    def save_manifest(self, cache: CacheConfig, fingerprint: str, manifest_json: bytes) -> None:
        assert (cache.location, fingerprint) == ("/cache", JOB)
        self.saved.append(Manifest.from_json(manifest_json))


@pytest.fixture
def record(store):
    return RunRecord.create(store, "lm-1", "name: lm\n", {}, 5.0)


def ahead_of(record, *, is_new: bool = True, mode: Any = "read-write", **fields: Any) -> Ahead:
    settings = AheadSettings(lambda _: JOB, CacheConfig("/cache", mode=mode), "cpu", **fields)
    return Ahead(settings, record, VERSIONS, is_new=is_new)


def learn(ahead: Ahead, gang: FakeGang, *keys: str, attempt: int = 1, done: bool = False) -> None:
    ahead.learn(attempt, gang, asked(*keys), stepped=True, done=done)


def send(ahead: Ahead, gang: FakeGang, attempt: int = 1) -> list[tuple[int, Manifest]]:
    """What a gang was sent for an attempt, all threads done."""
    ahead.send(attempt, gang)
    ahead.close()
    return gang.sent


def test_ahead_of_a_first_run_finds_nothing_and_sends_nothing(record) -> None:
    gang = FakeGang()
    assert send(ahead_of(record), gang) == []
    assert gang.looked == 1


def test_ahead_of_a_new_run_sends_what_an_earlier_run_of_the_job_left(record) -> None:
    gang = FakeGang(manifest("a", "b").to_json())
    ahead = ahead_of(record)
    assert send(ahead, gang) == [(1, manifest("a", "b"))]
    assert send(ahead, gang, 2) == [(1, manifest("a", "b")), (2, manifest("a", "b"))]
    assert gang.looked == 1


def test_ahead_send_does_not_wait_for_the_store(record) -> None:
    gang = FakeGang(manifest("a").to_json())
    gang.may_answer.clear()
    ahead = ahead_of(record)
    ahead.send(1, gang)
    assert gang.sent == []
    gang.may_answer.set()
    ahead.close()
    assert gang.sent == [(1, manifest("a"))]


def test_ahead_found_too_late_for_its_attempt_is_sent_for_the_next_one_only(record) -> None:
    gang = FakeGang(manifest("a").to_json())
    gang.may_answer.clear()
    ahead = ahead_of(record)
    ahead.send(1, gang)
    learn(ahead, gang, "b")
    ahead.send(2, gang)
    gang.may_answer.set()
    ahead.close()
    assert gang.sent == [(2, manifest("b"))]


@pytest.mark.parametrize("stored", [b"{}", manifest("a", jaxlib="0.9").to_json()])
def test_ahead_damaged_or_of_another_jax_sends_nothing(record, stored: bytes) -> None:
    assert send(ahead_of(record), FakeGang(stored)) == []


def test_ahead_of_a_reopened_run_sends_its_own_manifest_and_asks_no_other(record) -> None:
    record.keep_manifest(2, manifest("mine"))
    gang = FakeGang(manifest("other").to_json())
    ahead = ahead_of(record, is_new=False)
    ahead.recall()
    assert send(ahead, gang, 3) == [(3, manifest("mine"))]
    assert gang.looked == 0


def test_ahead_of_a_reopened_run_without_a_manifest_asks_the_location(record) -> None:
    gang = FakeGang(manifest("other").to_json())
    ahead = ahead_of(record, is_new=False)
    ahead.recall()
    assert send(ahead, gang, 3) == [(3, manifest("other"))]


def test_ahead_switched_off_learns_and_sends_nothing(record) -> None:
    gang = FakeGang(manifest("a").to_json())
    ahead = ahead_of(record, read_ahead=False)
    ahead.recall()
    learn(ahead, gang, "b")
    assert send(ahead, gang) == []
    assert (gang.looked, gang.saved, record.manifest()) == (0, [manifest("b")], manifest("b"))


def test_ahead_learned_is_recorded_saved_and_sent_to_the_next_attempt(record) -> None:
    gang = FakeGang()
    ahead = ahead_of(record)
    send(ahead, gang)
    learn(ahead, gang, "a", "b")
    assert record.manifest() == manifest("a", "b")
    assert gang.saved == [manifest("a", "b")]
    assert send(ahead, gang, 2) == [(2, manifest("a", "b"))]


def test_ahead_that_grew_by_the_end_is_recorded_and_saved_again(record, store) -> None:
    gang = FakeGang()
    ahead = ahead_of(record)
    learn(ahead, gang, "a")
    learn(ahead, gang, "a", done=True)
    assert (len(store.names("lm-1/attempts/")), gang.saved) == (1, [manifest("a")])
    learn(ahead, gang, "a", "b", done=True)
    assert gang.saved == [manifest("a"), manifest("a", "b")]
    assert record.manifest() == manifest("a", "b")


def test_ahead_warm_start_of_the_same_programs_saves_nothing_and_records_all(record) -> None:
    gang = FakeGang(manifest("a", "b", "eval").to_json())
    ahead = ahead_of(record)
    send(ahead, gang)
    learn(ahead, gang, "a", "b")
    assert gang.saved == []
    assert record.manifest() == manifest("a", "b", "eval")


def test_ahead_read_only_records_and_does_not_save(record) -> None:
    gang = FakeGang()
    learn(ahead_of(record, mode="read-only"), gang, "a")
    assert (gang.saved, record.manifest()) == ([], manifest("a"))


def test_ahead_of_an_attempt_that_failed_early_is_recorded_and_not_saved(record) -> None:
    gang = FakeGang()
    ahead = ahead_of(record)
    ahead.learn(1, gang, asked("a"), stepped=False, done=False)
    assert (gang.saved, record.manifest()) == ([], manifest("a"))
    assert send(ahead, gang, 2) == [(2, manifest("a"))]


def test_ahead_nothing_asked_leaves_what_is_known(record) -> None:
    gang = FakeGang()
    ahead = ahead_of(record)
    learn(ahead, gang, "a")
    learn(ahead, gang, attempt=2, done=True)
    assert send(ahead, gang, 3) == [(3, manifest("a"))]
    assert record.manifest() == manifest("a")


def test_ahead_record_that_cannot_be_written_is_a_warning_and_the_next_start_is_ready(
    record, store, caplog
) -> None:
    gang = FakeGang()
    ahead = ahead_of(record)
    store.error = StoreError("the disk is full")
    with caplog.at_level(logging.WARNING):
        learn(ahead, gang, "a")
    assert [r.getMessage() for r in caplog.records] == [
        "what attempt 1 asked for is not recorded: the disk is full"
    ]
    assert send(ahead, gang, 2) == [(2, manifest("a"))]


def test_ahead_record_that_cannot_be_read_is_a_warning(record, store, caplog) -> None:
    store.error = StoreError("no network")
    ahead = ahead_of(record, is_new=False)
    with caplog.at_level(logging.WARNING):
        ahead.recall()
        ahead.close()
    assert [r.getMessage() for r in caplog.records] == ["nothing is read ahead: no network"]


def test_ahead_answers_that_never_come_are_a_warning(record, caplog) -> None:
    def broken() -> Any:
        raise RuntimeError("Ray is gone")

    with caplog.at_level(logging.WARNING):
        ahead_of(record).learn(1, FakeGang(), broken, stepped=True, done=True)
    assert [r.getMessage() for r in caplog.records] == ["what attempt 1 asked for is not known"]


def test_installed_versions_are_those_of_this_environment() -> None:
    import jax
    import jaxlib

    expected = Versions(jax.__version__, jaxlib.__version__, "gpu")
    assert installed_versions("gpu") == expected


def of_size(workers: int, *keys: str) -> Manifest:
    return replace(manifest(*keys), process_count=workers)


class SizedGang(FakeGang):
    """A gang of some size; the cache's location keeps a manifest for each fingerprint."""

    location: ClassVar[dict[str, bytes]] = {}

    def __init__(self, workers: int) -> None:
        super().__init__()
        self.size = GangSize(workers, 1, 1, 4)

    def latest_manifest(self, cache: CacheConfig, fingerprint: str) -> bytes | None:
        self.looked += 1
        return self.location.get(fingerprint)

    def save_manifest(self, cache: CacheConfig, fingerprint: str, manifest_json: bytes) -> None:
        self.location[fingerprint] = manifest_json


def sized(record, *, is_new: bool = True) -> Ahead:
    settings = AheadSettings(lambda workers: f"job of {workers}", CacheConfig("/cache"), "cpu")
    return Ahead(settings, record, VERSIONS, is_new=is_new)


def test_ahead_sends_each_size_what_that_size_asked_for(record, monkeypatch) -> None:
    monkeypatch.setattr(SizedGang, "location", {})
    ahead = sized(record)
    learn(ahead, SizedGang(4), "a4", "b4", attempt=1)
    assert send(ahead, SizedGang(2), 2) == []  # nothing of another size
    learn(ahead, SizedGang(2), "a2", attempt=2)
    assert send(ahead, SizedGang(4), 3) == [(3, of_size(4, "a4", "b4"))]
    assert send(ahead, SizedGang(2), 4) == [(4, of_size(2, "a2"))]
    assert sorted(SizedGang.location) == ["job of 2", "job of 4"]


def test_ahead_of_a_restart_finds_both_sizes_in_the_record(record, monkeypatch) -> None:
    monkeypatch.setattr(SizedGang, "location", {})
    ahead = sized(record)
    learn(ahead, SizedGang(4), "a4", attempt=1)
    learn(ahead, SizedGang(2), "a2", attempt=2)
    SizedGang.location.clear()
    for workers, key in ((4, "a4"), (2, "a2")):
        again = sized(record, is_new=False)
        again.recall()
        assert send(again, SizedGang(workers), 3) == [(3, of_size(workers, key))]
    assert send(sized(record, is_new=False), SizedGang(3), 3) == []


def test_ahead_takes_no_manifest_of_another_size_from_the_location(record, monkeypatch) -> None:
    monkeypatch.setattr(SizedGang, "location", {"job of 2": of_size(4, "a").to_json()})
    assert send(sized(record), SizedGang(2), 1) == []


@pytest.mark.parametrize(("jaxlib", "told"), [("0.10.1", ["0.10.1"]), ("0.10.2", [])])
def test_ahead_of_a_size_that_has_not_run_tells_of_other_versions_of_another_size(
    record, monkeypatch, jaxlib: str, told: list[str]
) -> None:
    asked: list[Sequence[str]] = []

    class Asked(SizedGang):
        def latest_manifest_of(
            self, cache: CacheConfig, fingerprints: Sequence[str]
        ) -> bytes | None:
            asked.append(fingerprints)
            return replace(manifest("a", jaxlib=jaxlib), process_count=4).to_json()

    monkeypatch.setattr(SizedGang, "location", {})
    settings = AheadSettings(
        lambda workers: f"job of {workers}", CacheConfig("/cache"), "cpu", sizes=range(2, 5, 2)
    )
    misfits: list[Manifest] = []
    ahead = Ahead(settings, record, VERSIONS, is_new=True, on_misfit=misfits.append)
    assert send(ahead, Asked(2), 1) == []
    assert send(ahead, Asked(4), 2) == []
    assert [found.jaxlib for found in misfits] == told
    assert asked == [["job of 2", "job of 4"]]
