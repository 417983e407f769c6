"""Runs as a driver records them, and caches with entries to look after, without either."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Literal

from hotstart.cache.entry import EntryMeta, encode, entry_name
from hotstart.cache.signing import UNSEALED, Keyring, Seal
from hotstart.cache.store import Store
from hotstart.conf.load import job_to_yaml
from hotstart.conf.schema import CacheSection, JobConfig
from hotstart.launcher.asked import fingerprint
from hotstart.launcher.identity import OwnerIdentity
from hotstart.launcher.manifest import Manifest, ManifestEntry
from hotstart.launcher.manifest_store import ManifestStore
from hotstart.launcher.record import RunRecord
from hotstart.launcher.runs import open_runs

KEYS = [f"jit_step-{digit * 64}" for digit in "abcdef"]
NAMES = [entry_name(key) for key in KEYS]
META = EntryMeta(1.5, "0.10.2", "0.10.2", "cpu", "host-a/17")


def entry(index: int, seal: Seal = UNSEALED, meta: EntryMeta = META) -> bytes:
    """The entry of `KEYS[index]`; all have one size."""
    return encode(KEYS[index], f"payload {index}".encode() * 20, meta, seal)


def fill(store: Store, *indices: int) -> None:
    """Create the entries of these keys."""
    for index in indices:
        assert store.create(NAMES[index], entry(index))


def manifest(keys: Sequence[str]) -> Manifest:
    """A manifest of these keys."""
    entries = (ManifestEntry(key, 10, None, ((0, 0),), None, None, False) for key in keys)
    return Manifest(tuple(entries), "0.10.2", "0.10.2", "cpu", 1)


def job(location: str, script: str = "/train.py") -> JobConfig:
    """A job with its cache there."""
    return JobConfig(name="lm", script=script, cache=CacheSection(location=location))


def record_run(
    run_dir: str,
    name: str,
    location: str,
    keys: Sequence[str] = (),
    *,
    state: Literal["running", "lost", "done", "elsewhere"],
    keyring: Keyring | None = None,
) -> RunRecord:
    """A run of a job with its cache in `location` that asked for `keys` in its one attempt.

    "elsewhere": its driver is on another host, and has no end.
    """
    config = job(location)
    store = open_runs(run_dir, keyring or Keyring())
    record = RunRecord.create(store, name, job_to_yaml(config), {}, 5.0)
    owner = asdict(OwnerIdentity.of_this_process())
    if state == "lost":
        owner["pid_started"] += 1  # a process that had this pid before
    if state == "elsewhere":
        owner["host"] = "host-b"
    record.create_fact(f"owner/{1:08d}/{0:08d}", owner)
    record.start_attempt(1, {})
    if keys:
        record.keep_manifest(1, manifest(keys))
    if state == "done":
        record.finish("done", 0, "", epoch=1)
    return record


def save_manifest(store: Store, location: str, keys: Sequence[str]) -> None:
    """The manifest that jobs with their cache in `location` left there."""
    ManifestStore(store).save(fingerprint(job(location)), manifest(keys))
