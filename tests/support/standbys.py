"""The standbys of a run, as the system shows them."""

from __future__ import annotations

import contextlib
from pathlib import Path

from tests.support.launch import await_true


def standby_pids(run: str) -> set[int]:
    """Processes that work for this run and for none of its attempts."""
    found = set()
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if (
                entry.name.isdigit()
                and b"hotstart.launcher.worker" in _fields(entry / "cmdline")[3]
            ):
                names = dict(field.partition(b"=")[::2] for field in _fields(entry / "environ"))
                if names.get(b"HOTSTART_RUN") == run.encode() and b"HOTSTART_ATTEMPT" not in names:
                    found.add(int(entry.name))
    return found


def idle_standbys(run: str, count: int, timeout_s: float = 60.0) -> set[int]:
    """Block until so many standbys are there and wait for their plan; their process ids."""
    await_true(lambda: [_is_idle(pid) for pid in standby_pids(run)] == [True] * count, timeout_s)
    return standby_pids(run)


def _is_idle(pid: int) -> bool:
    """Whether it imports no more: its main thread sleeps, at the priority of a worker."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        libraries = Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return False
    policy = int(rest[37])
    return state == "S" and policy == 0 and "jaxlib" in libraries


def _fields(path: Path) -> list[bytes]:
    return [*path.read_bytes().split(b"\0"), b"", b"", b"", b""]
