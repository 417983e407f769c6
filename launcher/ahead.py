"""What the driver knows of the programs that the next attempt will ask for.

It is learned from the workers, kept in the run's record and in the cache's location, and handed
to the agents as soon as an attempt is decided:

    gang.asked() -> merge -> choose -> memory, record, cache's location
                                         |
    next attempt, of this run or of another of the same job -> gang.read_ahead

Programs differ with the number of workers, so each size of gang has a manifest of its own: a gang
that lost a host and one that has it again both find what they asked for before.

None of it is on the way of an attempt: sending has threads of its own, learning is done on the
record's. What goes wrong costs a slower start, and a warning at most.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from hotstart.cache.config import CacheConfig
from hotstart.cache.errors import StoreError
from hotstart.launcher.asked import Versions, choose, merge
from hotstart.launcher.asked_facts import asked_facts
from hotstart.launcher.manifest import MAX_BYTES, Manifest, ManifestError
from hotstart.launcher.placement import GangSize
from hotstart.launcher.record import RunRecord
from hotstart.launcher.worker_facts import installed

logger = logging.getLogger(__name__)

_CLOSE_S = 2.0

Answers = Callable[[], Mapping[int, Sequence[Mapping[str, Any]]]]


class Gang(Protocol):
    """What is needed of `gang.Gang`; all calls are safe beside the loop's."""

    @property
    def size(self) -> GangSize: ...
    def read_ahead(self, attempt: int, manifest_json: bytes) -> None: ...
    def latest_manifest(self, cache: CacheConfig, fingerprint: str) -> bytes | None: ...
    def latest_manifest_of(
        self, cache: CacheConfig, fingerprints: Sequence[str]
    ) -> bytes | None: ...
    def save_manifest(self, cache: CacheConfig, fingerprint: str, manifest_json: bytes) -> None: ...


@dataclass(frozen=True)
class AheadSettings:
    """What is needed of the job; `read_ahead` False learns all the same, but sends nothing.

    `fingerprint` gives that of the job for a number of workers. `sizes` are those it may have,
    where the location is to be asked for other versions of them all.
    """

    fingerprint: Callable[[int], str]
    cache: CacheConfig
    platform: str
    read_ahead: bool = True
    sizes: Sequence[int] = ()


def installed_versions(platform: str) -> Versions:
    """Those of this environment, which the workers are taken to share; imports neither."""
    found = installed()
    return Versions(found["jax"], found["jaxlib"], platform)


