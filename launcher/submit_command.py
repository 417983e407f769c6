"""What `hotstart submit` does and shows."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from hotstart.launcher.shipment import prepare
from hotstart.launcher.submit import RayJobs


def run_submit(
    job: str,
    overrides: tuple[str, ...],
    bucket: str,
    address: str | None,
    *,
    follow: bool,
    as_json: bool,
) -> int:
    """Submit a job, follow it where asked to, and say how to go on; the exit code.

    Blocks until the job's end with `follow`. Raises what `prepare` and `RayJobs` raise.
    """
    submission = prepare(job, overrides, bucket)
    jobs = RayJobs(address)
    _say(f"submitting {submission.folder} as {submission.submission_id} to {jobs.address}")
    jobs.submit(submission)
    ray_job = f"--address {jobs.address} {submission.submission_id}"
    found: dict[str, Any] = {
        "run": submission.run,
        "submission_id": submission.submission_id,
        "address": jobs.address,
        "run_dir": submission.run_dir,
        "status": "SUBMITTED",
        "exit_code": None,
        "reason": None,
    }
    exit_code = 0
    if follow:
        stream = sys.stderr if as_json else sys.stdout
        try:
            ending = jobs.follow(
                submission.submission_id, lambda text: click.echo(text, stream, nl=False)
            )
            exit_code = int(ending.exit_code)
            found |= {"status": ending.status, "exit_code": exit_code, "reason": ending.reason}
            _say(f"{submission.submission_id} {ending.status}: {ending.reason}")
        except KeyboardInterrupt:
            exit_code, follow = 130, False
            _say("stopped following; the job goes on")
    if not follow:
        _say(f"follow it with: ray job logs --follow {ray_job}")
        _say(f"stop it with: ray job stop {ray_job}")
    _say(f"report: hotstart report {submission.run} --run-dir {submission.run_dir}")
    if as_json:
        click.echo(json.dumps(found, indent=2))
    return exit_code


def _say(text: str) -> None:
    click.echo(f"hotstart {text}", err=True)
