"""A run that was submitted before, to be sent again: from its record alone, to any cluster.

The record has the job as resolved and what was sent (`submitted.py`). The new driver takes the run
over as `hotstart restart` does, once the old one has gone, and goes on from its last checkpoint.
Settings of the command line go with it, as `hotstart restart RUN a.b=c` takes them, and hold from
then on; a relative `script` or `working_dir` among them lies in what was sent.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from hotstart.conf.errors import dotted
from hotstart.conf.keys import Setting, command_line_settings
from hotstart.launcher.driver_place import place_from
from hotstart.launcher.errors import RecordDamaged, UsageError
from hotstart.launcher.recorded_job import read_job
from hotstart.launcher.requirements import read_requirements
from hotstart.launcher.sent_files import read_notes
from hotstart.launcher.shipment import (
    Options,
    Submission,
    exposed_among,
    setting_of,
    stop_wait_s,
)
from hotstart.launcher.staging import CLUSTER, SHIP, check_hotstart
from hotstart.launcher.submitted import NOTES_VARIABLE, last_notes, shipment_of

_SENT_PATHS = {("script",), ("working_dir",)}
_HOST_PATHS = {
    ("cache", "location"),
    ("cache", "node_dir"),
    ("cache", "signing_key_file"),
    ("resume", "if_exists"),
}


def prepare_again(
    run_dir: str, name: str, options: Options, overrides: Sequence[str] = ()
) -> Submission:
    """What to send for a recorded run; reads its record, sends nothing.

    Requirements, place of the driver and `--hotstart` are those of before, unless given. Blocks on
    the store; raises `RunNotFound`, `RecordDamaged`, `StoreError`, `SigningKeyError`, `ConfigError`
    where a setting can't be used, and `UsageError` where the run is done, keeps nothing that could
    be sent, or lacks a file that a setting names.
    """
    if options.hotstart is not None:
        check_hotstart(options.hotstart)
    record = read_job(run_dir, name).record
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
    folder = str(_mapping(record.created().get("launched_from")).get("folder") or "")
    sent = {str(name).rstrip("/") for name in notes.get("files") or ()}
    overrides = tuple(_carried(overrides, folder, sent))
    config = read_job(run_dir, record.name, overrides).config
    owner = record.owner()
    submission_id = f"{record.name}-s{(owner.epoch if owner else 0) + 1}"
    words = ("restart", record.name, *overrides, "--run-dir", record.store.url)
    before = {**notes, **(last_notes(record) or {})}
    kept = tuple(line for line in before.get("requirements") or () if isinstance(line, str))
    submission = Submission(
        record.name,
        submission_id,
        record.store.url,
        words,
        {},
        stop_wait_s(config),
        config.timeouts.placement_s,
        archive=archive,
        requirements=read_requirements(options.requirements) if options.requirements else kept,
        hotstart=options.hotstart or (CLUSTER if before.get("hotstart") == CLUSTER else SHIP),
        driver=options.driver or place_from(before.get("driver")),
        exposed=exposed_among(
            (setting.origin.label, setting.path[1])
            for setting in command_line_settings(overrides)
            if setting.path[0] == "env" and len(setting.path) == 2
        ),
    )
    said = submission.notes()
    if said != {key: before.get(key) for key in said}:
        environ = {NOTES_VARIABLE: json.dumps(said, sort_keys=True)}
        return dataclasses.replace(submission, environ=environ)
    return submission


def _carried(overrides: Sequence[str], folder: str, sent: Collection[str]) -> Iterator[str]:
    """The settings as they are said on the cluster.

    Of what was sent, paths are below the `folder` where the run was launched; `submitted.moved`
    takes them from there to where it is unpacked this time.
    """
    for override in overrides:
        text = override
        for setting in command_line_settings([override]):
            if not _is_relative(setting.value):
                continue
            if setting.path in _HOST_PATHS:
                raise setting.origin.error(
                    "give an absolute path of the cluster's hosts, or a bucket",
                    key=dotted(setting.path),
                )
            if setting.path in _SENT_PATHS:
                text = setting_of(dotted(setting.path), _below(folder, setting, sent))
        yield text


def _below(folder: str, setting: Setting, sent: Collection[str]) -> str:
    name = os.path.normpath(setting.value)
    if name != "." and not any(path == name or path.startswith(f"{name}/") for path in sent):
        raise setting.origin.error(
            f"{setting.value} is not among what the run was sent as; submit the job anew",
            key=dotted(setting.path),
        )
    return os.path.normpath(PurePath(folder, name))


def _is_relative(value: Any) -> bool:
    is_text = isinstance(value, str) and bool(value.strip())
    return is_text and "://" not in value and "${" not in value and value[0] not in "/~"


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
