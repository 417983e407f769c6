"""With a signing key, facts and manifests that do not verify are not there; without, all count."""

from __future__ import annotations

import json
import logging

import pytest

from hotstart.cache.errors import AccessDenied
from hotstart.cache.signing import Key, Keyring, Seal, SealedStore
from hotstart.launcher.errors import RecordDamaged
from hotstart.launcher.identity import OwnerIdentity
from hotstart.launcher.manifest import Manifest, ManifestEntry
from hotstart.launcher.manifest_store import ManifestStore
from hotstart.launcher.outcome import Outcome
from hotstart.launcher.ownership import take_ownership
from hotstart.launcher.record import RunRecord

pytestmark = pytest.mark.unit

SEAL = Seal(Keyring((Key(b"\x01" * 32),)), "/runs")
HERE = OwnerIdentity.of_this_process()
JOB, OTHER_JOB = "f" * 64, "e" * 64


def manifest(*keys: str) -> Manifest:
    entries = (ManifestEntry(key, 1, None, ((0, 0),), None, None, False) for key in keys)
    return Manifest(tuple(entries), "0.10.2", "0.10.2", "cpu", 1)


@pytest.fixture
def sealed(store):
    return SealedStore(store, SEAL)


@pytest.fixture
def record(sealed):
    return RunRecord.create(sealed, "lm-1", "name: lm\n", {"folder": "/job"}, 5.0)


def replace(store, name: str, data: bytes) -> None:
    """Put other bytes under a name, as who may write to the bucket can."""
    found = store.stat(name)
    if found is not None:
        store.delete(name, found.generation)
    store.create(name, data)


def test_record_that_is_signed_is_read_back_with_and_without_the_key(record, store):
    record.start_attempt(1, {"cache": {}})
    record.end_attempt(1, Outcome("done", "all done", None), {})
    record.finish("done", 0, "all done", epoch=1)

    facts = record.read(HERE)

    assert record.job_yaml() == "name: lm\n"
    assert (facts.created["launched_from"], facts.end.state) == ({"folder": "/job"}, "done")
    assert RunRecord(store, "lm-1").read(HERE).end is None  # the line is not JSON
    keyless = RunRecord(SealedStore(store, Seal()), "lm-1")
    assert keyless.read(HERE) == facts
    assert keyless.job_yaml() == "name: lm\n"


@pytest.mark.parametrize("how", ["of another run", "stripped", "changed"])
def test_record_job_that_is_not_this_runs_signed_one_is_refused(record, sealed, store, how):
    RunRecord.create(sealed, "lm-2", "name: evil\n", {}, 5.0)
    signed = store.get("lm-1/job.yaml")
    data = {
        "of another run": store.get("lm-2/job.yaml"),
        "stripped": b"name: lm\n",
        "changed": signed.replace(b"name: lm", b"name: ml"),
    }[how]
    replace(store, "lm-1/job.yaml", data)

    with pytest.raises(RecordDamaged, match="is not signed with a key of this host"):
        record.job_yaml()


def test_record_without_a_job_says_that_it_is_missing(record, store):
    store.delete("lm-1/job.yaml", store.stat("lm-1/job.yaml").generation)

    with pytest.raises(RecordDamaged, match="is missing"):
        record.job_yaml()


def test_record_forged_facts_are_left_out(record, store):
    record.start_attempt(1, {"cache": {"location": "gs://bucket"}})
    forged = json.dumps({"state": "done", "exit_code": 0, "reason": "?"}).encode()
    store.create("lm-1/end/00000009", forged)
    store.create("lm-1/attempts/00001/end", b'{"outcome": "done", "reason": "?"}')
    store.create("lm-1/attempts/00001/workers/00000", b'{"host": "?"}')
    replace(store, "lm-1/created", b'{"launched_from": {"folder": "/evil"}}')

    facts = record.read(HERE)

    assert facts.end is None
    assert (facts.attempts[0].end, facts.attempts[0].workers) == (None, ())
    assert facts.created == {}
    assert record.has_created() is False


def test_record_fact_of_another_attempt_is_left_out(record, store):
    record.start_attempt(1, {})
    record.end_attempt(1, Outcome("done", "all done", None), {})
    record.start_attempt(2, {})
    store.create("lm-1/attempts/00002/end", store.get("lm-1/attempts/00001/end"))

    assert record.attempts()[1].end is None


def test_record_forged_owner_is_watched_and_never_replaced(record, store, clock):
    """A live owner whose key this host lacks looks the same: it must not lose its run at once."""
    store.create("lm-1/owner/00000004/00000000", b'{"host": "evil", "pid": 1}')

    owned = take_ownership(record, HERE, clock=clock, sleep=clock.sleep, ttl_s=15.0)

    assert (owned.epoch, sum(clock.slept)) == (5, 15.0)
    assert store.get("lm-1/owner/00000004/00000000") == b'{"host": "evil", "pid": 1}'


def test_record_manifest_of_another_run_is_passed_over(record, sealed, store):
    record.start_attempt(1, {})
    record.keep_manifest(1, manifest("a"))
    other = RunRecord.create(sealed, "lm-2", "name: lm\n", {}, 5.0)
    other.start_attempt(1, {})
    other.keep_manifest(1, manifest("b", "c"))
    name = "attempts/00001/manifest/00000002-2"
    store.create(f"lm-1/{name}", store.get(f"lm-2/{name}"))

    assert record.manifest() == manifest("a")


def test_manifest_of_another_job_or_without_a_signature_is_passed_over(sealed, store, caplog):
    manifests = ManifestStore(sealed)
    manifests.save(JOB, manifest("a"))
    manifests.save(OTHER_JOB, manifest("b"))
    store.now_s += 1
    (other,) = store.names(f"manifests/v1/{OTHER_JOB}/")
    store.create(other.replace(OTHER_JOB, JOB), store.get(other))
    store.create(f"manifests/v1/{JOB}/{'1' * 64}", manifest("c").to_json())

    with caplog.at_level(logging.WARNING):
        assert manifests.latest(JOB) == manifest("a")

    assert len(caplog.records) == 2
    assert all("it is left alone" in message for message in caplog.messages)


def test_manifest_that_is_refused_is_replaced_by_the_same_one_signed(sealed, store):
    ManifestStore(store).save(JOB, manifest("a"))
    store.now_s += 1

    ManifestStore(sealed).save(JOB, manifest("a"))

    assert ManifestStore(sealed).latest(JOB) == manifest("a")
    assert len(store.names()) == 1


def test_manifest_of_a_role_that_may_not_delete_is_replaced_under_another_name(
    sealed, store, monkeypatch
):
    def refuse(name: str, generation: int) -> bool:
        raise AccessDenied("HTTP 403")

    ManifestStore(store).save(JOB, manifest("a"))
    monkeypatch.setattr(store, "delete", refuse)
    store.now_s += 1

    for _ in range(2):
        ManifestStore(sealed).save(JOB, manifest("a"))

    names = store.names()
    assert names[1] == f"{names[0]}~1"
    assert len(names) == 2
    assert ManifestStore(sealed).latest(JOB) == manifest("a")
