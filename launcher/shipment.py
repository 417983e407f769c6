"""What is sent to a cluster for one run: the working folder, hotstart itself, and a command.

The command is `python -m hotstart.launcher.cli launch JOB.yaml [a.b=c ...]`, which is the run's
driver there. The job file travels as it is and is resolved again on the cluster, so
`${oc.env:NAME}` gives the cluster's value (a secret is never sent) and the report still names
the true source of a setting. What would mean something else there goes with the command: the
overrides, the `HOTSTART_JOB__*` variables, `script` and `working_dir` relative to the working
folder, `run_dir` and `cache.location` as resolved here. Ray's dashboard shows the command.

hotstart goes as a folder in `py_modules`, which Ray puts in front of every process's path, so
the driver, the agents and their workers all import this version of it, installed or not. A
wheel there would be given to `pip install`, dependencies and all, on each host. The
dependencies, jax included, are the cluster's, and so is `python`, the first one on the head's
PATH. See https://docs.ray.io/en/latest/ray-core/handling-dependencies.html.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import random
import shlex
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hotstart.cache.keyring import KEY_FILE_VARIABLE
from hotstart.cache.store import normalize_location
from hotstart.conf.keys import ENVIRONMENT_PREFIX
from hotstart.conf.load import LoadedJob, load_job
from hotstart.launcher.errors import UsageError
from hotstart.launcher.runs import new_run_name

_PACKAGES = ("cache", "conf", "launcher")
_SHIPPED_SUFFIXES = (".py", ".yaml", ".typed")
_STOP_WAIT_S = 10


@dataclass(frozen=True)
class Submission:
    """What is to be sent. `stop_wait_s` is how long the driver may take to stop in order."""

    run: str
    submission_id: str
    run_dir: str
    folder: Path
    entrypoint: str
    stop_wait_s: int


def prepare(path: str, overrides: Sequence[str], bucket: str, submission: int = 1) -> Submission:
    """Check a job here as `launch` would, and say what to send; sends nothing.

    `bucket` sets `cache.location` to `BUCKET/cache` and `run_dir` to `BUCKET/runs`, over the job
    file and the environment; an override of either wins. The working folder is the job file's
    own where that holds the script too, else the current one. Raises `ConfigError`,
    `InvalidLocation`, and `UsageError` where the working folder can't hold all that is needed.
    """
    bucket = normalize_location(bucket)
    if not bucket.startswith("gs://"):
        raise UsageError(
            f"--bucket: {bucket} is not a bucket; give gs://bucket or gs://bucket/prefix"
        )
    defaults = (
        _setting("cache.location", f"{bucket}/cache"),
        _setting("run_dir", f"{bucket}/runs"),
    )
    job = load_job(path, (*defaults, *overrides))
    config = job.config
    folder = _working_folder(job)
    _keep_keys_out(job, folder)
    run = new_run_name(config.name, time.time(), random.SystemRandom())
    submission_id = f"{run}-s{submission}"
    settings = {
        "script": config.script and os.path.relpath(config.script, folder),
        "working_dir": config.working_dir and os.path.relpath(config.working_dir, folder),
        "run_dir": config.run_dir,
        "cache.location": config.cache.location,
    }
    environ = {k: v for k, v in sorted(os.environ.items()) if k.startswith(ENVIRONMENT_PREFIX)}
    # Set for the driver alone: a runtime_env would hand them to the workers' own launches.
    environ |= {"HOTSTART_RUN_NAME": run, "HOTSTART_SUBMISSION": submission_id}
    command = [
        *("exec", "env", *(f"{name}={value}" for name, value in environ.items())),
        *("python", "-m", "hotstart.launcher.cli", "launch"),
        os.path.relpath(job.source, folder),
        *overrides,
        *(_setting(key, value) for key, value in settings.items() if value),
    ]
    stop_wait_s = math.ceil(config.timeouts.stop_s) + _STOP_WAIT_S
    return Submission(
        run, submission_id, config.run_dir or "", folder, shlex.join(command), stop_wait_s
    )


def stage_package(scratch: Path) -> Path:
    """Copy this hotstart, wherever it is installed or edited, to `scratch/hotstart`.

    With an `__init__.py` of its own it hides any other hotstart on the cluster completely.
    """
    package = scratch / "hotstart"
    for name in _PACKAGES:
        spec = importlib.util.find_spec(f"hotstart.{name}")
        source = spec and spec.submodule_search_locations
        if not source:
            raise UsageError(f"hotstart.{name} is not a folder of files; install hotstart again")
        shutil.copytree(source[0], package / name, ignore=_not_shipped)
    (package / "__init__.py").write_text('"""hotstart, as it was sent with this job."""\n')
    return package


def _not_shipped(folder: str, names: list[str]) -> set[str]:
    return {
        name
        for name in names
        if name == "__pycache__"
        or not (name.endswith(_SHIPPED_SUFFIXES) or Path(folder, name).is_dir())
    }


def _working_folder(job: LoadedJob) -> Path:
    """The job file's folder or else the current one: the first that holds all that is needed."""
    own, current = Path(os.path.normpath(job.source.parent)), Path.cwd()
    needed = {"job file": job.source, "script": job.config.script}
    needed["working_dir"] = job.config.working_dir
    paths = {key: Path(os.path.normpath(path)) for key, path in needed.items() if path}
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


def _keep_keys_out(job: LoadedJob, folder: Path) -> None:
    """Raise `UsageError` where a signing key would be sent along, to lie in Ray's storage."""
    sources = {
        f"{job.origins.get('cache.signing_key_file', 'default')}: cache.signing_key_file": (
            job.config.cache.signing_key_file
        ),
        f"environment {KEY_FILE_VARIABLE}": os.environ.get(KEY_FILE_VARIABLE),
    }
    for source, path in sources.items():
        if path and Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
            raise UsageError(
                f"{source}: {path} lies in {folder}, which is sent to the cluster; move the key "
                "out of it, and bring it to the hosts by a way of its own (docs/trust.md)"
            )


def _setting(key: str, value: str) -> str:
    """An override of the command line that gives exactly this text."""
    text = value.replace("${", r"\${")
    return f"{key}={json.dumps(text, ensure_ascii=False)}"
