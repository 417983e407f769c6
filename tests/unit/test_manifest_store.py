"""Manifests in the cache's location: which one is the latest, how many are kept, what it costs."""

from __future__ import annotations

import logging

import pytest

from hotstart.cache.errors import AccessDenied, StoreError, StoreMissing, TransientError
from hotstart.cache.signing import SIGNATURE_BYTES
from hotstart.launcher.manifest import MAX_BYTES, Manifest, ManifestEntry
from hotstart.launcher.manifest_store import ManifestStore

pytestmark = pytest.mark.unit

JOB = "f" * 64


def manifest(*keys: str) -> Manifest:
    entries = (ManifestEntry(key, 1, None, ((0, 0),), None, None, False) for key in keys)
    return Manifest(tuple(entries), "0.10.2", "0.10.2", "cpu", 1)


@pytest.fixture
def requests(store, monkeypatch):
    """The names of the store's operations, as they are called."""
    called: list[str] = []
    for name in ("get", "create", "delete", "list", "stat"):
        inner = getattr(store, name)

        def call(*args, name=name, inner=inner):
            called.append(name)
            return inner(*args)

        monkeypatch.setattr(store, name, call)
    return called


def save(store, *manifests: Manifest) -> None:
    for each in manifests:
        store.now_s += 1
        ManifestStore(store).save(JOB, each)


def test_manifest_store_gives_back_what_was_saved_last(store, requests):
    save(store, manifest("a"), manifest("b"))
    requests.clear()

    assert ManifestStore(store).latest(JOB) == manifest("b")
    assert requests == ["list", "get"]


def test_manifest_store_without_one_gives_none_in_one_request(store, requests):
    save(store, manifest("a"))
    requests.clear()

    assert ManifestStore(store).latest("0" * 64) is None
    assert requests == ["list"]


def test_manifest_store_save_takes_two_requests(store, requests):
    save(store, manifest("a"))
    assert requests == ["list", "create"]


def test_manifest_store_save_of_the_latest_takes_two_requests(store, requests):
    save(store, manifest("a"), manifest("a"))
    assert requests == ["list", "create", "list", "get"]


def test_manifest_store_save_of_an_older_equal_one_makes_it_the_latest(store):
    save(store, manifest("a"), manifest("b"), manifest("a"))

    assert ManifestStore(store).latest(JOB) == manifest("a")
    assert len(store.names()) == 2


def test_manifest_store_keeps_the_latest_three(store, requests):
    save(store, *(manifest(key) for key in "abcde"))

    assert len(store.names(f"manifests/v1/{JOB}/")) == 3
    assert requests[-3:] == ["list", "create", "delete"]
    for key in "ed":
        assert ManifestStore(store).latest(JOB) == manifest(key)
        (newest,) = sorted(store.list(""), key=lambda stat: stat.modified_s)[-1:]
        store.delete(newest.name, newest.generation)
    assert ManifestStore(store).latest(JOB) == manifest("c")


def test_manifest_store_skips_what_is_damaged_foreign_or_too_large(store, caplog):
    save(store, manifest("a"))
    store.now_s += 1
    store.create(f"manifests/v1/{JOB}/{'1' * 64}", b"{}")
    store.create(f"manifests/v1/{JOB}/notes.txt", manifest("b").to_json())
    store.create(f"manifests/v1/{JOB}/{'2' * 64}", b" " * (MAX_BYTES + SIGNATURE_BYTES + 1))

    with caplog.at_level(logging.WARNING):
        assert ManifestStore(store).latest(JOB) == manifest("a")

    assert [r.getMessage() for r in caplog.records] == [
        f"/runs/manifests/v1/{JOB}/{'2' * 64}: not JSON: JSONDecodeError; it is skipped",
        f"/runs/manifests/v1/{JOB}/{'1' * 64}: not a manifest of version 1; it is skipped",
    ]


def test_manifest_store_that_was_never_written_holds_nothing_and_does_not_warn(store, caplog):
    store.error = StoreMissing("no directory")

    with caplog.at_level(logging.WARNING):
        assert ManifestStore(store).latest(JOB) is None
    assert caplog.records == []


@pytest.mark.parametrize("error", [TransientError("503"), AccessDenied("403"), StoreError("?")])
def test_manifest_store_trouble_is_a_warning(store, caplog, error):
    store.error = error

    with caplog.at_level(logging.WARNING):
        assert ManifestStore(store).latest(JOB) is None
        ManifestStore(store).save(JOB, manifest("a"))

    assert [r.getMessage() for r in caplog.records] == [
        f"nothing is read ahead for this job: {error}",
        f"what this job asked for is not kept for its next launch: {error}",
    ]


def test_manifest_store_of_a_role_that_may_not_delete_still_saves(store, monkeypatch):
    def refuse(name: str, generation: int) -> bool:
        raise AccessDenied("403")

    monkeypatch.setattr(store, "delete", refuse)
    save(store, *(manifest(key) for key in "abcd"))

    assert ManifestStore(store).latest(JOB) == manifest("d")
    assert len(store.names()) == 4
