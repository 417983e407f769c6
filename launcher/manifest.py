"""A manifest: what JAX asked for in an attempt, so that the next start can have it ready.

A manifest from a store is untrusted input, and an old one may be of other code. It decides what
is read ahead and what is loaded ahead, never what is run: an entry is still looked up by the key
that JAX asks with, and verified. So a wrong manifest costs time and nothing else.

The JSON form, a table for each of the two values that many entries share:

    {"format": "hotstart manifest", "version": 1,
     "jax": "0.10.2", "jaxlib": "0.10.2", "platform": "cpu", "process_count": 4,
     "options": ["<base64>", ...], "devices": [[0, 1, 2, 3], ...],
     "entries": [{"key": "jit_f-<hex>", "size_bytes": 812345, "digest": "<hex>" or null,
                  "processes": [[0, 3]], "options": 0 or null, "devices": 0 or null,
                  "load_ahead": true}, ...]}
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

FORMAT = "hotstart manifest"
VERSION = 1
MAX_BYTES = 48 << 20
MAX_ENTRIES = 20_000
MAX_RANGES = 32
MAX_OPTIONS_BYTES = 8 << 20  # of all options together, each counted once
MAX_DEVICE_IDS = 1_000_000  # of all lists together, each counted once

_MAX_COUNT = 1_000_000
_MAX_NUMBER = 1 << 50  # a size, or JAX's id of a device
_KEY = re.compile(r"[!-~]{1,512}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_WORD = re.compile(r"[!-~]{1,64}")

Ranges = tuple[tuple[int, int], ...]


class ManifestError(ValueError):
    """The bytes are no manifest of this version; the caller goes on without one."""


@dataclass(frozen=True)
class ManifestEntry:
    """One key that JAX asked for.

    size_bytes: of the entry's payload.
    digest_hex: the entry's SHA-256; None where no process knew it, or two knew different ones.
    processes: who asked, as ranges of process indices, both ends included.
    options, devices: serialized compile options and device ids in order, where all that asked
        agree; else None.
    load_ahead: whether it may be loaded ahead; else it is only read ahead.
    """

    key: str
    size_bytes: int
    digest_hex: str | None
    processes: Ranges
    options: bytes | None
    devices: tuple[int, ...] | None
    load_ahead: bool

    def asked_by(self, process_index: int) -> bool:
        """Whether this process asked for it."""
        return any(first <= process_index <= last for first, last in self.processes)


@dataclass(frozen=True)
class Manifest:
    """What an attempt of `process_count` workers asked for, in the order in which JAX asked."""

    entries: tuple[ManifestEntry, ...]
    jax: str
    jaxlib: str
    platform: str
    process_count: int

    @property
    def keys(self) -> frozenset[str]:
        """The keys, whatever their order."""
        return frozenset(entry.key for entry in self.entries)

    @property
    def size_bytes(self) -> int:
        """Of all entries together."""
        return sum(entry.size_bytes for entry in self.entries)

    def to_json(self) -> bytes:
        """The form above; equal manifests give equal bytes."""
        options: dict[bytes, int] = {}
        devices: dict[tuple[int, ...], int] = {}
        entries = [
            {
                "key": entry.key,
                "size_bytes": entry.size_bytes,
                "digest": entry.digest_hex,
                "processes": entry.processes,
                "options": _index(options, entry.options),
                "devices": _index(devices, entry.devices),
                "load_ahead": entry.load_ahead,
            }
            for entry in self.entries
        ]
        form = {
            "format": FORMAT,
            "version": VERSION,
            "jax": self.jax,
            "jaxlib": self.jaxlib,
            "platform": self.platform,
            "process_count": self.process_count,
            "options": [base64.b64encode(blob).decode() for blob in options],
            "devices": list(devices),
            "entries": entries,
        }
        return json.dumps(form, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Manifest:
        """The inverse of `to_json`; raises `ManifestError` for whatever is anything else."""
        if len(data) > MAX_BYTES:
            raise ManifestError(f"{len(data)} bytes are more than a manifest may have")
        try:
            form = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise ManifestError(f"not JSON: {type(error).__name__}") from error
        form = _object(form, "the manifest")
        if (form.get("format"), form.get("version")) != (FORMAT, VERSION):
            raise ManifestError(f"not a manifest of version {VERSION}")
        process_count = _number(form.get("process_count"), "process_count", 1, _MAX_COUNT)
        options = _options_table(form.get("options"))
        devices = _devices_table(form.get("devices"))
        items = _list(form.get("entries"), "entries", MAX_ENTRIES)
        entries = tuple(_entry(item, options, devices, process_count) for item in items)
        if len({entry.key for entry in entries}) != len(entries):
            raise ManifestError("a key is there twice")
        return cls(
            entries,
            _text(form.get("jax"), _WORD, "jax"),
            _text(form.get("jaxlib"), _WORD, "jaxlib"),
            _text(form.get("platform"), _WORD, "platform"),
            process_count,
        )


def is_key(value: object) -> bool:
    """Whether it can be a key in a manifest."""
    return isinstance(value, str) and _KEY.fullmatch(value) is not None


def is_digest(value: object) -> bool:
    """Whether it is a SHA-256 in hex."""
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


def is_count(value: object) -> bool:
    """Whether it can be a size, an order or a device id."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_NUMBER


