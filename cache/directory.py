"""A store in a directory: atomic, safe among processes, bounded in size.

    ROOT/<name>                    an object; slashes in its name are folders
    ROOT/.hotstart/tmp/<id>        an object being written
    ROOT/.hotstart/removal.lock    held for each removal (see `_remove`)

Objects are written to a temporary file and linked to their name, which fails if the name is
taken: one creator wins, and readers see nothing or all. Where the file system has no hard links
(gcsfuse, some SMB mounts) they are renamed under the removal lock, and one creator wins among the
processes that see each other's locks: on gcsfuse, those of one host. Nothing is synced to the
disk: a crash of the machine may leave an object truncated, which the digest of an entry shows,
and a sync costs more than most objects do. Locks are `flock`s, which the kernel lets go when a
process dies. A bound on the size is kept by `eviction.py`.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from hotstart.cache.directory_errors import translate
from hotstart.cache.errors import StoreError
from hotstart.cache.eviction import ENTRIES, PINS, SizeBound, pin_folder
from hotstart.cache.folders import NO_HARD_LINKS, locked, make_folder
from hotstart.cache.store import ObjectStat, check_name, normalize_location

STALE_AFTER_S = 3600.0
_OWN_FOLDER = ".hotstart"

logger = logging.getLogger(__name__)


class DirectoryStore:
    """Objects in files under `path`, made on the first `create` with mode 0700.

    Entries are native code that their readers run, hence the mode; a directory that is there
    already keeps its own. With `max_size_bytes`, a `create` that brings the entries' total above
    it removes those read longest ago until 90 % of it are left, never the one just created unless
    that alone is too large; what is not an entry neither counts nor goes. A name cannot be an
    object and a folder at once: `RejectedRequest`.
    All operations raise `StoreError`; `max_size_bytes` below 1 is a ValueError.
    """

    def __init__(self, path: str | Path, *, max_size_bytes: int | None = None) -> None:
        if max_size_bytes is not None and max_size_bytes < 1:
            raise ValueError(f"max_size_bytes is {max_size_bytes}; give None or a positive number")
        self._root = Path(normalize_location(str(path)))
        self._own = self._root / _OWN_FOLDER
        self._temporary = self._own / "tmp"
        self._bound: SizeBound | None = None
        if max_size_bytes is not None:
            self._bound = SizeBound(
                self._root,
                self._own,
                max_size_bytes,
                list_objects=lambda: self._walk(ENTRIES, ENTRIES),
                list_pins=lambda: self._walk(PINS, PINS),
                remove=self._remove_unpinned,
            )
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

    def read_head(self, name: str, size_bytes: int) -> bytes | None:
        """The object's first bytes, or None where there is none. It does not count as used.

        But for the file of another user, whose access time the kernel may move.
        """
        path = self._path(name)
        try:
            with open(path, "rb", opener=_open_unnoticed) as file:  # read(2) gives 2 GiB at most
                return file.read(size_bytes)
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
        except OSError as error:
            raise self._translate(error, "create", path) from error
        if created and self._bound is not None:
            self._bound.note_created(name, len(data))
        return created

    def last_use_s(self, listed: ObjectStat) -> float | None:
        """When an object was last read or made, by the file system's clock; None if it is gone.

        Also if it is of another generation by now. By this the entries go that were used longest
        ago.
        """
        path = self._path(listed.name)
        try:
            found = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise self._translate(error, "look up", path) from error
        if _generation(found) != listed.generation:
            return None
        return max(found.st_atime, found.st_mtime)

    def delete(self, name: str, generation: int) -> bool:
        """Delete the object if it still is of this generation; False if it is gone or newer."""
        path = self._path(name)
        try:
            found = _stat_object(name, path)
            if found is None or found.generation != generation:
                return False
            make_folder(self._own, below=self._root)
            if not self._remove(found):
                return False
        except OSError as error:
            raise self._translate(error, "delete", path) from error
        if self._bound is not None:
            self._bound.note_deleted(name, found.size_bytes)
        return True

    def renew(self, name: str, generation: int) -> bool:
        """Give the object a new generation if it still is of this one; False if gone or newer.

        A copy takes its place, with its times, in the time of which nothing else is removed.
        """
        path = self._path(name)
        temporary = self._temporary / uuid.uuid4().hex
        try:
            if not path.exists():
                return False
            make_folder(self._temporary, below=self._root)
            with locked(self._own / "removal.lock"):
                found = path.stat()
                if _generation(found) != generation:
                    return False
                # Another inode: on the same one a reader that sets its access time just now may
                # set the old time of modification again.
                shutil.copyfile(path, temporary)
                temporary.chmod(stat.S_IMODE(found.st_mode))
                with contextlib.suppress(OSError):  # another's file stays another's, if it may
                    os.chown(temporary, found.st_uid, found.st_gid)
                os.utime(temporary, ns=(found.st_atime_ns, found.st_mtime_ns))
                temporary.replace(path)
                return True
        except FileNotFoundError:
            return False
        except OSError as error:
            raise self._translate(error, "renew", path) from error
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    def note_use(self, name: str, *, unless_within_s: float) -> bool:
        """Mark an object as just used, unless it was within so many seconds; whether it did.

        Where it is another user's, its first byte is read, for the kernel to mark it. False where
        there is none.
        """
        path = self._path(name)
        try:
            with open(path, "rb", opener=_open_unnoticed, buffering=0) as file:
                found, used = os.fstat(file.fileno()), time.time_ns()
                if used - max(found.st_atime_ns, found.st_mtime_ns) < unless_within_s * 1e9:
                    return False
                try:
                    os.utime(file.fileno(), ns=(used, found.st_mtime_ns))
                except PermissionError:
                    file.read(1)
                return True
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return False
        except OSError as error:
            raise self._translate(error, "mark the use of", path) from error

    def await_evictions(self) -> None:
        """Block until no eviction is left that looked for an entry's pins before this call."""
        lock = self._own / "removal.lock"
        try:
            if lock.exists():
                with locked(lock):
                    pass
        except OSError as error:
            raise self._translate(error, "lock", lock) from error

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

    def _translate(self, error: OSError, verb: str, path: Path) -> StoreError:
        return translate(error, verb, path, self._root)

    def _prepare(self) -> None:
        if self._is_prepared:
            return
        if not self._root.exists():
            self._root.parent.mkdir(parents=True, exist_ok=True)
            self._root.mkdir(mode=0o700, exist_ok=True)
        make_folder(self._temporary, below=self._root)
        try:
            self._remove_stale_temporaries()
        except OSError as error:
            logger.debug("cannot look for stale files in %s: %s", self._temporary, error)
        if self._bound is not None:
            self._bound.recount()
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
            make_folder(path.parent, below=self._root)
            try:
                os.link(temporary, path)
            except OSError as error:
                if error.errno not in NO_HARD_LINKS:
                    raise
                return self._rename(temporary, path)
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

    def _rename(self, temporary: Path, path: Path) -> bool:
        # A rename replaces what is there, so nobody else may create between the look and it.
        with locked(self._own / "removal.lock"):
            if self._is_taken(path):
                return False
            temporary.rename(path)
            return True

    def _remove_unpinned(self, expected: ObjectStat) -> bool:
        # A pin is made first, and then its maker waits for this lock (`await_evictions`): either
        # the pin is seen here, or its maker sees that the entry has gone.
        folder = pin_folder(expected.name)
        return self._remove(expected, is_kept=lambda: any(self._walk(folder, folder)))

    def _remove(self, expected: ObjectStat, *, is_kept: Callable[[], bool] = lambda: False) -> bool:
        # Who removes holds the lock, and nobody can create over an object that is there: so
        # what is unlinked is what was just looked at, never a successor.
        path = self._root / expected.name
        with locked(self._own / "removal.lock"):
            found = _stat_object(expected.name, path)
            if found is None or found.generation != expected.generation or is_kept():
                return False
            path.unlink()
            return True

    def _remove_stale_temporaries(self) -> None:
        # The file system's own clock, which on a network file system is not this host's.
        probe = self._temporary / uuid.uuid4().hex
        probe.touch()
        now = probe.stat().st_mtime
        probe.unlink(missing_ok=True)
        for path in self._temporary.iterdir():
            with contextlib.suppress(FileNotFoundError, PermissionError):  # gone, or another user's
                if now - path.stat().st_mtime > STALE_AFTER_S:
                    path.unlink()


def _open_unnoticed(path: str, flags: int) -> int:
    # By access times evictions go. Who does not own the file may neither leave its time alone nor
    # set it back.
    try:
        return os.open(path, flags | getattr(os, "O_NOATIME", 0))
    except PermissionError:
        return os.open(path, flags)


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
        generation=_generation(found),
        modified_s=found.st_mtime,
    )


def _generation(found: os.stat_result) -> int:
    return found.st_mtime_ns << 64 | found.st_ino


def _is_name(name: str) -> bool:
    try:
        check_name(name)
    except ValueError:  # not UTF-8, or too long: not ours
        return False
    return True
