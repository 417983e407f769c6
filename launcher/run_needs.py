"""Which entries runs need, by their manifests: those of the record and of the cache's location.

A run is live as long as it has no end: also one whose driver is lost, for it can be restarted.
"""

from __future__ import annotations

import operator
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from hotstart.cache.entry import entry_name
from hotstart.cache.errors import InvalidLocation, StoreMissing
from hotstart.cache.signing import Keyring, open_sealed
from hotstart.cache.store import ObjectStat, Store, normalize_location
from hotstart.conf.errors import ConfigError
from hotstart.conf.load import job_from_yaml
from hotstart.conf.schema import JobConfig
from hotstart.launcher.asked import recorded_fingerprint
from hotstart.launcher.errors import LauncherError, RunNotFound, UsageError
from hotstart.launcher.facts import RunState, state_of
from hotstart.launcher.identity import OwnerIdentity
from hotstart.launcher.manifest import Manifest, ManifestError
from hotstart.launcher.manifest_store import MANIFESTS, ManifestStore
from hotstart.launcher.record import PARALLEL_READS, RUN_NAME, RunRecord
from hotstart.launcher.runs import open_runs, resolve_run

CLOCK_MARGIN_S = 300.0  # two stores' clocks
ENDED: tuple[RunState, ...] = ("done", "failed", "interrupted")
_MANIFEST = re.compile(r"attempts/(\d{5})/manifest/(\d{8})-\d{1,18}")


@dataclass(frozen=True)
class RunNeeds:
    """What one run asked for.

    location: its cache's, spelt as the store's where it is that one; None where its job can't be
        read, empty where it has no cache.
    fingerprint: its job's, as `ManifestStore` has it, for the most workers; None likewise.
    keys: of its own manifests and, where that is its cache, of those of its job, for each number
        of workers that it may have.
    began_s, last_sign_s: the time in which it may have made entries that no manifest names yet, by
        the clock of the record's store.
    unread: manifests that are there and can't be read, or are not signed with a key of this host.
    """

    run: str
    run_dir: str
    state: RunState
    location: str | None
    fingerprint: str | None
    keys: frozenset[str]
    began_s: float
    last_sign_s: float
    unread: int = 0

    @property
    def is_live(self) -> bool:
        """Whether it has not ended."""
        return self.state not in ENDED

    def made(self, created_s: float, location: str) -> bool:
        """Whether an entry of this cache may be one that it made."""
        if self.location not in (None, location):
            return False
        return self.began_s - CLOCK_MARGIN_S <= created_s <= self.last_sign_s + CLOCK_MARGIN_S


def read_needs(
    run_dirs: Iterable[str],
    keyring: Keyring,
    cache: Store,
    *,
    only_live: bool = False,
    ended: Sequence[str] = (),
) -> list[RunNeeds]:
    """What the runs of these directories asked for; `cache` is the store of a cache, sealed.

    `ended` are runs to be taken as ended. Some six requests a run, one more a manifest. Raises
    `StoreError`, and `UsageError` where there is no run of a name in `ended`.
    """
    observer = OwnerIdentity.of_this_process()
    manifests = ManifestStore(cache)
    records = [record for run_dir in run_dirs for record in records_in(run_dir, keyring)]
    unknown = sorted(set(ended) - {record.name for record in records})
    if unknown:
        names = ", ".join(sorted(record.name for record in records)) or "none"
        raise UsageError(f"--ended: there is no run {unknown[0]}; the runs are: {names}")

    def look(record: RunRecord) -> RunNeeds | None:
        state: RunState = state_of(record.owner(), record.end(), observer)
        if record.name in ended and state not in ENDED:
            state = "interrupted"
        if only_live and state in ENDED:
            return None
        return needs_of_record(record, state, manifests, cache.url)

    with ThreadPoolExecutor(PARALLEL_READS) as pool:
        return [needs for needs in pool.map(look, records) if needs is not None]


def needs_of_run(run_dirs: Iterable[str], name: str, keyring: Keyring, cache: Store) -> RunNeeds:
    """What one run asked for; `latest` is the one of the first directory that was launched last.

    Raises `RunNotFound`, `StoreError`.
    """
    record = run_named(run_dirs, name, keyring)
    return needs_of_record(record, record.state(), ManifestStore(cache), cache.url)


def run_named(run_dirs: Iterable[str], name: str, keyring: Keyring) -> RunRecord:
    """A run of one of these directories; `latest` is the first one's that was launched last.

    Raises `RunNotFound`, `StoreError`.
    """
    failure: RunNotFound | None = None
    for run_dir in run_dirs:
        try:
            return resolve_run(open_runs(run_dir, keyring), name)
        except RunNotFound as error:
            failure = failure or error
    assert failure is not None
    raise failure


def needed_by(needs: Iterable[RunNeeds]) -> dict[str, list[RunNeeds]]:
    """Who asked for an entry, by its name."""
    found: dict[str, list[RunNeeds]] = {}
    for one in needs:
        for key in one.keys:
            found.setdefault(entry_name(key), []).append(one)
    return found


