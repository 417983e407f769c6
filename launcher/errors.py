"""Everything that the launcher raises, and the exit codes of the command line.

LauncherError              1   the job could not be run
 |- UsageError             2   what was asked can't be done as asked; nothing was started
 |   |- RunNotFound        2   no run of this name in this run directory
 |   |- RunOwned           2   another driver owns the run
 |   '- ClusterUnreachable 2   no Ray cluster answers at the address
 |- PlacementTimeout       1   the cluster did not have the resources in time
 |- HostFailed             1   a host could not do what the launcher asked of it
 |   '- HostLost           1   a node went away before the gang on it had started
 |- SecretUnavailable      1   a host lacks what `secret_env` refers to
 |- ContactLost            1   a cluster that was followed answers no more
 |- RecordDamaged          1   the run record lacks an object that can't be done without
 |- RecordUnreachable      1   the run record could not be written while the job ran
 '- CacheRequired          4   strict mode: the cache is unreachable or a warm start missed;
                              workers that differ end a run with the same code

A message says what failed, where, and what to do next. Nothing decides by message text:
`exit_code` is what the command line ends with.
"""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar


class ExitCode(IntEnum):
    """What `hotstart` exits with."""

    DONE = 0
    JOB_FAILED = 1
    USAGE = 2
    BUDGET_SPENT = 3
    CACHE_REQUIRED = 4
    INTERRUPTED = 130


class LauncherError(Exception):
    """Base of all errors of `hotstart.launcher`."""

    exit_code: ClassVar[ExitCode] = ExitCode.JOB_FAILED


class UsageError(LauncherError):
    """What was asked can't be done as asked; nothing was started."""

    exit_code: ClassVar[ExitCode] = ExitCode.USAGE


class RunNotFound(UsageError):
    """There is no run of this name where runs are kept."""


class RunOwned(UsageError):
    """Another driver owns the run, so this one must not start workers for it."""


class ClusterUnreachable(UsageError):
    """No Ray cluster answers at the address, or it refuses this client."""


class PlacementTimeout(LauncherError):
    """The cluster did not have the resources of the gang in time."""


class HostFailed(LauncherError):
    """A host could not do what the launcher asked of it: its agent or its workers did not start."""


class HostLost(HostFailed):
    """A node went away before the gang on it had started; the gang is placed anew."""


class SecretUnavailable(LauncherError):
    """A host lacks the file or variable that a job's `secret_env` refers to."""


class ContactLost(LauncherError):
    """A cluster that was followed answers no more; its job may still run."""


class RecordDamaged(LauncherError):
    """The run record lacks an object that can't be done without, or it can't be read."""


class RecordUnreachable(LauncherError):
    """The run record could not be written while the job ran, so no attempt can be started."""


class CacheRequired(LauncherError):
    """Strict mode: the cache is unreachable, or a start that had to be warm missed."""

    exit_code: ClassVar[ExitCode] = ExitCode.CACHE_REQUIRED


def first_line(error: BaseException) -> str:
    """An error of somebody else's in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
