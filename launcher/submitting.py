"""What `hotstart submit` does and shows: attach or send, follow, and say how to go on."""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
from collections.abc import Callable, Container
from dataclasses import asdict, dataclass
from typing import Any

import click

from hotstart.launcher.driver_place import waiting_for
from hotstart.launcher.errors import ContactLost, ExitCode, PlacementTimeout, UsageError
from hotstart.launcher.job_ending import Ending
from hotstart.launcher.sent_files import shown_size
from hotstart.launcher.shipment import Submission
from hotstart.launcher.staging import CLUSTER
from hotstart.launcher.submit import RayJobs

_SHOWN_FILES = 20
_RESUMABLE = (ExitCode.JOB_FAILED, ExitCode.BUDGET_SPENT, ExitCode.INTERRUPTED)
_NEVER_BEGUN = (ExitCode.USAGE, 126, 127)  # the last two: there is no Python, see sh(1)


@dataclass(frozen=True)
class _Sent:
    """A submission that a cluster has: this one, or an earlier one that lives."""

    submission_id: str
    attached: bool


def run_submit(
    submission: Submission, address: str | None, *, follow: bool, as_json: bool, again: bool
) -> int:
    """Submit a run, follow it where asked to, and say how to go on; the exit code.

    A run that lives on the cluster already is followed, not started twice. `again` says that
    the run was submitted before. Blocks until the job's end with `follow`. Raises what `RayJobs`
    raises, and `PlacementTimeout`.
    """
    jobs = RayJobs(address)
    sent = _attach_or_send(jobs, submission, again)
    found: dict[str, Any] = {
        "run": submission.run,
        "submission_id": sent.submission_id,
        "attached": sent.attached,
        "address": jobs.address,
        "run_dir": submission.run_dir,
        "status": "SUBMITTED",
        "exit_code": None,
        "reason": None,
        "resume": None,
    }
    resume = (
        f"hotstart submit --restart {submission.run} --run-dir {submission.run_dir} "
        f"--address {jobs.address}"
    )
    exit_code = 0
    if follow:
        ending = _followed(jobs, submission, sent.submission_id, resume, as_json)
        if ending is None:
            exit_code, follow = 130, False
            _say("stopped following; the job goes on")
        else:
            exit_code = int(ending.exit_code)
            found |= {"status": ending.status, "exit_code": exit_code, "reason": ending.reason}
            _say(f"{sent.submission_id} {ending.status}: {ending.reason}")
            if ending.exit_code in _RESUMABLE:
                found["resume"] = resume
                _say(f"go on from its last checkpoint, on any cluster, with: {resume}")
    if not follow:
        ray_job = f"--address {jobs.address} {sent.submission_id}"
        _say(f"follow it with: ray job logs --follow {ray_job}")
        _say(f"stop it with: ray job stop {ray_job}")
    _say(f"report: hotstart report {submission.run} --run-dir {submission.run_dir}")
    if as_json:
        click.echo(json.dumps(found, indent=2))
    return exit_code


def show_plan(submission: Submission, as_json: bool) -> None:
    """Print what would be sent, and where to; asks no cluster."""
    hotstart = None if submission.hotstart == CLUSTER else submission.hotstart
    env = submission.runtime_env("<files>", hotstart and f"<hotstart: {hotstart}>")
    files = submission.files.files if submission.files else ()
    if as_json:
        plan = {
            "run": submission.run,
            "submission_id": submission.submission_id,
            "run_dir": submission.run_dir,
            "folder": str(submission.files.folder) if submission.files else None,
            "files": {file.name: file.size_bytes for file in files},
            "kept_back": list(submission.files.kept_back) if submission.files else [],
            "runtime_env": env,
            "driver": asdict(submission.driver),
            "entrypoint": submission.entrypoint,
        }
        click.echo(json.dumps(plan, indent=2))
        return
    click.echo(f"run          {submission.run} in {submission.run_dir}")
    click.echo(f"sends        {_what(submission)}")
    largest = sorted(files, key=lambda file: (-file.size_bytes, file.name))
    for file in largest[:_SHOWN_FILES]:
        click.echo(f"  {shown_size(file.size_bytes):>9}  {file.name}")
    if len(files) > _SHOWN_FILES:
        click.echo(f"  and {len(files) - _SHOWN_FILES} smaller files; --json has them all")
    if submission.files and submission.files.kept_back:
        click.echo(f"keeps back   {', '.join(submission.files.kept_back[:_SHOWN_FILES])}")
    click.echo(f"hotstart     {submission.hotstart}")
    click.echo(f"runtime_env  {json.dumps(env)}")
    click.echo(f"driver       {submission.driver if submission.driver else 'on the head node'}")
    click.echo(f"command      {submission.entrypoint.rpartition(' && exec ')[2]}")


