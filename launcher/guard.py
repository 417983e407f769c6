"""The guard: kills and removes what its owner can no longer clean up itself.

The owner (an agent, or a driver that started Ray) may be killed with -9 at any time. The guard
is a small process in a session of its own that reads lines from the owner over a pipe:

    group PGID           a process group to kill when the owner ends
    drop PGID            that group has ended
    marked NAME=VALUE    when the owner ends, kill every process with this in its environment
    unmarked NAME=VALUE  those have ended
    holders PATH         when the owner ends, kill every process with a file open below PATH
    folder PATH          a folder to remove when the owner ends

At end of file, whatever its cause, it kills the processes, removes the folders and ends. Run as
a plain file without site-packages, so that it starts in 10 ms and is small. It is no child of
its owner: a Ray worker that ends kills its children.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import time


class Guard:
    """The owner's side; safe among threads. `session` is the guard's session id."""

    def __init__(self) -> None:
        # Without the marks that another guard may look for.
        environ = {k: v for k, v in os.environ.items() if not k.startswith("HOTSTART_")}
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-E", "-s", "-P", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env=environ,
            bufsize=0,  # one line, one write: the lines of two threads never mix
        )
        self.session = self._process.pid
        self._process.wait()  # it has left another process in its place by then

    def watch_group(self, pgid: int) -> None:
        """Kill this process group when the owner ends."""
        self._tell(f"group {pgid}")

    def drop_group(self, pgid: int) -> None:
        """This process group has ended; its id may be used again."""
        self._tell(f"drop {pgid}")

    def watch_marked(self, name: str, value: str) -> None:
        """Kill all processes that have this in their environment when the owner ends."""
        self._tell(f"marked {name}={value}")

    def drop_marked(self, name: str, value: str) -> None:
        """All processes with this in their environment have ended."""
        self._tell(f"unmarked {name}={value}")

    def watch_holders(self, path: str) -> None:
        """Kill all processes that have a file open below this folder when the owner ends."""
        self._tell(f"holders {path}")

    def watch_folder(self, path: str) -> None:
        """Remove this folder when the owner ends."""
        self._tell(f"folder {path}")

    def close(self, timeout_s: float = 5.0) -> None:
        """Let it do its work now; blocks until it has, at most `timeout_s`."""
        with contextlib.suppress(OSError):
            self._process.stdin.close()  # type: ignore[union-attr]
        done = self._process.stdout.fileno()  # type: ignore[union-attr]
        select.select([done], [], [], timeout_s)  # readable: it has ended

    def _tell(self, line: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._process.stdin.write(os.fsencode(line + "\n"))  # type: ignore[union-attr]


def kill_marked(name: str, value: str) -> None:
    """Kill all processes that have this in their environment; blocks until none is left, < 1 s."""
    _kill_all({os.fsencode(f"{name}={value}")}, set(), os.getpid())


def _kill_all(marks: set[bytes], folders: set[str], owner: int) -> None:
    """SIGKILL, until none is found: a process may spawn another while it is looked for."""
    for _ in range(20):
        found = [pid for pid in _pids() if pid != owner and _is_ours(pid, marks, folders)]
        for pid in found:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        if not found:
            return
        time.sleep(0.02)


def _is_ours(pid: int, marks: set[bytes], folders: set[str]) -> bool:
    return not marks.isdisjoint(_environ(pid)) or (
        bool(folders)  # many files may be open
        and any(path.startswith(f"{folder}/") for path in _open_files(pid) for folder in folders)
    )


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208


def _environ(pid: int) -> list[bytes]:
    try:
        with open(f"/proc/{pid}/environ", "rb") as environ:  # empty for a zombie
            return environ.read().split(b"\0")
    except OSError:
        return []


def _open_files(pid: int) -> list[str]:
    paths = []
    with contextlib.suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):  # noqa: PTH208
            with contextlib.suppress(OSError):
                paths.append(os.readlink(f"/proc/{pid}/fd/{name}"))  # noqa: PTH115
    return paths


def _remove(folder: str, deadline: float) -> None:
    """Remove a folder that dying processes may still write to."""
    while os.path.exists(folder):  # noqa: PTH110 - pathlib is not worth its import here
        shutil.rmtree(folder, ignore_errors=True)
        if time.monotonic() > deadline:
            return
        time.sleep(0.05)


def _main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    owner = os.getppid()
    if os.fork():
        os._exit(0)
    groups: set[int] = set()
    marks: set[bytes] = set()
    held: set[str] = set()
    folders: list[str] = []
    for line in sys.stdin.buffer:
        word, _, rest = line.rstrip(b"\n").partition(b" ")
        if word == b"group":
            groups.add(int(rest))
        elif word == b"drop":
            groups.discard(int(rest))
        elif word == b"marked":
            marks.add(rest)
        elif word == b"unmarked":
            marks.discard(rest)
        elif word == b"holders":
            held.add(os.fsdecode(rest))
        elif word == b"folder":
            folders.append(os.fsdecode(rest))
    for pgid in groups:
        with contextlib.suppress(OSError):
            os.killpg(pgid, signal.SIGKILL)
    if marks or held:
        _kill_all(marks, held, owner)
    deadline = time.monotonic() + 10
    for folder in folders:
        _remove(folder, deadline)


if __name__ == "__main__":
    _main()
