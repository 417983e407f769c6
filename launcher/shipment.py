"""What is sent to a cluster for one run: the working folder, hotstart itself, and a command.

The command is `python -m hotstart.launcher.cli launch JOB.yaml [a.b=c ...]`, which is the run's
driver there, behind a look at that Python (`arrival.py`). The job file travels as it is and is
resolved again on the cluster, so `${oc.env:NAME}` gives the cluster's value and the report still
names the true source of a setting. What would mean something else there goes with the command:
the overrides, the `HOTSTART_JOB__*` variables, `script` and `working_dir` relative to the working
folder, `run_dir` and `cache.location` as resolved here. Ray's dashboard shows the command.

What of the folder is sent: `sent_files.py`; which hotstart: `staging.py`; how a run is sent again
from its record: `resubmission.py`.
"""

from __future__ import annotations

import json
import math
import os
import random
import re
import shlex
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hotstart.cache.keyring import KEY_FILE_VARIABLE
from hotstart.cache.store import normalize_location
from hotstart.conf.keys import ENVIRONMENT_PREFIX
from hotstart.conf.load import LoadedJob, load_job
from hotstart.conf.schema import JobConfig
from hotstart.launcher.arrival import arrival_check
from hotstart.launcher.driver_place import DriverPlace
from hotstart.launcher.errors import UsageError
from hotstart.launcher.record import RUN_NAME
from hotstart.launcher.requirements import read_requirements
from hotstart.launcher.runs import new_run_name
from hotstart.launcher.sent_files import SentFiles, find_files, write_archive
from hotstart.launcher.staging import CLUSTER, SHIP, check_hotstart, stage_package
from hotstart.launcher.submitted import RUN_NAME_VARIABLE, SUBMISSION_VARIABLE

_STOP_WAIT_S = 10

_SECRET_FILES = (KEY_FILE_VARIABLE, "GOOGLE_APPLICATION_CREDENTIALS", "RAY_AUTH_TOKEN_PATH")
_LIKE_A_SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|API_?KEY|CREDENTIAL", re.IGNORECASE)


@dataclass(frozen=True)
class Options:
    """What of a submission is no affair of the job's: see `hotstart submit --help`.

    `hotstart` None is SHIP, or for a run that is sent again what it was before.
    """

    run: str | None = None
    requirements: str | None = None
    hotstart: str | None = None
    driver: DriverPlace = field(default_factory=DriverPlace)


@dataclass(frozen=True)
class Submission:
    """What is to be sent: `files` of a folder, or for a run that is sent again its `archive`.

    `words` are hotstart's arguments there, `environ` is set for the driver alone: a runtime_env
    would hand it to the workers' own launches.
    `stop_wait_s` is how long the driver may take to stop in order, `placement_s` how long it is
    waited for to be placed, `requirements` what is installed first, `exposed` the source and the
    name of each item of `env` that sounds like a secret and travels in the command.
    """

    run: str
    submission_id: str
    run_dir: str
    words: tuple[str, ...]
    environ: dict[str, str]
    stop_wait_s: int
    placement_s: float
    files: SentFiles | None = None
    archive: bytes = b""
    requirements: tuple[str, ...] = ()
    hotstart: str = SHIP
    driver: DriverPlace = field(default_factory=DriverPlace)
    exposed: tuple[tuple[str, str], ...] = ()

    @property
    def entrypoint(self) -> str:
        """The shell command of the driver: a look at the cluster's Python, then hotstart."""
        environ = self.environ | {SUBMISSION_VARIABLE: self.submission_id}
        command = [
            *("exec", "env", *(f"{name}={value}" for name, value in environ.items())),
            *("python", "-m", "hotstart.launcher.cli", *self.words),
        ]
        check = shlex.join(arrival_check(of_the_cluster=self.hotstart == CLUSTER))
        return f"{check} && {shlex.join(command)}"

    def runtime_env(self, working_dir: str, hotstart: str | None) -> dict[str, Any]:
        """Ray's environment for it. Nothing secret is in it: the dashboard shows it."""
        env: dict[str, Any] = {
            "working_dir": working_dir,
            "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(self.stop_wait_s)},
        }
        if hotstart is not None:
            env["py_modules"] = [hotstart]
        if self.requirements:
            env["pip"] = {"packages": list(self.requirements), "pip_check": False}
        return env

    def write(self, scratch: Path) -> dict[str, Any]:
        """Write archive and hotstart into a folder; the environment that names them.

        Raises `UsageError` where a file can't be read any more.
        """
        archive = scratch / "working_dir.zip"
        if self.files is None:
            archive.write_bytes(self.archive)
        else:
            write_archive(self.files, self.notes(), archive)
        ship = self.hotstart != CLUSTER
        package = str(stage_package(scratch, self.hotstart)) if ship else None
        return self.runtime_env(str(archive), package)

    def notes(self) -> dict[str, Any]:
        """What holds for the next submission of this run too, unless it is said anew.

        A wheel is not kept, so not that it was one.
        """
        return {
            "requirements": list(self.requirements),
            "driver": asdict(self.driver),
            "hotstart": CLUSTER if self.hotstart == CLUSTER else SHIP,
        }