def _attach_or_send(jobs: RayJobs, submission: Submission, again: bool) -> _Sent:
    known = jobs.submissions_of(submission.run)
    ours = {i: k for i, k in known.items() if k.run_dir == submission.run_dir}
    for submission_id, found in ours.items():
        if found.lives:
            return _attached(submission_id, jobs)
    for submission_id, found in ours.items():
        if not again and found.exit_code not in _NEVER_BEGUN:
            raise UsageError(
                f"run {submission.run} was submitted here already, and {submission_id} "
                f"{found.status}; choose another name, or go on with: hotstart submit --restart "
                f"{submission.run} --run-dir {submission.run_dir} --address {jobs.address}"
            )
    submission = dataclasses.replace(submission, submission_id=_free_id(submission, known))
    _say(f"submitting {_what(submission)} as {submission.submission_id} to {jobs.address}")
    if submission.requirements:
        _say(
            f"each host installs {len(submission.requirements)} requirements first; that takes a "
            "while once a host"
        )
    if not jobs.submit(submission, _say):  # somebody else was faster
        return _attached(submission.submission_id, jobs)
    return _Sent(submission.submission_id, attached=False)


def _free_id(submission: Submission, known: Container[str]) -> str:
    """The submission's own id, or the next one that no earlier submission has."""
    stem, _, number = submission.submission_id.rpartition("-s")
    ids = (f"{stem}-s{n}" for n in itertools.count(int(number)))
    return next(i for i in ids if i not in known)


def _attached(submission_id: str, jobs: RayJobs) -> _Sent:
    _say(f"{submission_id} is on {jobs.address} already; attached to it, and nothing was sent")
    return _Sent(submission_id, attached=True)


def _followed(
    jobs: RayJobs, submission: Submission, submission_id: str, resume: str, as_json: bool
) -> Ending | None:
    """How the job ended; None where Ctrl-C ended the following."""
    stream = sys.stderr if as_json else sys.stdout
    try:
        return jobs.follow(
            submission_id,
            lambda text: click.echo(text, stream, nl=False),
            _placement(jobs, submission, submission_id),
        )
    except KeyboardInterrupt:
        return None
    except ContactLost as error:
        raise ContactLost(f"{error}; if the cluster is gone, go on with: {resume}") from error


def _placement(
    jobs: RayJobs, submission: Submission, submission_id: str
) -> Callable[[float], None]:
    """What is done while the driver has not started: say why, and give up where it can't."""

    def waiting(waited_s: float) -> None:
        lacks = waiting_for(submission.driver, nodes) if (nodes := jobs.nodes()) else None
        if lacks is None and submission.requirements:  # which take as long as they take
            _say("waiting for the driver to start: its requirements are installed")
            return
        why = lacks or "the driver has not started: its node is busy, or gets what was sent"
        if waited_s > submission.placement_s:
            jobs.stop(submission_id)
            raise PlacementTimeout(
                f"{why}; gave up after {waited_s:.0f} s (timeouts.placement_s), and told Ray to "
                "stop the job; see --driver-resources and --driver-label"
            )
        _say(f"{why}; waiting up to {submission.placement_s:.0f} s")

    return waiting


def _what(submission: Submission) -> str:
    files = submission.files
    if files is None:
        return f"what run {submission.run} was sent as, {shown_size(len(submission.archive))},"
    count = f"{len(files.files)} file{'s' if len(files.files) != 1 else ''}"
    return f"{files.folder} ({count}, {shown_size(files.size_bytes)})"


def _say(text: str) -> None:
    click.echo(f"hotstart {text}", err=True)
