"""Folders, files and lock files that the users of a shared directory can all use.

A directory is shared where its mode says so: setgid (a group's) or writable by all (`/tmp`'s
1777). What hotstart makes in it for its own work then takes its mode, whatever the umask of the
user who came first; elsewhere the umask decides.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path

NO_HARD_LINKS = frozenset(
    {errno.EOPNOTSUPP, errno.ENOTSUP, errno.EPERM, errno.ENOSYS, errno.EMLINK}
)


def make_folder(folder: Path, *, below: Path) -> None:
    """Make `folder` and those between it and `below`, which exists. Raises OSError."""
    if folder == below or folder.is_dir():
        return
    make_folder(folder.parent, below=below)
    mode = _shared_mode(folder.parent)
    try:
        folder.mkdir()
    except FileExistsError:
        if not folder.is_dir():
            raise
    else:
        if mode is not None:
            folder.chmod(mode)


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[int]:
    """Hold a lock file, made if need be and open for reading and writing.

    Blocks until it is free, or raises BlockingIOError if not to `wait`; raises OSError where it
    cannot be locked. A file that may only be read is locked too, and writing to it then fails.
    """
    descriptor = _open_lock(path)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield descriptor
    finally:
        os.close(descriptor)  # and with it the lock


def _open_lock(path: Path) -> int:
    # Never O_CREAT alone: in a sticky folder the kernel denies that for a file of another user
    # (fs.protected_regular). Links are not followed: anybody may have put one there.
    try:
        return os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    except FileNotFoundError:
        pass
    except PermissionError:
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    mode = _shared_mode(path.parent)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:  # another process made it just now
        return os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    if mode is not None:
        with contextlib.suppress(OSError):  # the others then lock it without writing
            os.fchmod(descriptor, mode & 0o666)
    return descriptor


def _shared_mode(folder: Path) -> int | None:
    mode = stat.S_IMODE(folder.stat().st_mode)
    return mode if mode & (stat.S_ISGID | stat.S_IWOTH) else None


def write_once(path: Path, data: bytes | memoryview, draft: Path) -> bool:
    """Make a file whole, by way of `draft` beside it; False where there is one, which stays.

    Where the file system has no hard links, two that do so at once may both be told True. Raises
    OSError.
    """
    try:
        draft.write_bytes(data)
        os.link(draft, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in NO_HARD_LINKS:
            raise
        if path.exists():
            return False
        draft.rename(path)
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()
    return True