class Ahead:
    """One run's knowledge. `send` does not block; `learn` does."""

    def __init__(
        self,
        settings: AheadSettings,
        record: RunRecord,
        versions: Versions,
        *,
        is_new: bool,
        on_misfit: Callable[[Manifest], None] = lambda manifest: None,
    ) -> None:
        """`is_new`: the run has no attempt yet, so its record is not asked.

        `on_misfit` gets the job's manifest in the cache's location where other versions made it.
        """
        self._settings = settings
        self._record = record
        self._versions = versions
        self._on_misfit = on_misfit
        self._lock = threading.Lock()
        # All by number of workers.
        self._known: dict[int, Manifest] = {}
        self._recorded: dict[int, Manifest] = {}
        self._kept_keys: dict[int, frozenset[str]] = {}  # in the cache's location
        self._asked_location: set[int] = set()
        self._asked_record: set[int] = set()
        self._has_asked_others = False
        self._attempt = 0
        self._is_new = is_new
        self._threads: list[threading.Thread] = []

    def recall(self) -> None:
        """Begin to read the run's record: the last size is the likeliest. Returns at once."""
        if self._settings.read_ahead:
            self._begin(lambda: self._look_into_record(None))

    def send(self, attempt: int, gang: Gang) -> None:
        """Have what is known read ahead for an attempt.

        Where it has to be looked for first, once it is there, unless another attempt is on by then.
        """
        self._attempt = attempt
        if self._settings.read_ahead:
            self._begin(lambda: self._look_and_send(attempt, gang))

    def learn(
        self, attempt: int, gang: Gang, answers: Answers, *, stepped: bool, done: bool
    ) -> None:
        """Take in what an attempt has asked for so far; see `choose`. Blocks on agents and stores.

        Raises nothing.
        """
        try:
            asked = answers()
            if facts := asked_facts(asked):
                self._record.keep_asked(attempt, facts)
            self._learn(attempt, gang, asked, stepped=stepped, done=done)
        except StoreError as error:
            logger.warning("what attempt %d asked for is not recorded: %s", attempt, error)
        except Exception:
            logger.warning("what attempt %d asked for is not known", attempt, exc_info=True)

    def close(self) -> None:
        """Wait for what is on its way, for at most 2 s; before Ray is let go."""
        for thread in self._threads:
            thread.join(_CLOSE_S)

    def _learn(
        self,
        attempt: int,
        gang: Gang,
        asked: Mapping[int, Sequence[Mapping[str, Any]]],
        *,
        stepped: bool,
        done: bool,
    ) -> None:
        settings = self._settings
        workers = gang.size.process_count
        new = merge(asked, self._versions, workers)
        if not new.entries:
            return
        with self._lock:
            known = choose(self._known.get(workers), new, stepped=stepped, done=done)
            self._known[workers] = known
        manifest_json = known.to_json()
        if len(manifest_json) > MAX_BYTES:
            logger.warning("a manifest of %d bytes is too large to be kept", len(manifest_json))
            return
        if known != self._recorded.get(workers):
            self._record.keep_manifest(attempt, known)
            self._recorded[workers] = known
        writable = settings.cache.mode == "read-write"
        if writable and (stepped or done) and known.keys != self._kept_keys.get(workers):
            gang.save_manifest(settings.cache, settings.fingerprint(workers), manifest_json)
            self._kept_keys[workers] = known.keys

    def _begin(self, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=_quietly, args=(work,), name="hotstart-ahead", daemon=True)
        self._threads = [t for t in self._threads if t.is_alive()] + [thread]
        thread.start()

    def _look_and_send(self, attempt: int, gang: Gang) -> None:
        workers = gang.size.process_count
        self._look_into_record(workers)
        self._look_into_location(gang)
        known = self._known.get(workers)
        if known is not None and attempt == self._attempt:
            gang.read_ahead(attempt, known.to_json())

    def _look_into_record(self, workers: int | None) -> None:
        """For the manifest of a size, or for the latest of any."""
        with self._lock:
            if self._is_new or workers in self._asked_record or workers in self._known:
                return
            found = self._record.manifest(workers)
            if workers is not None:
                self._asked_record.add(workers)
            if found is None:
                self._is_new = workers is None
                return
            self._recorded.setdefault(found.process_count, found)
            if self._versions.fit(found):
                self._known.setdefault(found.process_count, found)

    def _look_into_location(self, gang: Gang) -> None:
        workers = gang.size.process_count
        if workers in self._known or workers in self._asked_location:
            return
        self._asked_location.add(workers)
        fingerprint = self._settings.fingerprint(workers)
        data = gang.latest_manifest(self._settings.cache, fingerprint)
        if data is None:
            self._look_for_misfit(gang)
            return
        try:
            found = Manifest.from_json(data)
        except ManifestError as error:
            logger.warning("nothing is read ahead for this job: %s", error)
            return
        if not self._versions.fit(found):
            self._on_misfit(found)
            return
        if found.process_count != workers:  # kept under a name that is not its own
            return
        with self._lock:
            self._kept_keys.setdefault(workers, found.keys)
            self._known.setdefault(workers, found)

    def _look_for_misfit(self, gang: Gang) -> None:
        """This size has not run: whether the job last ran, at another one, with other versions."""
        settings = self._settings
        if len(settings.sizes) < 2 or self._has_asked_others:
            return
        self._has_asked_others = True
        fingerprints = [settings.fingerprint(workers) for workers in settings.sizes]
        data = gang.latest_manifest_of(settings.cache, fingerprints)
        if data is not None and not self._versions.fit(found := Manifest.from_json(data)):
            self._on_misfit(found)


def _quietly(work: Callable[[], None]) -> None:
    try:
        work()
    except Exception as error:
        logger.warning("nothing is read ahead: %s", error)
