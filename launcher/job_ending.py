"""How a job that was submitted to a cluster has ended: pure."""

from __future__ import annotations

import signal
from dataclasses import dataclass

from hotstart.launcher.errors import ExitCode


@dataclass(frozen=True)
class Ending:
    """How a submitted job ended: Ray's word for it, hotstart's exit code, and a reason."""

    status: str
    exit_code: ExitCode
    reason: str


def ending_of(status: str, driver_exit_code: int | None, message: str | None) -> Ending:
    """What Ray tells of a job that has ended, in hotstart's words."""
    if status == "SUCCEEDED":
        return Ending(status, ExitCode.DONE, "done")
    if status == "STOPPED":
        return Ending(status, ExitCode.INTERRUPTED, "the job was stopped")
    if driver_exit_code is None:
        reason = (message or "").strip().partition("\n")[0]
        return Ending(status, ExitCode.JOB_FAILED, reason or "Ray gives no reason")
    if driver_exit_code < 0:
        name = signal.Signals(-driver_exit_code).name
        reason = f"the launcher on the cluster was killed by {name}"
        return Ending(status, ExitCode.JOB_FAILED, reason)
    reason = f"the launcher on the cluster ended with exit code {driver_exit_code}"
    if driver_exit_code in (126, 127):  # see sh(1)
        reason += "; the head's PATH has no `python` that runs"
    known = driver_exit_code in set(ExitCode)
    return Ending(status, ExitCode(driver_exit_code) if known else ExitCode.JOB_FAILED, reason)
