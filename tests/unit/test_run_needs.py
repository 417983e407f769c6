"""What runs need of a cache: where it can't be told, how a cache is spelt, which sizes count."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hotstart.cache.errors import StoreMissing, TransientError
from hotstart.cache.signing import UNSEALED, Keyring, SealedStore
from hotstart.cache.store import open_store
from hotstart.conf.load import job_to_yaml
from hotstart.launcher import run_needs
from hotstart.launcher.asked import fingerprint
from hotstart.launcher.cache_location import run_locations
from hotstart.launcher.errors import UsageError
from hotstart.launcher.manifest_store import ManifestStore
from hotstart.launcher.record import RunRecord
from hotstart.launcher.run_needs import RunNeeds, read_needs
from hotstart.launcher.runs import open_runs
from tests.support.recorded_runs import KEYS, job, manifest, record_run, save_manifest

pytestmark = pytest.mark.unit

RUN = "lm-20261124-163001-3f2a"


def needs(tmp_path: Path, cache: SealedStore) -> RunNeeds:
    [one] = read_needs([str(tmp_path / "runs")], Keyring(), cache, only_live=True)
    return one


def cache_in(tmp_path: Path, name: str = "cache") -> SealedStore:
    return SealedStore(open_store(str(tmp_path / name)), UNSEALED)


def test_needs_where_the_locations_manifest_fails_raise(tmp_path, monkeypatch) -> None:
    cache = cache_in(tmp_path)
    record_run(str(tmp_path / "runs"), RUN, cache.url, state="running")
    save_manifest(cache, cache.url, KEYS[:1])

    def fail(name: str) -> bytes | None:
        raise TransientError("503")

    monkeypatch.setattr(cache, "get", fail)
    with pytest.raises(TransientError, match="503"):
        needs(tmp_path, cache)


def test_needs_where_no_manifest_of_the_location_verifies_are_unread(tmp_path, monkeypatch) -> None:
    cache = cache_in(tmp_path)
    record_run(str(tmp_path / "runs"), RUN, cache.url, state="running")
    save_manifest(cache, cache.url, KEYS[:1])
    assert (needs(tmp_path, cache).keys, needs(tmp_path, cache).unread) == ({KEYS[0]}, 0)

    monkeypatch.setattr(cache, "get", lambda name: None)  # as what is signed with another key
    assert (needs(tmp_path, cache).keys, needs(tmp_path, cache).unread) == (set(), 1)


@pytest.mark.parametrize("spelling", ["jobs/../cache", "link"])
def test_needs_of_a_cache_by_another_spelling_are_of_that_cache(tmp_path, spelling) -> None:
    cache = cache_in(tmp_path)
    save_manifest(cache, str(tmp_path / spelling), KEYS[:1])
    (tmp_path / "jobs").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "cache")
    record_run(str(tmp_path / "runs"), RUN, str(tmp_path / spelling), state="running")

    one = needs(tmp_path, cache)
    assert (one.location, one.keys) == (cache.url, {KEYS[0]})
    assert one.made(one.began_s, cache.url)


def test_needs_of_an_elastic_job_are_those_of_each_size(tmp_path) -> None:
    cache = cache_in(tmp_path)
    config = replace(job(cache.url), workers=3, workers_min=1)
    record = RunRecord.create(
        open_runs(str(tmp_path / "runs"), Keyring()), RUN, job_to_yaml(config), {}, 5.0
    )
    for workers in (1, 2, 3):
        found = fingerprint(config, None, workers)
        ManifestStore(cache).save(found, manifest([KEYS[workers]]))
    record.start_attempt(1, {})

    assert needs(tmp_path, cache).keys == set(KEYS[1:4])


def test_run_directory_that_was_named_and_is_not_there_is_bad_usage(tmp_path, monkeypatch) -> None:
    with pytest.raises(UsageError, match="--run-dir: .*/runs: there is no such directory"):
        run_locations((str(tmp_path / "runs"),))
    monkeypatch.setenv("HOTSTART_HOME", str(tmp_path))
    assert run_locations(()) == [str(tmp_path / "runs")]


def test_run_bucket_that_is_not_there_is_bad_usage(tmp_path, store, monkeypatch) -> None:
    store.error = StoreMissing("gs://runs: there is no such bucket")
    monkeypatch.setattr(run_needs, "open_sealed", lambda where, keyring: store)
    with pytest.raises(UsageError, match="--run-dir: gs://runs: there is no such bucket"):
        needs(tmp_path, cache_in(tmp_path))
