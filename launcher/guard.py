"""The guard: kills and removes what its owner can no longer clean up itself.

The owner (an agent, or a driver that started Ray) may be killed with -9 at any time. The guard
is a small child in a session of its own that reads lines from the owner over a pipe:

    group PGID     a process group to kill when the owner ends
    drop PGID      that group has ended
    folder PATH    a folder to remove when the owner ends

At end of file, whatever its cause, it kills the groups, removes the folders and ends. Run as a
plain file without site-packages, so that it starts in 10 ms and is small.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time


class Guard:
    """The owner's side."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-E", "-s", "-P", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            text=True,
            bufsize=1,
        )

    def watch_group(self, pgid: int) -> None:
        """Kill this process group when the owner ends."""
        self._tell(f"group {pgid}")

    def drop_group(self, pgid: int) -> None:
        """This process group has ended; its id may be used again."""
        self._tell(f"drop {pgid}")

    def watch_folder(self, path: str) -> None:
        """Remove this folder when the owner ends."""
        self._tell(f"folder {path}")

    def close(self, timeout_s: float = 5.0) -> None:
        """Let it do its work now; blocks until it has."""
        with contextlib.suppress(OSError):
            self._process.stdin.close()  # type: ignore[union-attr]
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _tell(self, line: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._process.stdin.write(line + "\n")  # type: ignore[union-attr]


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
    groups: set[int] = set()
    folders: list[str] = []
    for line in sys.stdin:
        word, _, rest = line.rstrip("\n").partition(" ")
        if word == "group":
            groups.add(int(rest))
        elif word == "drop":
            groups.discard(int(rest))
        elif word == "folder":
            folders.append(rest)
    for pgid in groups:
        with contextlib.suppress(OSError):
            os.killpg(pgid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    for folder in folders:
        _remove(folder, deadline)


if __name__ == "__main__":
    _main()
