"""What the kernel tells of another process: whether it is the one that it was.

A pid alone does not name a process: it is given out again, and means nothing on another boot or
in another pid namespace. See proc_pid_stat(5).
"""

from __future__ import annotations

import os
from pathlib import Path


def boot_and_pid_namespace() -> tuple[str, str]:
    """Where this process's pids hold; empty without `/proc`. Containers share a boot."""
    try:
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return boot_id, str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return "", ""


def process_started(pid: int) -> int | None:
    """Start time of a process in clock ticks since boot, -1 for a zombie, None if unreadable."""
    try:  # the command in the second field may hold spaces and parentheses
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return -1 if fields[0] in "ZX" else int(fields[19])


def is_certainly_gone(pid: int, started: int) -> bool:
    """Whether the process `pid` of this pid namespace that started then has ended; pid above 0."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass  # another user's process
    now = process_started(pid)
    return now is not None and now != started