def prepare(
    path: str, overrides: Sequence[str], bucket: str, options: Options | None = None
) -> Submission:
    """Check a job here as `launch` would, and say what to send; sends nothing.

    `bucket` sets `cache.location` to `BUCKET/cache` and `run_dir` to `BUCKET/runs`, over the job
    file and the environment; an override of either wins. The working folder is the job file's
    own where that holds the script too, else the current one. Raises `ConfigError`,
    `InvalidLocation`, and `UsageError` where the working folder can't hold all that is needed.
    """
    options = options or Options()
    bucket = check_bucket(bucket)
    hotstart = options.hotstart or SHIP
    check_hotstart(hotstart)
    if options.run is not None and not RUN_NAME.fullmatch(options.run):
        raise UsageError(
            f"--run: {options.run!r} can't be a run's name; use letters, digits, . _ and -"
        )
    defaults = (
        setting_of("cache.location", f"{bucket}/cache"),
        setting_of("run_dir", f"{bucket}/runs"),
    )
    job = load_job(path, (*defaults, *overrides))
    config = job.config
    requirements = read_requirements(options.requirements) if options.requirements else ()
    folder = _working_folder(job)
    files = find_files(folder, os.environ)
    _check_needed(job, files)
    _keep_secrets_out(job, files)
    run = options.run or new_run_name(config.name, time.time(), random.SystemRandom())
    settings = {
        "script": config.script and os.path.relpath(config.script, folder),
        "working_dir": config.working_dir and os.path.relpath(config.working_dir, folder),
        "run_dir": config.run_dir,
        "cache.location": config.cache.location,
    }
    environ = {k: v for k, v in sorted(os.environ.items()) if k.startswith(ENVIRONMENT_PREFIX)}
    environ |= {RUN_NAME_VARIABLE: run}
    words = (
        "launch",
        os.path.relpath(job.source, folder),
        *overrides,
        *(setting_of(key, value) for key, value in settings.items() if value),
    )
    return Submission(
        run,
        f"{run}-s1",
        config.run_dir or "",
        words,
        environ,
        stop_wait_s(config),
        config.timeouts.placement_s,
        files=files,
        requirements=requirements,
        hotstart=hotstart,
        driver=options.driver,
        exposed=exposed_among(
            (job.origins.get(f"env.{name}", ""), name) for name in sorted(job.config.env)
        ),
    )


def check_bucket(bucket: str, option: str = "--bucket") -> str:
    """The bucket's URL as hotstart writes it; raises `UsageError`, `InvalidLocation`."""
    bucket = normalize_location(bucket)
    if not bucket.startswith("gs://"):
        raise UsageError(
            f"{option}: {bucket} is not a bucket; give gs://bucket or gs://bucket/prefix"
        )
    return bucket


def stop_wait_s(config: JobConfig) -> int:
    """How long Ray is to wait between its two signals when the job is stopped."""
    return math.ceil(config.timeouts.stop_s) + _STOP_WAIT_S


def _working_folder(job: LoadedJob) -> Path:
    """The job file's folder or else the current one: the first that holds all that is needed."""
    own, current = Path(os.path.normpath(job.source.parent)), Path.cwd()
    paths = _needed(job)
    for folder in (own, current):
        if all(path.is_relative_to(folder) for path in paths.values()):
            if folder in (Path.home(), Path(folder.anchor)):
                raise UsageError(
                    f"{folder} would be sent as a whole, since {job.source} lies in it; put the "
                    "job into a folder of its own"
                )
            return folder
    key, path = next((k, p) for k, p in paths.items() if not p.is_relative_to(own))
    raise UsageError(
        f"{job.origins.get(key, 'default')}: {key}: {path} lies outside {own}, the job file's "
        "folder, which is what is sent to the cluster; submit from a folder that holds both, or "
        "move one of them"
    )


def _needed(job: LoadedJob) -> dict[str, Path]:
    needed: dict[str, Any] = {"job file": job.source, "script": job.config.script}
    needed["working_dir"] = job.config.working_dir
    return {key: Path(os.path.normpath(path)) for key, path in needed.items() if path}


def _check_needed(job: LoadedJob, files: SentFiles) -> None:
    """Raise `UsageError` where the rules keep back what the job can't do without."""
    for key, path in _needed(job).items():
        if not files.holds(path):
            raise UsageError(
                f"{key}: {path} is kept from being sent by a line in a .gitignore, .rayignore or "
                f".hotstartignore of {files.folder}; bring it back by a line "
                f"!/{path.relative_to(files.folder).as_posix()} in "
                f"{files.folder / '.hotstartignore'}"
            )


def _keep_secrets_out(job: LoadedJob, files: SentFiles) -> None:
    """Raise `UsageError` where a key or a secret would be sent along, to lie in Ray's storage."""
    config, origin = job.config, job.origins.get
    sources = {
        f"{origin('cache.signing_key_file', 'default')}: cache.signing_key_file": (
            config.cache.signing_key_file
        ),
        **{f"environment {name}": os.environ.get(name) for name in _SECRET_FILES},
    }
    for name, reference in config.secret_env.items():
        kind, _, path = reference.partition(":")
        where = f"{origin(f'secret_env.{name}', 'default')}: secret_env.{name}"
        sources[where] = path if kind == "file" else None
    secrets = {os.path.realpath(path): (source, path) for source, path in sources.items() if path}
    for file in files.files if secrets else ():
        if (found := secrets.get(os.path.realpath(file.path))) is not None:
            raise UsageError(
                f"{found[0]}: {found[1]} lies in {files.folder}, which is sent to the cluster; "
                "move it out, and bring it to the hosts by a way of its own (docs/trust.md)"
            )


def exposed_among(env: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Of items of `env`, origin and name, those that look like secrets and travel in a command."""
    return tuple(
        (origin, name)
        for origin, name in env
        if _LIKE_A_SECRET.search(name) and origin.startswith(("command line", "environment "))
    )


def setting_of(key: str, value: str) -> str:
    """An override of the command line that gives exactly this text."""
    text = value.replace("${", r"\${")
    return f"{key}={json.dumps(text, ensure_ascii=False)}"
