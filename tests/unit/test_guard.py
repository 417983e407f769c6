"""The guard ends what its owner leaves behind, however the owner ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hotstart.launcher.guard import Guard, kill_marked
from tests.support.launch import await_true, is_running

pytestmark = pytest.mark.unit

SLEEP = "import time; time.sleep(600)"


@pytest.fixture
def spawned() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that are killed at the end if the guard has not done it."""
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for process in started:
        process.kill()
        process.wait()


def spawn(
    spawned: list[subprocess.Popen[bytes]], code: str = SLEEP, **options: object
) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, **options)  # type: ignore[call-overload]
    spawned.append(process)
    return process


def test_guard_close_kills_groups_with_their_children(
    spawned: list[subprocess.Popen[bytes]],
) -> None:
    code = f"""
import subprocess, sys, time
print(subprocess.Popen([sys.executable, "-c", {SLEEP!r}]).pid, flush=True)
time.sleep(600)
"""
    parent = spawn(spawned, code, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    dropped = spawn(spawned)
    guard = Guard()
    guard.watch_group(parent.pid)
    guard.watch_group(dropped.pid)
    guard.drop_group(dropped.pid)
    guard.close()
    assert parent.wait(5) == -signal.SIGKILL
    await_true(lambda: not is_running(child), 5)
    assert dropped.poll() is None
    parent.stdout.close()


def test_guard_close_kills_marked_processes_and_holders_of_files(
    spawned: list[subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    held = tmp_path / "held"
    held.mkdir()
    mark = f"{tmp_path}-mark"
    marked = spawn(spawned, env={**os.environ, "HOTSTART_TEST_MARK": mark})
    other = spawn(spawned, env={**os.environ, "HOTSTART_TEST_MARK": f"{mark}-other"})
    await_true(lambda: mark.encode() in Path(f"/proc/{marked.pid}/environ").read_bytes(), 5)
    with (held / "log").open("wb") as log:
        holder = spawn(spawned, stdout=log)
        guard = Guard()
        guard.watch_marked("HOTSTART_TEST_MARK", mark)
        guard.watch_holders(str(held))
        guard.watch_folder(str(held))
        guard.close()  # this process has a file open there too, and lives: it is the owner
    assert marked.wait(5) == -signal.SIGKILL
    assert holder.wait(5) == -signal.SIGKILL
    assert other.poll() is None
    assert not held.exists()


def test_guard_close_removes_folders_and_only_those(tmp_path: Path) -> None:
    mine, other = tmp_path / "mine with space \N{SNOWMAN}", tmp_path / "other"
    for folder in (mine / "below", other):
        folder.mkdir(parents=True)
        (folder / "file").write_text("x")
    guard = Guard()
    guard.watch_folder(str(mine))
    guard.close()
    assert not mine.exists()
    assert (other / "file").exists()


def test_guard_of_an_owner_killed_with_minus_nine_does_its_work(
    spawned: list[subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    folder = tmp_path / "scratch"
    folder.mkdir()
    group = spawn(spawned)
    code = f"""
import time
from hotstart.launcher.guard import Guard
guard = Guard()
guard.watch_group({group.pid})
guard.watch_folder({str(folder)!r})
print("ready", flush=True)
time.sleep(600)
"""
    owner = spawn(spawned, code, stdout=subprocess.PIPE)
    assert owner.stdout is not None
    assert owner.stdout.readline() == b"ready\n"
    children = Path(f"/proc/{owner.pid}/task/{owner.pid}/children").read_text().split()
    assert children == []  # who kills an owner's children must not get the guard
    owner.kill()
    assert group.wait(5) == -signal.SIGKILL
    await_true(lambda: not folder.exists(), 5)
    owner.stdout.close()


def test_kill_marked_ends_those_with_the_mark_and_no_others(
    spawned: list[subprocess.Popen[bytes]],
) -> None:
    ours = spawn(spawned, env={**os.environ, "HOTSTART_WORKER": "run/1/0"})
    other = spawn(spawned, env={**os.environ, "HOTSTART_WORKER": "run/1/01"})
    kill_marked("HOTSTART_WORKER", "run/1/0")
    assert ours.wait(5) == -signal.SIGKILL
    assert other.poll() is None


def test_guard_close_leaves_a_dropped_mark_alone(spawned: list[subprocess.Popen[bytes]]) -> None:
    kept = spawn(spawned, env={**os.environ, "SOME_MARK": "kept"})
    dropped = spawn(spawned, env={**os.environ, "SOME_MARK": "dropped"})
    guard = Guard()
    guard.watch_marked("SOME_MARK", "kept")
    guard.watch_marked("SOME_MARK", "dropped")
    guard.drop_marked("SOME_MARK", "dropped")
    guard.close()
    assert kept.wait(5) == -signal.SIGKILL
    assert dropped.poll() is None


def test_guard_ignores_what_a_terminal_sends(tmp_path: Path) -> None:
    folder = tmp_path / "scratch"
    folder.mkdir()
    guard = Guard()
    guard.watch_folder(str(folder))
    [pid] = [
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and is_guard(int(entry.name), guard)
    ]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(pid, number)
    assert is_running(pid)
    guard.close()
    await_true(lambda: not is_running(pid), 5)
    assert not folder.exists()


def is_guard(pid: int, guard: Guard) -> bool:
    """Whether the process leads on from this guard: it is in the session that was made for it."""
    try:
        return os.getsid(pid) == guard.session
    except OSError:
        return False
