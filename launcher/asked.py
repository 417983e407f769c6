"""From what workers say that JAX asked for to a manifest; and which job may use which manifest.

A worker's request, as it reaches the driver, JSON-ready: `key`, `size_bytes` (0 where nothing was
stored), `digest` (hex, or null where the worker does not know it), `options` (base64), `devices`
(a list of ids), `callbacks` (whether the program calls back into Python), `order` (from 0, in
that worker). What lacks a field or has it otherwise is left out.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from hotstart.conf.schema import JobConfig
from hotstart.launcher.manifest import (
    MAX_DEVICE_IDS,
    MAX_ENTRIES,
    MAX_OPTIONS_BYTES,
    Manifest,
    ManifestEntry,
    as_ranges,
    is_count,
    is_digest,
    is_key,
)


@dataclass(frozen=True)
class Versions:
    """What a manifest holds for: entries of another JAX are never asked for."""

    jax: str
    jaxlib: str
    platform: str

    def fit(self, manifest: Manifest) -> bool:
        """Whether a manifest was made by these."""
        return self == Versions(manifest.jax, manifest.jaxlib, manifest.platform)


@dataclass(frozen=True)
class _Request:
    process_index: int
    order: int
    key: str
    size_bytes: int
    digest_hex: str | None
    options: bytes
    devices: tuple[int, ...]
    callbacks: bool


def merge(
    reports: Mapping[int, Sequence[Mapping[str, Any]]], versions: Versions, process_count: int
) -> Manifest:
    """One manifest of all workers' requests, by process index.

    Ordered by the smallest order that any process asked in, then by the lowest process that did.
    Requests of which nothing was stored are left out.
    """
    asked: dict[str, list[_Request]] = {}
    for index in sorted(reports):
        for report in reports[index] if 0 <= index < process_count else ():
            request = _request(index, report)
            if request is not None:
                asked.setdefault(request.key, []).append(request)
    groups = sorted(
        asked.values(), key=lambda group: min((r.order, r.process_index) for r in group)
    )
    room = _Room()
    stored = [group for group in groups if any(r.size_bytes for r in group)][:MAX_ENTRIES]
    entries = tuple(_entry(group, room) for group in stored)
    return Manifest(entries, versions.jax, versions.jaxlib, versions.platform, process_count)


def choose(known: Manifest | None, new: Manifest, *, stepped: bool, done: bool) -> Manifest:
    """Of the manifest so far and that of an attempt, the one that the next start goes by.

    `stepped`: all its workers did a step. `done`: it ran to its end, so nothing was to follow.
    """
    if known is None or done:
        return new
    if new.keys <= known.keys:
        return known
    return new if stepped or len(new.entries) >= len(known.entries) else known


def fingerprint(config: JobConfig, folder: str | None = None, workers: int | None = None) -> str:
    """SHA-256, in hex, of what in a job decides which programs a gang of `workers` asks for.

    None is for the most that the job may have; a job of just so many has the same fingerprint.

    The code's content is not in it: changed code keeps most keys. `folder` is where a submitted
    job was unpacked; paths below it count from there, for it differs each time.
    """

    def stable(path: str | None) -> str | None:
        if path is None or folder is None or not PurePath(path).is_relative_to(folder):
            return path
        return os.path.relpath(path, folder)

    decisive = {
        "script": stable(config.script),
        "entrypoint": config.entrypoint,
        "working_dir": stable(config.working_dir),
        "args": config.args,
        "workers": workers or config.workers,
        "workers_per_host": config.workers_per_host,
        "platform": config.platform,
        "resources_per_worker": config.resources_per_worker,
        "env": config.env,
    }
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def recorded_fingerprint(
    config: JobConfig, launched_from: Mapping[str, Any], workers: int | None = None
) -> str:
    """The fingerprint of a job as it was launched; `launched_from` is the record's."""
    submitted = bool(launched_from.get("submission"))
    folder = str(PurePath(launched_from.get("job_file", "")).parent) if submitted else None
    return fingerprint(config, folder, workers)


class _Room:
    """How much of options and devices still fits; a value that was seen before costs nothing."""

    def __init__(self) -> None:
        self._left = {bytes: MAX_OPTIONS_BYTES, tuple: MAX_DEVICE_IDS}
        self._seen: set[Any] = set()

    def takes(self, value: bytes | tuple[int, ...]) -> bool:
        if value not in self._seen:
            if self._left[type(value)] < len(value):
                return False
            self._left[type(value)] -= len(value)
            self._seen.add(value)
        return True


def _entry(group: list[_Request], room: _Room) -> ManifestEntry:
    digests = {r.digest_hex for r in group if r.digest_hex is not None}
    options = {r.options for r in group}
    devices = {r.devices for r in group}
    same_options = next(iter(options)) if len(options) == 1 else None
    same_devices = next(iter(devices)) if len(devices) == 1 else None
    if same_options is not None and not room.takes(same_options):
        same_options = None
    if same_devices is not None and not room.takes(same_devices):
        same_devices = None
    return ManifestEntry(
        key=group[0].key,
        size_bytes=max(r.size_bytes for r in group),
        digest_hex=digests.pop() if len(digests) == 1 else None,
        processes=as_ranges(r.process_index for r in group),
        options=same_options,
        devices=same_devices,
        load_ahead=same_options is not None
        and same_devices is not None
        and not any(r.callbacks for r in group),
    )


def _request(process_index: int, report: Mapping[str, Any]) -> _Request | None:
    """A report as it should be, or None: a worker is the user's process."""
    try:
        key, order, size_bytes = report["key"], report["order"], report["size_bytes"]
        digest, devices = report["digest"], tuple(report["devices"])
        options = _decoded(report["options"])
        sound = (
            is_key(key)
            and (digest is None or is_digest(digest))
            and all(map(is_count, (order, size_bytes, *devices)))
        )
    except (KeyError, TypeError, ValueError):
        return None
    if not sound:
        return None
    return _Request(
        process_index, order, key, size_bytes, digest, options, devices, report["callbacks"] is True
    )


@functools.lru_cache(maxsize=256)  # few differ, and each process sends its own
def _decoded(options: str) -> bytes:
    return base64.b64decode(options, validate=True)
