"""Which files of a working folder are sent to a cluster, and the archive they travel in.

Kept back is what Ray's own `working_dir` would keep back: what a `.gitignore` or a `.rayignore`
names, in any folder, each for the folders below its own; and `.git`, `.venv`, `venv` and
`__pycache__`. A `.hotstartignore` has the same syntax and the last word, the deepest one first:
it keeps more back, or brings back by `!name` what the others name. As with git, what lies in a
folder that is kept back can't be brought back alone. Links are followed. See
https://docs.ray.io/en/latest/ray-core/handling-dependencies.html and gitignore(5).

The same files give the same bytes, whose digest is Ray's name for them: sent again to the same
cluster, nothing is uploaded.
"""

from __future__ import annotations

import json
import os
import stat
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hotstart.launcher.errors import UsageError

IGNORE_FILE = ".hotstartignore"
MANIFEST = ".hotstart-shipment.json"
LIMIT_BYTES = 100 << 20  # what the Jobs API takes in one request
LIMIT_FILES = 50_000
_DEFAULT_EXCLUDES = ".git,.venv,venv,__pycache__"
_SHOWN = 3
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip file can say


@dataclass(frozen=True)
class SentFile:
    """A file, or a folder with nothing in it, whose name ends in `/`, below the working folder."""

    name: str
    path: Path
    size_bytes: int


@dataclass(frozen=True)
class SentFiles:
    """What is sent of `folder`, by name, and the names of what the rules keep back."""

    folder: Path
    files: tuple[SentFile, ...]
    kept_back: tuple[str, ...]

    @property
    def size_bytes(self) -> int:
        """Of all files together."""
        return sum(file.size_bytes for file in self.files)

    def holds(self, path: Path) -> bool:
        """Whether a file, or a folder with something in it, is sent."""
        if path == self.folder:
            return True
        name = path.relative_to(self.folder).as_posix()
        return any(f.name.rstrip("/") == name or f.name.startswith(f"{name}/") for f in self.files)


def find_files(folder: Path, environ: Mapping[str, str]) -> SentFiles:
    """Walk a folder by the rules above; blocks on the file system.

    `environ` may have Ray's `RAY_RUNTIME_ENV_IGNORE_GITIGNORE` and
    `RAY_OVERRIDE_RUNTIME_ENV_DEFAULT_EXCLUDES`. Raises `UsageError` for what can't be read, and
    where it is more than a cluster takes.
    """
    walk = _Walk(folder, environ)
    walk.into(folder, "", [], ())
    found = SentFiles(folder, tuple(walk.files), tuple(walk.kept_back))
    if walk.is_over or found.size_bytes > LIMIT_BYTES:
        raise UsageError(_too_much(found, walk.is_over))
    return found


def write_archive(found: SentFiles, notes: Mapping[str, Any], to: Path) -> None:
    """Write the files into a zip, and `notes` with their names into its `MANIFEST`.

    Raises `UsageError` where a file can't be read any more.
    """
    _write([(file.name, file.path) for file in found.files], notes, to)


def write_kept_archive(folder: Path, to: Path) -> bool:
    """The same archive from where one was unpacked; False where none was."""
    try:
        notes = json.loads((folder / MANIFEST).read_bytes())
        names = notes.pop("files")
    except (OSError, ValueError, KeyError):
        return False
    _write([(name, folder / name) for name in names], notes, to)
    return True


def read_notes(archive: Path) -> dict[str, Any]:
    """The notes in an archive; raises ValueError where it is none."""
    try:
        with zipfile.ZipFile(archive) as opened:
            notes = json.loads(opened.read(MANIFEST))
    except (zipfile.BadZipFile, KeyError, OSError) as error:
        raise ValueError(str(error)) from error
    if not isinstance(notes, dict):
        raise ValueError(f"{MANIFEST} is no mapping")
    return notes


def shown_size(size_bytes: int) -> str:
    """A size as a person would say it: `1.4 MB`."""
    size = float(size_bytes)
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


