"""A bundle: entries in one file, for places that have no store, or to be baked into an image.

    bundle.json                {"format": "hotstart bundle", "version": 2, "location": "gs://..."}
    entries/00000000-<module>  an entry as it is stored, with its signature if it has one
    entries/00000001-<module>  ...
    manifests/<fingerprint>    what a job asks for at its start, likewise; bytes to this module
    index.json                 {"entries": [{"file", "key", "size_bytes", "sha256"}, ...],
                                "manifests": [{"file", "size_bytes", "sha256"}, ...]}

A plain ustar, uncompressed (payloads are), written and read in one pass and never seeked in. The
index comes last, so a bundle that was cut short shows by having none. The SHA-256 is of the whole
member. Members are bytes that go into a store under names made from verified keys: no path in a
bundle is ever one on a disk, and what is not a plain file of these names ends the reading. Version
1, which had no manifests, is read too.
https://pubs.opengroup.org/onlinepubs/9699919799/utilities/pax.html (ustar interchange format)
"""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO

from hotstart.cache.errors import BundleError

FORMAT = "hotstart bundle"
VERSION = 2
MAX_ENTRY_BYTES = (8 << 30) - 1  # what a ustar header can say
MAX_MANIFEST_BYTES = 64 << 20
MAX_INDEX_BYTES = 256 << 20
MAX_HEAD_BYTES = 1 << 16
_BLOCK = tarfile.BLOCKSIZE
_CHUNK_BYTES = 1 << 20
_HEAD, _INDEX = "bundle.json", "index.json"
_ENTRY = re.compile(r"entries/\d{8}(?:-[A-Za-z0-9_.]{1,60})?")
_MANIFEST = re.compile(r"manifests/([0-9a-f]{64})")
_JSON_ERRORS = (ValueError, RecursionError)


@dataclass(frozen=True)
class Indexed:
    """One line of the index; `size_bytes` and `sha256` are of the whole member."""

    file: str
    key: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Member:
    """One entry of a bundle, or a manifest, unverified."""

    file: str
    data: bytes

    @property
    def fingerprint(self) -> str | None:
        """The job's whose manifest it is; None for an entry."""
        match = _MANIFEST.fullmatch(self.file)
        return None if match is None else match[1]


def write_bundle(
    stream: BinaryIO,
    location: str,
    entries: Iterable[tuple[str, bytes]],
    manifests: Iterable[tuple[str, bytes]] = (),
) -> int:
    """Write a bundle of (key, entry) pairs as they come; returns how many they were.

    Then come manifests, as (fingerprint, bytes), which are asked for once the entries are written.
    `location` is where they are from, by which their signatures hold. Raises `BundleError` for an
    entry of 8 GiB, and OSError.
    """
    head = {"format": FORMAT, "version": VERSION, "location": location}
    _write_member(stream, _HEAD, json.dumps(head).encode())
    index: list[dict[str, Any]] = []
    for number, (key, data) in enumerate(entries):
        module = re.sub(r"[^A-Za-z0-9_.]", "_", key.rpartition("-")[0])[:60]
        file = f"entries/{number:08d}" + (f"-{module}" if module else "")
        if len(data) > MAX_ENTRY_BYTES:
            raise BundleError(f"the entry of {key} is too large: a bundle takes 8 GiB each")
        _write_member(stream, file, data)
        digest = hashlib.sha256(data).hexdigest()
        index.append(asdict(Indexed(file, key, len(data), digest)))
    told: list[dict[str, Any]] = []
    for fingerprint, data in manifests:
        file = f"manifests/{fingerprint}"
        _write_member(stream, file, data)
        digest = hashlib.sha256(data).hexdigest()
        told.append({"file": file, "size_bytes": len(data), "sha256": digest})
    whole = {"entries": index, "manifests": told}
    _write_member(stream, _INDEX, json.dumps(whole, indent=1).encode())
    stream.write(bytes(2 * _BLOCK))
    return len(index)


