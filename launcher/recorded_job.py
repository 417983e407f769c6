"""The job of a run that was launched before, read with the keys that vouch for it."""

from __future__ import annotations

from hotstart.cache.keyring import load_keyring
from hotstart.cache.signing import Keyring
from hotstart.conf.load import job_from_yaml
from hotstart.conf.schema import JobConfig
from hotstart.launcher.errors import RecordDamaged
from hotstart.launcher.record import RunRecord
from hotstart.launcher.runs import open_runs, resolve_run


def read_job(run_dir: str, name: str) -> tuple[RunRecord, JobConfig, Keyring]:
    """A recorded run, its job, and the keys that verify its record.

    They are this host's; where it has none, those in the file that the job names, with which it
    is read again. Blocks; raises `RunNotFound`, `RecordDamaged`, `SigningKeyError`, `StoreError`.
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
    return record, config, keyring
