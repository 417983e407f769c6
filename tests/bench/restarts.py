"""A worker killed by SIGKILL: how long until the next attempt's first step.

Both sides restore a checkpoint that was written after step 5 or later and do one step. The floor
has no launcher to see the kill and no old processes to end: it is spawned at once.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

from tests.bench.gang_processes import children_of_run, wait_for_standbys
from tests.bench.results import Bound, Measure, Result, Sample
from tests.bench.rows import Row, paired
from tests.bench.stage import BYTELM, PROBED, STEP, Stage, probed

_WORKERS = 2
_CHECKPOINT_EVERY = 5
_STANDBY_S = 90.0
_RESTORED = r"^\[0\] bytelm: .* ([1-9]\d*) steps done"


class NotBuilt(Exception):
    """This version of hotstart lacks what the row is about."""


def restart(stage: Stage) -> tuple[Measure, Measure]:
    """Standby off, where there is such a switch."""
    keys = {"standby": False} if _has_standby() else {}
    return _killed(stage, keys), floor(stage)


def restart_standby(stage: Stage) -> tuple[Measure, Measure]:
    """The kill comes when the processes on standby have done their imports."""
    if not _has_standby():
        raise NotBuilt("this hotstart has no `restarts.standby`")
    return _killed(stage, {"standby": True}), floor(stage)


def floor(stage: Stage) -> Measure:
    """Plain processes with all their keys in a hot directory each, from the same checkpoint.

    To fill the directories, `probed.py --all-write` lets every process write; the measured
    processes are stock JAX, untouched.
    """
    saved = stage.folder / "floor-checkpoints"

    def directory(index: int) -> str:
        return str(stage.folder / f"floor-{index}")

    for last_step in (_CHECKPOINT_EVERY, _CHECKPOINT_EVERY + 1):
        with stage.fresh_folder() as folder:
            checkpoints = folder / "checkpoints"
            if saved.exists():
                shutil.copytree(saved, checkpoints)
            script = _arguments(stage, last_step, checkpoints)
            arguments = probed(BYTELM, script, folder / "probes", [], "--all-write")
            stage.plain_first_step_s(PROBED, arguments, directory, count=_WORKERS)
            if not saved.exists():
                shutil.copytree(checkpoints, saved)

    def measure() -> Sample:
        with stage.fresh_folder() as folder:
            checkpoints = folder / "checkpoints"
            shutil.copytree(saved, checkpoints)
            arguments = _arguments(stage, _CHECKPOINT_EVERY + 1, checkpoints)
            with stage.plain(BYTELM, arguments, directory, count=_WORKERS) as gang:
                return Sample(gang.wait_for_line(0, "step "))

    return measure


def _killed(stage: Stage, restarts: dict[str, Any]) -> Measure:
    """Launch, wait for step 7, and for standbys where wanted; kill a worker; the next step."""
    job = stage.job(
        "bench",
        {
            "script": str(BYTELM),
            "args": stage.options.bytelm(100_000, _CHECKPOINT_EVERY),
            "workers": _WORKERS,
            "restarts": restarts,
            "cache": {"location": "gs://ours/cache", "node_dir": str(stage.folder / "node")},
        },
    )
    standby = bool(restarts.get("standby"))

    def measure() -> Sample:
        with stage.launch(job, stage.folder / "hotstart") as launched:
            _, started = launched.wait_for(r"^hotstart (\S+): attempt 1 started")
            launched.wait_for(r"^\[0\] step 1 ")
            workers = children_of_run(started[1])[:_WORKERS]
            launched.wait_for(rf"^\[0\] step {_CHECKPOINT_EVERY + 2} ")
            if standby:
                wait_for_standbys(started[1], workers, _STANDBY_S)
            killed_at = time.monotonic()
            os.kill(workers[-1], signal.SIGKILL)
            restored_at, _ = launched.wait_for(_RESTORED, after=killed_at)
            stepped_at, _ = launched.wait_for(STEP, after=restored_at)
        return Sample(stepped_at - killed_at, {"to_restored_s": restored_at - killed_at})

    stage.tell(f"first: ours {measure().value:.4g} s")  # fills bucket and node directory
    return measure


def _arguments(stage: Stage, steps: int, checkpoints: Path) -> list[str]:
    arguments = stage.options.bytelm(steps, _CHECKPOINT_EVERY)
    return [*arguments, "--checkpoint-dir", str(checkpoints)]


def _has_standby() -> bool:
    from hotstart.conf.schema import RestartSection

    return any(field.name == "standby" for field in fields(RestartSection))


_FLOOR = (
    "floor: plain processes of the same script from the same checkpoint, stock JAX, no launcher, "
    "each with all its keys in a hot directory of its own; spawn to first step"
)
ROWS: tuple[Row, ...] = (
    paired(
        Result(
            "restart_standby",
            "kill -9 of one of 2 workers, processes on standby: kill to first step of the next "
            "attempt, checkpoint restored",
            _FLOOR,
            "s",
            Bound("<=", 0.70),
        ),
        restart_standby,
    ),
    paired(
        Result(
            "restart",
            "the same without standby",
            _FLOOR,
            "s",
            Bound("<=", 1.05),
        ),
        restart,
    ),
)
