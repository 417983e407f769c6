"""Why a start must be cold is said once, from which version to which."""

from __future__ import annotations

import os

import pytest

from hotstart.cache.errors import StoreError
from hotstart.cache.signing import Keyring
from hotstart.cache.store import open_store
from hotstart.launcher.cold_start import (
    Before,
    ColdStart,
    before_in_directory,
    before_in_record,
    cold_because,
)
from hotstart.launcher.manifest import Manifest, ManifestEntry
from hotstart.launcher.manifest_store import ManifestStore
from hotstart.launcher.record import RunRecord

pytestmark = pytest.mark.unit

NOW = {"compression": "zstandard", "jax": "0.10.2", "jaxlib": "0.10.2"}
OLD = {**NOW, "jaxlib": "0.10.1"}
JOB = "f" * 64
ENTRY = ManifestEntry("jit_f-00", 10, None, ((0, 0),), b"", (0,), True)


def manifest(jaxlib: str) -> Manifest:
    return Manifest((ENTRY,), "0.10.2", jaxlib, "cpu", 1)


@pytest.fixture
def record(store):
    return RunRecord.create(store, "lm-1", "name: lm\n", {}, 5.0)


def said(find) -> list[str]:
    lines: list[str] = []
    cold = ColdStart(NOW, lines.append)
    cold.look(find)
    cold.settle(10)
    return lines


def test_same_versions_are_no_cold_start():
    assert cold_because(Before(NOW, "in attempt 1"), NOW) is None


def test_changed_new_and_removed_versions_are_named_with_both():
    before = Before({"jax": "0.10.1", "libtpu": "0.0.9"}, "in attempt 2")
    assert cold_because(before, {"jax": "0.10.2", "jax-cuda12-plugin": "0.10.2"}) == (
        "the start will be cold: jax was 0.10.1 in attempt 2 and is 0.10.2 now, "
        "jax-cuda12-plugin was none in attempt 2 and is 0.10.2 now, "
        "libtpu was 0.0.9 in attempt 2 and is none now"
    )


def test_restart_goes_by_the_latest_attempt_in_the_record(record):
    record.start_attempt(1, {"versions": NOW})
    record.start_attempt(2, {"versions": OLD})
    assert said(lambda: before_in_record(record)) == [
        "the start will be cold: jaxlib was 0.10.1 in attempt 2 and is 0.10.2 now"
    ]


@pytest.mark.parametrize("start", [None, {}, {"versions": 3}])
def test_record_that_has_no_versions_says_nothing(record, start):
    if start is not None:
        record.start_attempt(1, start)
    assert before_in_record(record) is None


@pytest.mark.parametrize(
    ("jaxlib", "lines"),
    [
        (
            "0.10.1",
            ["the start will be cold: jaxlib was 0.10.1 when this job last ran and is 0.10.2 now"],
        ),
        ("0.10.2", []),
    ],
)
def test_new_run_goes_by_the_manifest_in_its_directory(tmp_path, jaxlib, lines):
    ManifestStore(open_store(str(tmp_path))).save(JOB, manifest(jaxlib))
    assert said(lambda: before_in_directory(str(tmp_path), {JOB}, Keyring(), NOW)) == lines


@pytest.mark.parametrize(
    ("last", "lines"),
    [
        (
            "0.10.1",
            ["the start will be cold: jaxlib was 0.10.1 when this job last ran and is 0.10.2 now"],
        ),
        ("0.10.2", []),
    ],
)
def test_new_run_of_an_elastic_job_goes_by_the_size_that_ran_last(tmp_path, last, lines):
    store = ManifestStore(open_store(str(tmp_path)))
    store.save("0" * 64, manifest("0.9.9"))  # of another job
    store.save("2" * 64, manifest("0.10.2" if last == "0.10.1" else "0.10.1"))
    for path in tmp_path.rglob("*"):
        os.utime(path, (1e9, 1e9))
    store.save("4" * 64, manifest(last))
    sizes = {str(size) * 64 for size in (2, 4, 8)}
    assert said(lambda: before_in_directory(str(tmp_path), sizes, Keyring(), NOW)) == lines


def test_new_run_in_an_empty_directory_says_nothing(tmp_path):
    assert before_in_directory(str(tmp_path), {JOB}, Keyring(), NOW) is None


def test_misfit_that_an_agent_finds_later_is_not_said_again():
    lines: list[str] = []
    cold = ColdStart(NOW, lines.append)
    cold.misfit(manifest("0.10.2"))
    assert lines == []
    cold.misfit(manifest("0.10.1"))
    cold.misfit(manifest("0.10.0"))
    assert lines == [
        "the start will be cold: jaxlib was 0.10.1 when this job last ran and is 0.10.2 now"
    ]


def test_store_that_fails_says_nothing():
    def fail() -> Before:
        raise StoreError("gone")

    assert said(fail) == []