class BundleReader:
    """Reads a bundle once, from a stream that need not be seekable. Blocks on it.

    Raises `BundleError` where it isn't one or ends early; what came before is good as far as it
    verifies.
    """

    def __init__(self, stream: BinaryIO) -> None:
        """Reads the head."""
        self._stream = stream
        self._seen: list[tuple[str, int, str]] = []
        name, size = self._next_header() or ("", 0)
        if name != _HEAD or size > MAX_HEAD_BYTES:
            raise BundleError(f"not a bundle of hotstart: it begins with {name or 'nothing'!r}")
        try:
            head = json.loads(self._body(size))
        except _JSON_ERRORS as error:
            raise BundleError(f"its {_HEAD} is not JSON") from error
        match head:
            case {"format": "hotstart bundle", "version": 1 | 2, "location": str(location)}:
                self.location = location
            case {"format": "hotstart bundle", "version": version}:
                raise BundleError(f"a bundle of version {version!r}; this hotstart reads {VERSION}")
            case _:
                raise BundleError(f"not a bundle of hotstart: its {_HEAD} is another's")

    def members(self) -> Iterator[Member]:
        """Entries, then manifests, one in memory at a time, and the index compared at the end."""
        while True:
            header = self._next_header()
            if header is None:
                raise BundleError(f"it ends after {len(self._seen)} entries, without its index")
            name, size = header
            if name == _INDEX and size <= MAX_INDEX_BYTES:
                self._compare(self._body(size))
                return
            is_manifest = _MANIFEST.fullmatch(name) and size <= MAX_MANIFEST_BYTES
            if _ENTRY.fullmatch(name) is None and not is_manifest:
                raise BundleError(f"a member {name[:200]!r}, which no bundle has")
            data = self._body(size)
            self._seen.append((name, len(data), hashlib.sha256(data).hexdigest()))
            yield Member(name, data)

    def _compare(self, data: bytes) -> None:
        try:
            told = json.loads(data)
            index = [
                (str(one["file"]), one["size_bytes"], one["sha256"])
                for one in [*told["entries"], *told.get("manifests", ())]
            ]
        except (*_JSON_ERRORS, KeyError, TypeError, AttributeError) as error:
            raise BundleError(f"its {_INDEX} is none") from error
        if index != self._seen:
            wrong = next((a or b for a, b in zip(index, self._seen, strict=False) if a != b), None)
            where = f"from {wrong[0][:100]!r} on" if wrong else f"{len(self._seen)} came"
            raise BundleError(f"its index is of {len(index)} other entries: {where}")

    def _next_header(self) -> tuple[str, int] | None:
        """Name and size of the next member; None at the end, of the archive or the stream."""
        block = self._read(_BLOCK)
        if len(block) < _BLOCK or not any(block):
            return None
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise BundleError(f"not a tar archive: {error}") from error
        if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or info.linkname:
            kind = "a link" if info.linkname else f"no plain file (type {info.type!r})"
            raise BundleError(f"a member {info.name[:200]!r} that is {kind}")
        if not 0 <= info.size <= MAX_ENTRY_BYTES:
            raise BundleError(f"a member {info.name[:200]!r} of {info.size} bytes is too large")
        return info.name, info.size

    def _body(self, size: int) -> bytes:
        data = self._read(size)
        if len(data) < size or len(self._read(-size % _BLOCK)) < -size % _BLOCK:
            raise BundleError(f"it is cut short, after {len(self._seen)} entries")
        return data

    def _read(self, size: int) -> bytes:
        parts: list[bytes] = []
        while size > 0 and (part := self._stream.read(min(size, _CHUNK_BYTES))):
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


def _write_member(stream: BinaryIO, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    info.mode = 0o644
    stream.write(info.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict"))
    stream.write(data)
    stream.write(bytes(-len(data) % _BLOCK))