def as_ranges(indices: Iterable[int]) -> Ranges:
    """Ranges that hold all indices, and no others unless that took more than `MAX_RANGES`."""
    ranges: list[tuple[int, int]] = []
    for index in sorted(set(indices)):
        if ranges and ranges[-1][1] == index - 1:
            ranges[-1] = (ranges[-1][0], index)
        else:
            ranges.append((index, index))
    if len(ranges) > MAX_RANGES:
        ranges = [(ranges[0][0], ranges[-1][1])]
    return tuple(ranges)


def _index(table: dict[Any, int], value: Any) -> int | None:
    return None if value is None else table.setdefault(value, len(table))


def _entry(
    item: Any, options: list[bytes], devices: list[tuple[int, ...]], process_count: int
) -> ManifestEntry:
    item = _object(item, "an entry")
    digest = item.get("digest")
    load_ahead = item.get("load_ahead")
    if not isinstance(load_ahead, bool):
        raise ManifestError("load_ahead is neither true nor false")
    entry = ManifestEntry(
        key=_text(item.get("key"), _KEY, "key"),
        size_bytes=_number(item.get("size_bytes"), "size_bytes", 0, _MAX_NUMBER),
        digest_hex=None if digest is None else _text(digest, _DIGEST, "digest"),
        processes=_ranges(item.get("processes"), process_count),
        options=_lookup(options, item.get("options"), "options"),
        devices=_lookup(devices, item.get("devices"), "devices"),
        load_ahead=load_ahead,
    )
    if load_ahead and (entry.options is None or entry.devices is None):
        raise ManifestError("an entry to load ahead lacks its options or devices")
    return entry


def _ranges(value: Any, process_count: int) -> Ranges:
    ranges: list[tuple[int, int]] = []
    for item in _list(value, "processes", MAX_RANGES):
        pair = _list(item, "a range", 2)
        if len(pair) != 2:
            raise ManifestError("a range has two ends")
        least = ranges[-1][1] + 1 if ranges else 0
        first = _number(pair[0], "a range", least, process_count - 1)
        ranges.append((first, _number(pair[1], "a range", first, process_count - 1)))
    if not ranges:
        raise ManifestError("an entry that nobody asked for")
    return tuple(ranges)


def _options_table(value: Any) -> list[bytes]:
    table = []
    for item in _list(value, "options", MAX_ENTRIES):
        if not isinstance(item, str):
            raise ManifestError("options are no text")
        try:
            table.append(base64.b64decode(item, validate=True))
        except ValueError as error:
            raise ManifestError("options are not base64") from error
    if sum(map(len, table)) > MAX_OPTIONS_BYTES:
        raise ManifestError("too many bytes of options")
    return table


def _devices_table(value: Any) -> list[tuple[int, ...]]:
    table = [
        tuple(
            _number(i, "a device id", 0, _MAX_NUMBER) for i in _list(ids, "devices", MAX_DEVICE_IDS)
        )
        for ids in _list(value, "devices", MAX_ENTRIES)
    ]
    if sum(map(len, table)) > MAX_DEVICE_IDS:
        raise ManifestError("too many device ids")
    return table


def _lookup(table: list[Any], index: Any, what: str) -> Any:
    return None if index is None else table[_number(index, what, 0, len(table) - 1)]


def _object(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ManifestError(f"{what} is not an object")
    return value


def _list(value: Any, what: str, most: int) -> list[Any]:
    if not isinstance(value, list):
        raise ManifestError(f"{what}: not a list")
    if len(value) > most:
        raise ManifestError(f"{what}: {len(value)} items are too many")
    return value


def _number(value: Any, what: str, least: int, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ManifestError(f"{what} is not a whole number from {least} to {most}")
    return value


def _text(value: Any, pattern: re.Pattern[str], what: str) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise ManifestError(f"{what} is not as it should be")
    return value
