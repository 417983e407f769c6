"""What a submitted run does on the cluster that a launched one does not.

Its working folder is gone with the cluster, so what was sent is kept in the run's record, as
`<run>/shipment`; and when the run is sent again, its program lies in another folder by now. What
of the submission was said anew then (requirements, where the driver goes, which hotstart) reaches
the driver as `HOTSTART_SUBMISSION_NOTES`, and is kept under its epoch for the time after that.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import threading
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from hotstart.cache.errors import StoreError
from hotstart.conf.schema import JobConfig
from hotstart.launcher.errors import UsageError
from hotstart.launcher.record import RunRecord

logger = logging.getLogger(__name__)

SUBMISSION_VARIABLE = "HOTSTART_SUBMISSION"
RUN_NAME_VARIABLE = "HOTSTART_RUN_NAME"
NOTES_VARIABLE = "HOTSTART_SUBMISSION_NOTES"


def keep_shipment(record: RunRecord, folder: Path) -> threading.Thread:
    """Keep what was sent, unpacked in `folder`, beside the job: returns at once.

    Where it can't be kept there is a warning: the run goes on, and can't be sent again.
    """
    thread = threading.Thread(target=_keep, args=(record, folder), name="hotstart-shipment")
    thread.start()
    return thread


def shipment_of(record: RunRecord) -> bytes | None:
    """What `keep_shipment` kept, or None. Blocks; raises `StoreError`."""
    return record.store.get(f"{record.name}/shipment")


def keep_notes(record: RunRecord, epoch: int) -> None:
    """Keep what this submission of a run has said anew, if anything, under its owner's epoch.

    Blocks on the store; where it can't be kept there is a warning.
    """
    try:
        notes = json.loads(os.environ.get(NOTES_VARIABLE) or "null")
        if isinstance(notes, dict):
            record.create_fact(f"submitted/{epoch:08d}", notes)
    except (ValueError, StoreError) as error:
        logger.warning(
            "run %s: what was said anew for this submission holds for it alone: %s",
            record.name,
            error,
        )


def last_notes(record: RunRecord) -> dict[str, Any] | None:
    """What `keep_notes` kept last, or None. Blocks; raises `StoreError`."""
    stats = record.store.list(f"{record.name}/submitted/")
    for name in sorted((stat.name for stat in stats), reverse=True):
        try:
            notes = json.loads(record.store.get(name) or b"null")
        except ValueError:
            continue
        if isinstance(notes, dict):
            return notes
    return None


def moved(
    config: JobConfig, launched_from: Mapping[str, Any], folder: str
) -> tuple[JobConfig, dict[str, Any]]:
    """A recorded job and from where it was launched, as of a run that was sent again.

    What lay below the working folder of then lies below `folder`; the rest is left as it is.
    """
    old = str(launched_from.get("folder") or "")

    def here(path: Any) -> Any:
        if not old or not isinstance(path, str) or not PurePath(path).is_relative_to(old):
            return path
        return os.path.normpath(PurePath(folder, PurePath(path).relative_to(old)))

    config = dataclasses.replace(
        config, script=here(config.script), working_dir=here(config.working_dir)
    )
    there = {key: here(launched_from.get(key)) for key in ("folder", "job_file")}
    return config, {**launched_from, **there}


def _keep(record: RunRecord, folder: Path) -> None:
    import tempfile

    from hotstart.launcher.sent_files import write_kept_archive

    try:
        with tempfile.TemporaryDirectory(prefix="hotstart-shipment-") as scratch:
            archive = Path(scratch, "shipment.zip")
            if write_kept_archive(folder, archive):
                record.store.create(f"{record.name}/shipment", archive.read_bytes())
    except (StoreError, UsageError, OSError) as error:
        logger.warning(
            "run %s can't be submitted again: what was sent is not in its record: %s",
            record.name,
            error,
        )
