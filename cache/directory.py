"""A store in a directory: atomic, safe among processes, bounded in size.

    ROOT/<name>                    an object; slashes in its name are folders
    ROOT/.hotstart/tmp/<id>        an object being written
    ROOT/.hotstart/removal.lock    held for each removal (see `_remove`)
    ROOT/.hotstart/eviction.lock   held by the process that evicts
    ROOT/.hotstart/total           size of all objects in decimal, kept where a bound is set
    ROOT/.hotstart/clock           touched to read the file system's own clock

Objects are written to a temporary file and linked to their name, which fails if the name is
taken: one creator wins, and readers see nothing or all. Nothing is synced to the disk: a crash of
the machine may leave an object truncated, which the digest of an entry shows, and a sync costs
more than most objects do. Locks are `flock`s, which the kernel lets go when a process dies.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import stat
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from hotstart.cache.errors import AccessDenied, RejectedRequest, StoreError, StoreMissing
from hotstart.cache.store import ObjectStat, check_name, normalize_location

STALE_AFTER_S = 3600.0
EVICT_DOWN_TO = 0.9
_OWN_FOLDER = ".hotstart"

logger = logging.getLogger(__name__)


class DirectoryStore:
    """Objects in files under `path`, made on the first `create` with mode 0700.

    Entries are native code that their readers run, hence the mode; a directory that is there
    already keeps its own. With `max_size_bytes`, a `create` that brings the objects' total above
    it removes those read longest ago until 90 % of it are left, never the one just created unless
    that alone is too large. A name cannot be an object and a folder at once: `RejectedRequest`.
    All operations raise `StoreError`; `max_size_bytes` below 1 is a ValueError.
    """

    def __init__(self, path: str | Path, *, max_size_bytes: int | None = None) -> None:
        if max_size_bytes is not None and max_size_bytes < 1:
            raise ValueError(f"max_size_bytes is {max_size_bytes}; give None or a positive number")
        self._root = Path(normalize_location(str(path)))
        self._own = self._root / _OWN_FOLDER
        self._temporary = self._own / "tmp"
        self._max_size_bytes = max_size_bytes
        self._is_prepared = False

    @property
    def url(self) -> str:
        """The directory's absolute path."""
        return str(self._root)

    def get(self, name: str) -> bytes | None:
        """The object's bytes, or None where there is none. Marks the object as just used."""
        path = self._path(name)
        try:
            with path.open("rb", buffering=0) as file:
                data = file.readall()
                used = time.time_ns()
                # By the descriptor: the path may be a successor's by now. Not every reader owns
                # the file, and some file systems are read-only.
                with contextlib.suppress(OSError):
                    os.utime(file.fileno(), ns=(used, os.fstat(file.fileno()).st_mtime_ns))
                return data
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None
        except OSError as error:
            raise self._translate(error, "read", path) from error

    def create(self, name: str, data: bytes) -> bool:
        """Create the object; True if this call made it, False if another's is already there."""
        path = self._path(name)
        try:
            if self._is_taken(path):
                return False
            try:
                self._prepare()
                created = self._write_and_link(path, data)
            except FileNotFoundError:  # a cleaner of temporary files took a folder from under us
                self._is_prepared = False
                self._prepare()
                created = self._write_and_link(path, data)
            if created and self._max_size_bytes is not None:
                total = self._add_to_total(len(data))
                if total > self._max_size_bytes:
                    self._evict(self._max_size_bytes, created=name, created_bytes=len(data))
        except OSError as error:
            raise self._translate(error, "create", path) from error
        return created

    def delete(self, name: str, generation: int) -> bool:
        """Delete the object if it still is of this generation; False if it is gone or newer."""
        path = self._path(name)
        try:
            found = _stat_object(name, path)
            if found is None or found.generation != generation:
                return False
            self._prepare()
            if not self._remove(path, found):
                return False
            if self._max_size_bytes is not None:
                self._add_to_total(-found.size_bytes)
        except OSError as error:
            raise self._translate(error, "delete", path) from error
        return True

    def list(self, prefix: str) -> Iterator[ObjectStat]:
        """All objects whose name starts with `prefix`, in order of name."""
        folder, _, _ = prefix.rpartition("/")
        try:
            yield from self._walk(f"{folder}/" if folder else "", prefix)
        except OSError as error:
            raise self._translate(error, "list", self._root / folder) from error

    def stat(self, name: str) -> ObjectStat | None:
        """What is known of the object, or None where there is none."""
        path = self._path(name)
        try:
            return _stat_object(name, path)
        except OSError as error:
            raise self._translate(error, "look up", path) from error

    def _path(self, name: str) -> Path:
        check_name(name)
        if name.split("/", 1)[0] == _OWN_FOLDER or "\0" in name:
            raise ValueError(f"invalid object name {name!r} in a directory")
        return self._root / name

    def _prepare(self) -> None:
        if self._is_prepared:
            return
        if not self._root.exists():
            self._root.parent.mkdir(parents=True, exist_ok=True)
            self._root.mkdir(mode=0o700, exist_ok=True)
        self._temporary.mkdir(parents=True, exist_ok=True)
        self._remove_stale_temporaries()
        if self._max_size_bytes is not None:
            self._set_total(sum(found.size_bytes for found in self._walk("", "")))
        self._is_prepared = True

    def _is_taken(self, path: Path) -> bool:
        try:
            mode = path.lstat().st_mode
        except FileNotFoundError:
            return False
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        return True

    def _write_and_link(self, path: Path, data: bytes) -> bool:
        temporary = self._temporary / uuid.uuid4().hex
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            with open(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                # The kernel's own stamp is coarse, and with a reused inode two generations in
                # one of its ticks would look alike.
                now = time.time_ns()
                os.utime(file.fileno(), ns=(now, now))
            path.parent.mkdir(parents=True, exist_ok=True)
            os.link(temporary, path)
            return True
        except FileExistsError:
            if self._is_taken(path):
                return False
            raise
        finally:
            temporary.unlink(missing_ok=True)

    def _walk(self, folder: str, prefix: str) -> Iterator[ObjectStat]:
        """Objects under `folder` (empty, or ending in a slash) in order of their whole names."""
        try:
            with os.scandir(self._root / folder) as entries:
                children = sorted(
                    f"{folder}{entry.name}/"
                    if entry.is_dir(follow_symlinks=False)
                    else f"{folder}{entry.name}"
                    for entry in entries
                    if folder or entry.name != _OWN_FOLDER
                )
        except (FileNotFoundError, NotADirectoryError):
            return
        for child in children:
            if child.endswith("/"):
                if child.startswith(prefix) or prefix.startswith(child):
                    yield from self._walk(child, prefix)
            elif child.startswith(prefix) and _is_name(child):
                found = _stat_object(child, self._root / child)
                if found is not None:
                    yield found

    def _remove(self, path: Path, expected: ObjectStat) -> bool:
        # Who removes holds the lock, and nobody can create over an object that is there: so
        # what is unlinked is what was just looked at, never a successor.
        with self._locked("removal.lock"):
            found = _stat_object(expected.name, path)
            if found is None or found.generation != expected.generation:
                return False
            path.unlink()
            return True

    def _evict(self, max_size_bytes: int, *, created: str, created_bytes: int) -> None:
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(self._locked("eviction.lock", wait=False))
            except BlockingIOError:
                return  # another process is at it
            self._remove_stale_temporaries()
            objects = list(self._walk("", ""))
            total = sum(found.size_bytes for found in objects)
            last_use_ns = {found.name: self._last_use_ns(found.name) for found in objects}
            if created_bytes > max_size_bytes:
                last_use_ns[created] = 0  # goes first, and alone if that is enough
            else:
                objects = [found for found in objects if found.name != created]
            for found in sorted(objects, key=lambda found: last_use_ns[found.name]):
                if total <= max_size_bytes * EVICT_DOWN_TO:
                    break
                if self._remove(self._root / found.name, found):
                    logger.debug("evicted %s from %s", found.name, self._root)
                    total -= found.size_bytes
            self._set_total(total)

    def _last_use_ns(self, name: str) -> int:
        try:
            return (self._root / name).stat().st_atime_ns
        except FileNotFoundError:
            return 0

    def _remove_stale_temporaries(self) -> None:
        # The file system's own clock, which on a network file system is not this host's.
        probe = self._own / "clock"
        probe.touch()
        now = probe.stat().st_mtime
        for path in self._temporary.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if now - path.stat().st_mtime > STALE_AFTER_S:
                    path.unlink()

    def _add_to_total(self, size_bytes: int) -> int:
        with self._locked("total") as descriptor:
            # What is unreadable counts as nothing until the next process counts anew.
            text = os.pread(descriptor, 32, 0)
            total = max(0, (int(text) if text.isdigit() else 0) + size_bytes)
            _rewrite(descriptor, total)
            return total

    def _set_total(self, size_bytes: int) -> None:
        with self._locked("total") as descriptor:
            _rewrite(descriptor, size_bytes)

    @contextlib.contextmanager
    def _locked(self, file_name: str, *, wait: bool = True) -> Iterator[int]:
        """Hold a lock file, open for reading and writing; BlockingIOError if it would wait."""
        descriptor = os.open(self._own / file_name, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield descriptor
        finally:
            os.close(descriptor)  # and with it the lock

    def _translate(self, error: OSError, verb: str, path: Path) -> StoreError:
        failed = f"cannot {verb} {path}: {error.strerror or error}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return StoreError(f"{failed}; the disk or the quota is full: free space or set a bound")
        if error.errno == errno.EROFS:
            return AccessDenied(f"{failed}; choose a directory that can be written")
        if error.errno in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS) and error.filename2:
            return RejectedRequest(
                f"{failed}; objects are created by hard links, which this file system lacks: "
                f"choose a directory on another one, or gs://"
            )
        if error.errno in (errno.EACCES, errno.EPERM):
            return AccessDenied(f"{failed}; check the permissions, or choose another directory")
        if self._root.exists() and not self._root.is_dir():
            return StoreMissing(f"{failed}; {self._root} is a file: choose a directory")
        if isinstance(error, FileNotFoundError):
            return StoreMissing(f"{failed}; is another program removing {self._root}?")
        if isinstance(error, (NotADirectoryError, IsADirectoryError, FileExistsError)):
            return RejectedRequest(f"{failed}; a name cannot be an object and a folder at once")
        if error.errno == errno.ENAMETOOLONG:
            return RejectedRequest(f"{failed}; shorten what is between two slashes")
        return StoreError(f"{failed}; check the file system")


def _rewrite(descriptor: int, total: int) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, str(total).encode(), 0)


def _stat_object(name: str, path: Path) -> ObjectStat | None:
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not stat.S_ISREG(found.st_mode):
        return None
    return ObjectStat(
        name=name,
        size_bytes=found.st_size,
        generation=found.st_mtime_ns << 64 | found.st_ino,
        modified_s=found.st_mtime,
    )


def _is_name(name: str) -> bool:
    try:
        check_name(name)
    except ValueError:  # not UTF-8, or too long: not ours
        return False
    return True
