"""Manifests in a run's record: of each attempt the one with the most keys, the latest attempt's."""

from __future__ import annotations

import logging

import pytest

from hotstart.launcher.facts import ManifestSummary
from hotstart.launcher.manifest import Manifest, ManifestEntry
from hotstart.launcher.record import RunRecord

pytestmark = pytest.mark.unit


def manifest(count: int) -> Manifest:
    entries = (
        ManifestEntry(f"jit_{i}", 10, None, ((0, 1),), None, None, False) for i in range(count)
    )
    return Manifest(tuple(entries), "0.10.2", "0.10.2", "cpu", 2)


@pytest.fixture
def record(store):
    record = RunRecord.create(store, "lm-1", "name: lm\n", {}, 5.0)
    record.start_attempt(1, {})
    return record


def test_record_manifest_of_a_run_without_one_is_none(record):
    assert record.manifest() is None
    assert record.attempts()[0].manifest is None


def test_record_manifest_that_grew_is_the_one_that_counts(record, store):
    record.keep_manifest(1, manifest(2))
    record.keep_manifest(1, manifest(11))

    assert record.manifest() == manifest(11)
    assert record.attempts()[0].manifest == ManifestSummary(11, 110)
    assert store.names("lm-1/attempts/") == (
        "lm-1/attempts/00001/manifest/00000002-20",
        "lm-1/attempts/00001/manifest/00000011-110",
        "lm-1/attempts/00001/start",
    )


def test_record_manifest_of_the_latest_attempt_counts_even_where_it_is_smaller(record):
    record.keep_manifest(1, manifest(5))
    record.keep_manifest(2, manifest(1))
    record.start_attempt(3, {})

    assert record.manifest() == manifest(1)


def test_record_manifest_that_is_damaged_is_skipped_with_one_warning(record, store, caplog):
    record.keep_manifest(1, manifest(5))
    store.create("lm-1/attempts/00002/manifest/00000009-90", b"{}")

    with caplog.at_level(logging.WARNING):
        assert [record.manifest(), record.manifest()] == [manifest(5), manifest(5)]

    assert [r.getMessage() for r in caplog.records] == [
        "/runs/lm-1/attempts/00002/manifest/00000009-90 is no manifest: not a manifest of "
        "version 1; it is skipped"
    ]


def test_record_report_reads_no_manifest(record, store, monkeypatch):
    record.keep_manifest(1, manifest(5))
    read = []
    inner = store.get
    monkeypatch.setattr(store, "get", lambda name: read.append(name) or inner(name))

    record.read()

    assert [name for name in read if "manifest" in name] == []
