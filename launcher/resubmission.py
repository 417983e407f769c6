"""A run that was submitted before, to be sent again: from its record alone, to any cluster.

The record has the job as resolved and what was sent (`submitted.py`). The new driver takes the run
over as `hotstart restart` does, once the old one has gone, and goes on from its last checkpoint.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from hotstart.launcher.driver_place import place_from
from hotstart.launcher.errors import RecordDamaged, UsageError
from hotstart.launcher.recorded_job import read_job
from hotstart.launcher.requirements import read_requirements
from hotstart.launcher.sent_files import read_notes
from hotstart.launcher.shipment import Options, Submission, stop_wait_s
from hotstart.launcher.staging import check_hotstart
from hotstart.launcher.submitted import shipment_of


def prepare_again(run_dir: str, name: str, options: Options) -> Submission:
    """What to send for a recorded run; reads its record, sends nothing.

    Requirements and place of the driver are those of before, unless given. Blocks on the store;
    raises `RunNotFound`, `RecordDamaged`, `StoreError`, `SigningKeyError`, and `UsageError` where
    the run is done or keeps nothing that could be sent.
    """
    check_hotstart(options.hotstart)
    job = read_job(run_dir, name)
    record, config = job.record, job.config
    if record.state() == "done":
        raise UsageError(f"run {record.name} is done; submit the job anew instead")
    archive = shipment_of(record)
    if archive is None:
        raise UsageError(
            f"{record.store.url}/{record.name}/shipment is not there: the run was not submitted, "
            "or ended before what was sent was kept; restart it where it was launched, or submit "
            "the job anew"
        )
    with tempfile.TemporaryDirectory(prefix="hotstart-submit-") as scratch:
        path = Path(scratch, "shipment.zip")
        path.write_bytes(archive)
        try:
            notes = read_notes(path)
        except ValueError as error:
            raise RecordDamaged(
                f"{record.store.url}/{record.name}/shipment is damaged: {error}; submit the job "
                "anew"
            ) from error
    owner = record.owner()
    submission_id = f"{record.name}-s{(owner.epoch if owner else 0) + 1}"
    words = ("restart", record.name, "--run-dir", record.store.url)
    kept = tuple(line for line in notes.get("requirements", ()) if isinstance(line, str))
    return Submission(
        record.name,
        submission_id,
        record.store.url,
        words,
        {},
        stop_wait_s(config),
        config.timeouts.placement_s,
        archive=archive,
        requirements=read_requirements(options.requirements) if options.requirements else kept,
        hotstart=options.hotstart,
        driver=options.driver or place_from(notes.get("driver")),
    )
