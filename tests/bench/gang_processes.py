"""The processes of a run on this machine, seen from outside of hotstart, in /proc."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

_QUIET_S = 1.0
_POLL_S = 0.05


@dataclass(frozen=True)
class Process:
    """One process at one moment; `cpu_ticks` is what it has used so far."""

    pid: int
    state: str
    cpu_ticks: int
    started_ticks: int


def children_of_run(run: str) -> list[int]:
    """The processes that agents have spawned for a run, the oldest first: workers and standbys.

    What those have spawned themselves is left out.
    """
    mark = f"HOTSTART_RUN={run}"
    marked = {pid for pid in _all_pids() if mark in _environ(pid)}
    children = [p for pid in marked if (p := look(pid)) and _parent(pid) not in marked]
    return [p.pid for p in sorted(children, key=lambda p: (p.started_ticks, p.pid))]


def wait_for_standbys(run: str, workers: Collection[int], timeout_s: float) -> None:
    """Block until as many others have done their imports as there are workers.

    Such a process has JAX's library loaded and has slept for a second. Raises `TimeoutError`.
    """
    deadline = time.monotonic() + timeout_s
    quiet_since: dict[int, tuple[int, float]] = {}
    while True:
        now = time.monotonic()
        ready = 0
        for pid in set(children_of_run(run)) - set(workers):
            process = look(pid)
            if process is None or process.state != "S" or not _has_jax(pid):
                quiet_since.pop(pid, None)
                continue
            ticks, since = quiet_since.setdefault(pid, (process.cpu_ticks, now))
            if ticks != process.cpu_ticks:
                quiet_since[pid] = process.cpu_ticks, now
            elif now - since >= _QUIET_S:
                ready += 1
        if ready >= len(workers):
            return
        if now > deadline:
            raise TimeoutError(
                f"{ready} of {len(workers)} processes on standby were ready within {timeout_s:g} s"
            )
        time.sleep(_POLL_S)


def look(pid: int) -> Process | None:
    """A process as it is now; None where it has gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return Process(pid, fields[0], int(fields[11]) + int(fields[12]), int(fields[19]))


def _all_pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _environ(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _has_jax(pid: int) -> bool:
    try:
        return "jaxlib" in Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return False