class _Walk:
    def __init__(self, folder: Path, environ: Mapping[str, str]) -> None:
        from pathspec import GitIgnoreSpec

        self._spec: Any = GitIgnoreSpec
        excludes = environ.get("RAY_OVERRIDE_RUNTIME_ENV_DEFAULT_EXCLUDES", _DEFAULT_EXCLUDES)
        self._excludes = GitIgnoreSpec.from_lines(e.strip() for e in excludes.split(","))
        self._with_git = environ.get("RAY_RUNTIME_ENV_IGNORE_GITIGNORE", "0") != "1"
        self._folder = folder
        self.files: list[SentFile] = []
        self.kept_back: list[str] = []
        self.is_over = False

    def into(self, folder: Path, prefix: str, rules: list[_Rules], above: tuple[str, ...]) -> None:
        """Take all of one folder; `above` are the true paths of those that it lies in."""
        try:
            names = sorted(os.listdir(folder))  # noqa: PTH208 - names only
        except OSError as error:
            raise _unreadable(prefix or str(folder), error) from error
        rules = [*rules, *self._rules_of(folder, prefix, names)]
        above = (*above, os.path.realpath(folder))
        if not names and prefix:
            self.files.append(SentFile(prefix, folder, 0))
        for name in names:
            if self.is_over:
                return
            path, full = folder / name, prefix + name
            try:
                status = path.stat()
            except OSError:  # a link to nothing
                self.kept_back.append(full)
                continue
            is_folder = stat.S_ISDIR(status.st_mode)
            full += "/" if is_folder else ""
            loops = is_folder and os.path.realpath(path) in above
            if loops or full == MANIFEST or self._is_kept_back(full, rules):
                self.kept_back.append(full)
            elif is_folder:
                self.into(path, full, rules, above)
            elif stat.S_ISREG(status.st_mode):
                self.files.append(SentFile(full, path, status.st_size))
                self.is_over = len(self.files) > LIMIT_FILES

    def _rules_of(self, folder: Path, prefix: str, names: Sequence[str]) -> Iterator[_Rules]:
        for name, is_ours in ((".gitignore", False), (".rayignore", False), (IGNORE_FILE, True)):
            if name not in names or (name == ".gitignore" and not self._with_git):
                continue
            path = folder / name
            if path.is_file():
                try:
                    lines = path.read_text(encoding="utf-8").splitlines()
                    yield _Rules(prefix, self._spec.from_lines(lines), is_ours)
                except OSError as error:
                    raise _unreadable(prefix + name, error) from error
                except ValueError as error:
                    raise UsageError(
                        f"{path}: {error}; its syntax is that of .gitignore"
                    ) from error

    def _is_kept_back(self, name: str, rules: Sequence[_Rules]) -> bool:
        for rule in reversed(rules):
            if rule.is_ours and (said := rule.verdict(name)) is not None:
                return said
        theirs = any(rule.verdict(name) is True for rule in rules if not rule.is_ours)
        return theirs or bool(self._excludes.match_file(name))


@dataclass(frozen=True)
class _Rules:
    """One ignore file: `spec` counts from `prefix`, its folder."""

    prefix: str
    spec: Any
    is_ours: bool

    def verdict(self, name: str) -> bool | None:
        """Whether a name is kept back; None where no line is about it."""
        verdict: bool | None = self.spec.check_file(name[len(self.prefix) :]).include
        return verdict


def _write(files: Sequence[tuple[str, Path]], notes: Mapping[str, Any], to: Path) -> None:
    manifest = json.dumps({**notes, "files": [name for name, _ in files]}, sort_keys=True)
    with zipfile.ZipFile(to, "w") as archive:
        for name, path in files:
            try:
                mode = 0o755 if name.endswith("/") or os.access(path, os.X_OK) else 0o644
                data = b"" if name.endswith("/") else path.read_bytes()
            except OSError as error:
                raise _unreadable(name, error) from error
            archive.writestr(_member(name, mode), data)
        archive.writestr(_member(MANIFEST, 0o644), manifest)


def _member(name: str, mode: int) -> zipfile.ZipInfo:
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{name!r} is not a name in UTF-8, and can't be sent; rename it, or keep it back by a "
            f"line in {IGNORE_FILE}"
        ) from error
    member = zipfile.ZipInfo(name, _EPOCH)
    member.compress_type = zipfile.ZIP_DEFLATED
    member.external_attr = (stat.S_IFREG | mode) << 16
    if name.endswith("/"):
        member.external_attr = (stat.S_IFDIR | mode) << 16 | 0x10
    return member


def _too_much(found: SentFiles, is_over: bool) -> str:
    folders: dict[str, int] = {}
    for file in found.files:
        top, slash, _ = file.name.partition("/")
        if slash:
            folders[f"{top}/"] = folders.get(f"{top}/", 0) + file.size_bytes
    files = {file.name: file.size_bytes for file in found.files}
    more = "more than " if is_over else ""
    return (
        f"{found.folder} holds {shown_size(found.size_bytes)} in {more}{len(found.files)} files "
        f"that would be sent, and a cluster takes {shown_size(LIMIT_BYTES)} in {LIMIT_FILES}; "
        f"the largest folders are {_largest(folders)}; the largest files are {_largest(files)}; "
        f"keep back what the job doesn't read by lines in {found.folder / IGNORE_FILE}, whose "
        "syntax is that of .gitignore, and put data into a bucket"
    )


def _largest(sizes: Mapping[str, int]) -> str:
    first = sorted(sizes.items(), key=lambda item: (-item[1], item[0]))[:_SHOWN]
    return ", ".join(f"{name} ({shown_size(size)})" for name, size in first) or "none"


def _unreadable(name: str, error: OSError) -> UsageError:
    return UsageError(
        f"{name} can't be sent: {error.strerror}; keep it back by a line in {IGNORE_FILE}"
    )
