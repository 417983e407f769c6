"""What went wrong in a directory, in words: the kernel's errors as those of a store."""

from __future__ import annotations

import errno
from pathlib import Path

from hotstart.cache.errors import AccessDenied, RejectedRequest, StoreError, StoreMissing


def translate(error: OSError, verb: str, path: Path, root: Path) -> StoreError:
    """What to raise for `error`, which came as the store at `root` was to `verb` this path."""
    failed = f"cannot {verb} {path}: {error.strerror or error}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreError(f"{failed}; the disk or the quota is full: free space or set a bound")
    if error.errno == errno.EROFS:
        return AccessDenied(f"{failed}; choose a directory that can be written")
    if error.errno in (errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK):
        return RejectedRequest(
            f"{failed}; this file system lacks what a store needs, such as locks: choose a "
            f"directory on another one, or gs://"
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return AccessDenied(f"{failed}; check the permissions, or choose another directory")
    if root.exists() and not root.is_dir():
        return StoreMissing(f"{failed}; {root} is a file: choose a directory")
    if isinstance(error, FileNotFoundError):
        return StoreMissing(f"{failed}; is another program removing {root}?")
    if isinstance(error, (NotADirectoryError, IsADirectoryError, FileExistsError)):
        return RejectedRequest(f"{failed}; a name cannot be an object and a folder at once")
    if error.errno == errno.ENAMETOOLONG:
        return RejectedRequest(f"{failed}; shorten what is between two slashes")
    return StoreError(f"{failed}; check the file system")
