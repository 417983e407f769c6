"""The job of a run that was launched before, read with the keys that vouch for it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from hotstart.cache.keyring import load_keyring
from hotstart.cache.signing import Keyring
from hotstart.conf.load import job_from_yaml, job_to_yaml, job_with
from hotstart.conf.schema import JobConfig
from hotstart.launcher.errors import RecordDamaged
from hotstart.launcher.record import RunRecord
from hotstart.launcher.runs import open_runs, resolve_run


@dataclass(frozen=True)
class RecordedJob:
    """A recorded run, its job, the keys that verify its record, and the job's changes.

    `changed` is the job as YAML where it is another than the record has, else None.
    """

    record: RunRecord
    config: JobConfig
    keyring: Keyring
    changed: str | None = None


def read_job(run_dir: str, name: str, overrides: Sequence[str] = ()) -> RecordedJob:
    """A recorded run and its job, with settings of the command line over it.

    They are this host's; where it has none, those in the file that the job names, with which it
    is read again. Blocks; raises `RunNotFound`, `RecordDamaged`, `SigningKeyError`, `StoreError`,
    and `ConfigError` where a setting can't be used, or would make it another run.
    """
    keyring = load_keyring()
    record = resolve_run(open_runs(run_dir, keyring), name)
    config = job_from_yaml(record.job_yaml(), f"job.yaml of run {record.name}")
    if not keyring and config.cache.signing_key_file is not None:
        keyring = load_keyring(config.cache.signing_key_file)
        record = RunRecord(open_runs(run_dir, keyring), record.name)
        config = job_from_yaml(record.job_yaml(), f"job.yaml of run {record.name}")
    if not record.has_created():
        raise RecordDamaged(
            f"{record.store.url}/{record.name}/created can't be read, or is not signed with a key "
            "of this host; launch the job anew"
        )
    if not overrides:
        return RecordedJob(record, config, keyring)
    text = record.job_yaml()
    revised = job_with(text, f"job.yaml of run {record.name}", overrides)
    if revised == config:
        return RecordedJob(record, config, keyring)
    said = " ".join(shlex.quote(override) for override in overrides)
    changes = "".join(f"# {line}\n" for line in f"restarted with {said}".splitlines())
    return RecordedJob(record, revised, keyring, changes + job_to_yaml(revised))
