"""Whether a start must be cold because versions changed since the last one, and from what to what.

JAX asks for entries under other keys then, so nothing that was compiled before is of use. Of a
run's own attempts the record tells, of earlier runs of the job the manifest in the cache's
location. The driver reads neither from a bucket itself but the record: an agent looks for the
manifest then (`Ahead`), when the job is placed already.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from hotstart.cache.signing import Keyring, open_sealed
from hotstart.launcher.manifest import Manifest
from hotstart.launcher.manifest_store import ManifestStore
from hotstart.launcher.record import RunRecord

logger = logging.getLogger(__name__)

_NONE = "none"


@dataclass(frozen=True)
class Before:
    """The versions of an earlier start, by name, and which start that was ("in attempt 3")."""

    versions: Mapping[str, str]
    when: str


def cold_because(before: Before, now: Mapping[str, str]) -> str | None:
    """One line on what changed, or None where nothing did."""
    names = sorted(before.versions.keys() | now.keys())
    changed = [
        f"{name} was {before.versions.get(name) or _NONE} {before.when}"
        f" and is {now.get(name) or _NONE} now"
        for name in names
        if before.versions.get(name) != now.get(name)
    ]
    if not changed:
        return None
    return f"the start will be cold: {', '.join(changed)}"


def before_in_record(record: RunRecord) -> Before | None:
    """Of the run's latest attempt; None where it has none, or none that says. Blocks."""
    last = record.last_start()
    if last is None or not isinstance(last[1].get("versions"), Mapping):
        return None
    versions = {str(name): str(version) for name, version in last[1]["versions"].items()}
    return Before(versions, f"in attempt {last[0]}")


def before_in_manifest(manifest: Manifest, now: Mapping[str, str]) -> Before:
    """Of the job's latest run, as far as its manifest says."""
    versions = {**now, "jax": manifest.jax, "jaxlib": manifest.jaxlib}
    return Before(versions, "when this job last ran")


def before_in_directory(
    location: str, fingerprints: Collection[str], keyring: Keyring, now: Mapping[str, str]
) -> Before | None:
    """Of the job's latest run that used this directory, whatever the size of its gang.

    `fingerprints` are the job's, for each size. Blocks; raises `StoreError`.
    """
    manifests = ManifestStore(open_sealed(location, keyring))
    if len(fingerprints) == 1:
        manifest = manifests.latest(*fingerprints)
    else:
        manifest = manifests.latest_of(fingerprints)
    return None if manifest is None else before_in_manifest(manifest, now)


class ColdStart:
    """Says once, where it is so, that a start will be cold. Safe among threads."""

    def __init__(self, now: Mapping[str, str], tell: Callable[[str], None]) -> None:
        self._now = now
        self._tell = tell
        self._lock = threading.Lock()
        self._told = False
        self._thread: threading.Thread | None = None

    def look(self, find: Callable[[], Before | None]) -> None:
        """Begin to look with `find`; returns at once."""
        self._thread = threading.Thread(
            target=self._look, args=(find,), name="hotstart-cold", daemon=True
        )
        self._thread.start()

    def settle(self, timeout_s: float) -> None:
        """Wait for `look`, at most `timeout_s`: it should be said before hosts are taken."""
        if self._thread is not None:
            self._thread.join(timeout_s)

    def misfit(self, manifest: Manifest) -> None:
        """A manifest of the job was found that is of other versions."""
        self._say(before_in_manifest(manifest, self._now))

    def _look(self, find: Callable[[], Before | None]) -> None:
        try:
            before = find()
        except Exception as error:  # who needs the record or the location says what is wrong
            logger.debug("versions of the last start: %s", error)
            return
        if before is not None:
            self._say(before)

    def _say(self, before: Before) -> None:
        text = cold_because(before, self._now)
        with self._lock:
            is_first, self._told = text is not None and not self._told, self._told or bool(text)
        if is_first and text is not None:
            self._tell(text)
