"""Manifests in the cache's location, by the fingerprint of the job that they are of.

    manifests/v1/<fingerprint>/<sha256 of the manifest>      then ~1, ~2, ~3

Create-only as all that is stored; of several the one that the store made last counts. The further
names are for a role that may not delete what keeps the first one taken: an older equal one, or
one that does not verify.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Collection

from hotstart.cache.errors import AccessDenied, StoreError, StoreMissing
from hotstart.cache.repair import REPLACEMENTS, all_names
from hotstart.cache.signing import SIGNATURE_BYTES
from hotstart.cache.store import ObjectStat, Store
from hotstart.launcher.manifest import MAX_BYTES, Manifest, ManifestError

logger = logging.getLogger(__name__)

KEPT = 3
MANIFESTS = "manifests/v1/"
_NAME = re.compile(rf"[0-9a-f]{{64}}(?:~[1-{REPLACEMENTS}])?")


class ManifestStore:
    """Its calls block on the store.

    Trouble with it is a warning, and costs a slower start; but for `look_up` and `keep`, which
    raise.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def save(self, fingerprint: str, manifest: Manifest) -> None:
        """As `keep`, as far as that can be done."""
        try:
            self.keep(fingerprint, manifest)
        except StoreError as error:
            logger.warning("what this job asked for is not kept for its next launch: %s", error)

    def keep(self, fingerprint: str, manifest: Manifest) -> None:
        """Make this manifest the latest of its fingerprint and remove all but the latest three.

        Two requests, also where it is that already, and one more for each that is removed. Raises
        `StoreError`.
        """
        data = manifest.to_json()
        if len(data) > MAX_BYTES:
            logger.warning("a manifest of %d bytes is too large to be kept", len(data))
            return
        name = f"{_folder(fingerprint)}{hashlib.sha256(data).hexdigest()}"
        there = self._newest_first(fingerprint)
        same = [stat for stat in there if stat.name.partition("~")[0] == name]
        others = [stat for stat in there if stat not in same]
        if same and there[0] == same[0] and self._store.get(same[0].name) == data:
            return
        self._remove(same)
        for free in all_names(name) if same else [name]:
            if self._store.create(free, data):
                break
        self._remove(others[KEPT - 1 :])

    def latest(self, fingerprint: str) -> Manifest | None:
        """The latest sound manifest of a fingerprint, or None. Two requests, one if there is none.

        One more for each that turns out to be damaged.
        """
        try:
            return self.look_up(fingerprint)[0]
        except StoreError as error:
            logger.warning("nothing is read ahead for this job: %s", error)
        return None

    def latest_of(self, fingerprints: Collection[str]) -> Manifest | None:
        """The latest sound manifest of several fingerprints, such as a job's for all its sizes.

        One listing of all manifests in the location, and one request more; None where the store
        fails, which is a warning.
        """
        try:
            stats = []
            for stat in self._store.list(MANIFESTS):
                fingerprint, _, name = stat.name.removeprefix(MANIFESTS).partition("/")
                if fingerprint in fingerprints and _NAME.fullmatch(name):
                    stats.append(stat)
            for stat in sorted(stats, key=_age, reverse=True):
                found = self._read(stat)
                if found is not None:
                    return found
        except StoreMissing:
            return None
        except StoreError as error:
            logger.warning("what this job asked for is not known: %s", error)
        return None

    def look_up(self, fingerprint: str) -> tuple[Manifest | None, int]:
        """The same, and how many were there where none is sound; raises `StoreError`.

        For one who may not take trouble for there being none.
        """
        try:
            there = self._newest_first(fingerprint)
        except StoreMissing:
            return None, 0
        for stat in there:
            if (found := self._read(stat)) is not None:
                return found, 0
        return None, len(there)

    def _read(self, stat: ObjectStat) -> Manifest | None:
        """A manifest, or None where it has gone or is unsound."""
        most = MAX_BYTES + SIGNATURE_BYTES
        data = self._store.get(stat.name) if stat.size_bytes <= most else b""
        if data is None:
            return None
        try:
            return Manifest.from_json(data)
        except ManifestError as error:
            logger.warning("%s/%s: %s; it is skipped", self._store.url, stat.name, error)
        return None

    def _newest_first(self, fingerprint: str) -> list[ObjectStat]:
        folder = _folder(fingerprint)
        stats = [
            stat
            for stat in self._store.list(folder)
            if _NAME.fullmatch(stat.name.removeprefix(folder))
        ]
        return sorted(stats, key=_age, reverse=True)

    def _remove(self, stats: list[ObjectStat]) -> None:
        for stat in stats:
            try:
                self._store.delete(stat.name, stat.generation)
            except AccessDenied as error:  # a role that may create and no more: they pile up
                logger.info("an old manifest stays: %s", error)


def _age(stat: ObjectStat) -> tuple[float, str]:
    return stat.modified_s, stat.name


def _folder(fingerprint: str) -> str:
    return f"{MANIFESTS}{fingerprint}/"