def last_uses(needs: Iterable[RunNeeds], cache: Store) -> dict[str, float]:
    """When entries were last asked for, as far as runs and the location's manifests tell.

    For a store without access times; `cache` is sealed. One request a manifest.
    """
    found: dict[str, float] = {}
    told = [(one.keys, one.last_sign_s) for one in needs]
    for stat, manifest in location_manifests(cache):
        told.append((manifest.keys, stat.modified_s))
    for keys, at_s in told:
        for key in keys:
            name = entry_name(key)
            found[name] = max(at_s, found.get(name, at_s))
    return found


def location_manifests(cache: Store) -> Iterator[tuple[ObjectStat, Manifest]]:
    """The sound manifests of all jobs in a cache's location. One request each and a listing."""
    stats = list(cache.list(MANIFESTS))
    with ThreadPoolExecutor(PARALLEL_READS) as pool:
        for stat, manifest in zip(stats, pool.map(lambda s: _read(cache, s), stats), strict=True):
            if manifest is not None:
                yield stat, manifest


def records_in(run_dir: str, keyring: Keyring) -> list[RunRecord]:
    """All runs of a run directory. One listing; raises `StoreError`, `UsageError`."""
    store = open_sealed(run_dir, keyring)
    try:
        names = [stat.name.removeprefix("index/") for stat in store.list("index/")]
    except StoreMissing as error:  # a bucket, so it was named
        raise UsageError(f"--run-dir: {error}") from error
    return [RunRecord(store, name) for name in names if RUN_NAME.fullmatch(name)]


def needs_of_record(
    record: RunRecord, state: RunState, manifests: ManifestStore, cache_url: str
) -> RunNeeds:
    """What one run asked for, as far as its record and `manifests` tell. `StoreError`."""
    prefix = f"{record.name}/"
    listed = list(record.store.list(prefix + "attempts/"))
    listed += record.store.list(prefix + "owner/")
    times = [stat.modified_s for stat in listed]
    created = record.store.stat(prefix + "created")
    times += [] if created is None else [created.modified_s]
    location, fingerprints = _job(record)
    if location is not None and _is_same_place(location, cache_url):
        location = cache_url
    keys: set[str] = set()
    unread = 0
    for stats in _newest_manifests(listed, prefix).values():
        manifest = next(filter(None, (_read(record.store, stat) for stat in stats)), None)
        keys |= frozenset() if manifest is None else manifest.keys
        unread += manifest is None
    for fingerprint in fingerprints if location == cache_url else ():
        latest, unsound = manifests.look_up(fingerprint)
        keys |= frozenset() if latest is None else latest.keys
        unread += unsound
    return RunNeeds(
        run=record.name,
        run_dir=record.store.url,
        state=state,
        location=location,
        fingerprint=fingerprints[-1] if fingerprints else None,
        keys=frozenset(keys),
        began_s=min(times, default=0.0),
        last_sign_s=max(times, default=0.0),
        unread=unread,
    )


def fingerprints_of(record: RunRecord) -> dict[int, str]:
    """The fingerprints of a run's job by size of its gang; none where the job can't be read."""
    config = _config(record)
    return {} if config is None else _fingerprints(record, config)


def _job(record: RunRecord) -> tuple[str | None, list[str]]:
    """Location of the cache of a run's job, and its fingerprints: one for each size of its gang.

    The last is that of the largest. None, and no fingerprint, where the job can't be read.
    """
    config = _config(record)
    if config is None:
        return None, []
    fingerprints = list(_fingerprints(record, config).values())
    if config.cache.mode == "off":
        return "", fingerprints
    try:
        return normalize_location(config.cache.location or ""), fingerprints
    except InvalidLocation:
        return None, fingerprints


def _config(record: RunRecord) -> JobConfig | None:
    try:
        return job_from_yaml(record.job_yaml(), f"job.yaml of run {record.name}")
    except (LauncherError, ConfigError):
        return None


def _fingerprints(record: RunRecord, config: JobConfig) -> dict[int, str]:
    launched_from = record.created().get("launched_from")
    launched_from = launched_from if isinstance(launched_from, Mapping) else {}
    return {
        workers: recorded_fingerprint(config, launched_from, workers)
        for workers in range(config.least_workers, config.workers + 1)
    }


def _is_same_place(location: str, cache_url: str) -> bool:
    """Whether two spellings mean one cache: a directory has as many as there are links to it."""
    if location == cache_url:
        return True
    if not location or "://" in location or "://" in cache_url:
        return False
    return os.path.realpath(location) == os.path.realpath(cache_url)


def _newest_manifests(listed: Iterable[ObjectStat], prefix: str) -> dict[str, list[ObjectStat]]:
    """Manifests by attempt, the one with the most keys first."""
    found: dict[str, list[tuple[str, ObjectStat]]] = {}
    for stat in listed:
        match = _MANIFEST.fullmatch(stat.name.removeprefix(prefix))
        if match is not None:
            found.setdefault(match[1], []).append((match[2], stat))
    return {
        attempt: [stat for _, stat in sorted(pairs, key=operator.itemgetter(0), reverse=True)]
        for attempt, pairs in found.items()
    }


def _read(store: Store, stat: ObjectStat) -> Manifest | None:
    data = store.get(stat.name)
    try:
        return None if data is None else Manifest.from_json(data)
    except ManifestError:
        return None
