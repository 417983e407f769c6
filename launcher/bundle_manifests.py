"""The manifests that go with entries in a bundle, so that a first start from one reads ahead.

A manifest is kept by the fingerprint of its job (`asked.py`), for each size of gang one. In a
bundle it is `manifests/<fingerprint>`, its JSON as it lies in a cache's location, signed for that
location by who exports it, where that host has a key. What is imported is checked as an entry is:
where it is not signed for LOCATION it is refused, or signed anew for who vouches for it.

The fingerprint has the job's paths in it. Where the job lies elsewhere, its manifests are filed
under the one that it has there (`fingerprints_here`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal, NamedTuple

from hotstart.cache.errors import EntryError
from hotstart.cache.signing import Keyring, Seal, SealedStore, split
from hotstart.cache.store import Store
from hotstart.conf.schema import JobConfig
from hotstart.launcher.asked import fingerprint
from hotstart.launcher.manifest import MAX_BYTES, Manifest, ManifestError
from hotstart.launcher.manifest_store import MANIFESTS, ManifestStore
from hotstart.launcher.run_needs import fingerprints_of, run_named

Fate = Literal["new", "there", "bad", "refused"]


class BroughtManifest(NamedTuple):
    """What became of one manifest of a bundle."""

    fingerprint: str
    fate: Fate
    detail: str = ""


def manifests_of_run(
    run_dirs: Iterable[str], name: str, keyring: Keyring, cache: Store
) -> dict[str, Manifest]:
    """What a run's job starts with next, by fingerprint; `cache` is its cache's store, sealed.

    The record's manifest of each size of gang, else the one that the job left in the cache. Raises
    `RunNotFound`, `StoreError`.
    """
    record = run_named(run_dirs, name, keyring)
    left = ManifestStore(cache)
    found: dict[str, Manifest] = {}
    for workers, its_fingerprint in fingerprints_of(record).items():
        manifest = record.manifest(workers) or left.look_up(its_fingerprint)[0]
        if manifest is not None:
            found[its_fingerprint] = manifest
    return found


def manifests_of_location(cache: Store) -> dict[str, Manifest]:
    """The latest sound one of each job that left some, by fingerprint; `cache` is sealed.

    A listing, and two requests each. Raises `StoreError`.
    """
    left = ManifestStore(cache)
    there = sorted(
        {s.name.removeprefix(MANIFESTS).partition("/")[0] for s in cache.list(MANIFESTS)}
    )
    latest = {one: left.look_up(one)[0] for one in there}
    return {one: manifest for one, manifest in latest.items() if manifest is not None}


def packed(manifests: Mapping[str, Manifest], seal: Seal) -> Iterator[tuple[str, bytes]]:
    """Fingerprint and bytes of each as a bundle has them."""
    for its_fingerprint, manifest in sorted(manifests.items()):
        data = manifest.to_json()
        if len(data) <= MAX_BYTES:
            yield its_fingerprint, data + _signature(seal, its_fingerprint, data)


def bring_manifest(
    store: Store,
    seal: Seal,
    its_fingerprint: str,
    data: bytes,
    *,
    sign: bool = False,
    here: Mapping[int, str] | None = None,
) -> BroughtManifest:
    """Verify a bundle's manifest and make it its job's latest in a cache's location.

    `there` where that already has one of the same versions: what jobs have asked for here is
    better known here. `here` has the fingerprints of one job by number of workers: the manifest
    is then filed as that job's. Raises `StoreError`.
    """
    body, line = split(data)
    try:
        manifest = Manifest.from_json(body)
    except ManifestError as error:
        return BroughtManifest(its_fingerprint, "bad", str(error))
    if not sign:
        try:
            seal.check(_name(its_fingerprint, body), hashlib.sha256(body).digest(), line)
        except EntryError as error:
            return BroughtManifest(its_fingerprint, "refused", str(error))
    wanted = its_fingerprint if here is None else here.get(manifest.process_count)
    if wanted is None:
        return BroughtManifest(
            its_fingerprint, "bad", f"of {manifest.process_count} workers, which --job never has"
        )
    left = ManifestStore(SealedStore(store, seal))
    there = left.look_up(wanted)[0]
    if there is not None and _versions(there) == _versions(manifest):
        return BroughtManifest(wanted, "there")
    left.keep(wanted, manifest)
    return BroughtManifest(wanted, "new")


def fingerprints_here(config: JobConfig) -> dict[int, str]:
    """The fingerprints that a job has on this host, by number of workers."""
    sizes = range(config.least_workers, config.workers + 1)
    return {workers: fingerprint(config, workers=workers) for workers in sizes}


def _versions(manifest: Manifest) -> tuple[str, str, str, int]:
    return manifest.jax, manifest.jaxlib, manifest.platform, manifest.process_count


def _name(its_fingerprint: str, body: bytes) -> str:
    return f"{MANIFESTS}{its_fingerprint}/{hashlib.sha256(body).hexdigest()}"


def _signature(seal: Seal, its_fingerprint: str, body: bytes) -> bytes:
    return seal.sign(_name(its_fingerprint, body), hashlib.sha256(body).digest())
