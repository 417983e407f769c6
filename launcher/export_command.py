"""`hotstart cache export`: entries as one file, or as stock JAX keeps them."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from hotstart.launcher.amounts import show_size
from hotstart.launcher.cache_location import (
    default_location,
    location_option,
    open_location,
    open_seal,
    run_dirs,
    run_locations,
    signing_key_file,
)
from hotstart.launcher.foreground import json_option

if TYPE_CHECKING:
    from hotstart.cache.signing import Seal
    from hotstart.cache.store import Store
    from hotstart.cache.transfer import Sound, Unsound
    from hotstart.launcher.manifest import Manifest

_PROBLEMS = 1


@click.command(epilog="\b\nExamples:\n  hotstart cache export latest bundle.tar\n"
               "  hotstart cache export gs://bucket/cache bundle.tar --key jit_step-14ac577c\n"
               "  hotstart cache export gs://bucket/cache --stock /data/jax-cache\n\n"
               "\b\nExit codes:\n  0  done\n"
               "  1  some entries are missing or unsound, so not in it\n"
               "  2  usage, or the location can't be read\n")  # fmt: skip
@click.argument("source", metavar="RUN|LOCATION")
@click.argument("bundle", metavar="[BUNDLE.tar]", required=False)
@click.option("--stock", metavar="DIR", help="Write files of stock JAX's cache there instead.")
@click.option(
    "--key", "keys", multiple=True, metavar="KEY", help="Only this one; or its beginning."
)
@click.option("--force", is_flag=True, help="Replace BUNDLE.tar.")
@location_option
@run_dirs
@signing_key_file
@json_option
def export(
    source: str,
    bundle: str | None,
    stock: str | None,
    keys: tuple[str, ...],
    force: bool,
    location: str | None,
    run_dirs: tuple[str, ...],
    signing_key_file: str | None,
    as_json: bool,
) -> None:
    """Write all entries that a run has asked for, or that a location has, to one file.

    LOCATION is one that has a slash; all else is a run's name, or `latest`. A run's entries are in
    the cache that its job names, unless --location says otherwise. `-` as BUNDLE.tar is standard
    output. Each entry is verified; signatures stay as they are. With them goes what jobs ask for at
    their start, so that a first start from the bundle reads it ahead; not so with --key.
    """
    from hotstart.cache.errors import BundleError
    from hotstart.launcher.bundle_manifests import packed
    from hotstart.launcher.errors import UsageError

    if (bundle is None) == (stock is None):
        raise UsageError("export: give either BUNDLE.tar or --stock DIR")
    if bundle is not None and bundle != "-" and Path(bundle).exists() and not force:
        raise UsageError(f"{bundle} exists; give another name, or --force to replace it")
    store, seal, run, names = _chosen(source, keys, location, run_dirs, signing_key_file)
    found = _Found(store, seal, names)
    manifests = {} if keys or stock else _manifests(store, seal, run, run_dirs)
    try:
        if stock is not None:
            facts = _to_stock(found, stock)
        else:
            assert bundle is not None
            facts = _to_bundle(found, bundle, store.url, packed(manifests, seal))
    except (BundleError, OSError) as error:
        raise UsageError(f"export to {bundle or stock}: {error}") from error
    facts = {"location": store.url, "run": run, **facts}
    facts |= {"missing": found.missing, "bad": found.bad}
    to_stderr = bundle == "-"
    if as_json:
        click.echo(json.dumps(facts, indent=2), err=to_stderr)
    else:
        _tell(facts, found, err=to_stderr)
    sys.exit(_PROBLEMS if found.missing or found.bad else 0)


class _Found:
    """The sound entries, read as they are asked for, and what was not sound among them."""

    def __init__(self, store: Store, seal: Seal, names: Sequence[str]) -> None:
        self._store, self._seal, self._names = store, seal, names
        self.missing: list[str] = []
        self.bad: dict[str, str] = {}
        self.size_bytes = 0

    def __iter__(self) -> Iterator[Sound]:
        from hotstart.cache.transfer import Sound, read_sound
        from hotstart.launcher.progress_bar import counted

        reading: Iterable[Sound | Unsound] = read_sound(self._store, self._names, self._seal)
        for one in counted(reading, "export", len(self._names)):
            if isinstance(one, Sound):
                self.size_bytes += len(one.data)
                yield one
            elif one.why is None:
                self.missing.append(one.name)
            else:
                self.bad[one.name] = one.why


def _chosen(
    source: str,
    keys: tuple[str, ...],
    location: str | None,
    run_dirs: tuple[str, ...],
    signing_key_file: str | None,
) -> tuple[Store, Seal, str | None, Sequence[str]]:
    """The store, its keys, the run if it is one, and the names of the entries that are meant."""
    from hotstart.cache.inventory import list_entries
    from hotstart.launcher.errors import RunNotFound, UsageError

    run: str | None = None
    if "/" in source:
        if location not in (None, source):
            raise UsageError("export: a LOCATION and --location are two; give one of them")
        store = open_location(source)
        names = sorted({one.stat.name for one in list_entries(store) if one.kind == "entry"})
        seal = open_seal(store, signing_key_file)
    else:
        try:
            store, seal, run, names = _of_run(source, location, run_dirs, signing_key_file)
        except RunNotFound as error:
            if Path(source).is_dir():
                raise UsageError(f"{error}; if the directory is meant, write ./{source}") from error
            raise
    if keys:
        from hotstart.launcher.find_entry import find_one

        wanted = [find_one(store, key) for key in keys]
        foreign = next((name for name in wanted if name not in names), None)
        if foreign is not None:
            raise UsageError(f"run {source} has not asked for {foreign}")
        names = list(dict.fromkeys(wanted))
    if not names:
        raise UsageError(f"{source}: there is nothing to export")
    return store, seal, run, names


def _of_run(
    run: str, location: str | None, run_dirs: tuple[str, ...], signing_key_file: str | None
) -> tuple[Store, Seal, str, list[str]]:
    from hotstart.cache.signing import SealedStore
    from hotstart.launcher.errors import UsageError
    from hotstart.launcher.run_needs import needed_by, needs_of_run

    locations = run_locations(run_dirs)
    store = open_location(location or default_location(), may_be_new=True)
    seal = open_seal(store, signing_key_file)
    needs = needs_of_run(locations, run, seal.keyring, SealedStore(store, seal))
    if location is None and needs.location and needs.location != store.url:
        store = open_location(needs.location)
        seal = open_seal(store, signing_key_file)
        needs = needs_of_run(locations, needs.run, seal.keyring, SealedStore(store, seal))
    if needs.unread:
        raise UsageError(
            f"what run {needs.run} asked for can't all be read, or is not signed with a key of "
            "this host; set the key of its launch. Nothing was exported"
        )
    return store, seal, needs.run, sorted(needed_by([needs]))


def _manifests(
    store: Store, seal: Seal, run: str | None, run_dirs: tuple[str, ...]
) -> dict[str, Manifest]:
    from hotstart.cache.signing import SealedStore
    from hotstart.launcher.bundle_manifests import manifests_of_location, manifests_of_run

    sealed = SealedStore(store, seal)
    if run is None:
        return manifests_of_location(sealed)
    return manifests_of_run(run_locations(run_dirs), run, seal.keyring, sealed)


def _to_bundle(
    found: _Found, bundle: str, location: str, manifests: Iterable[tuple[str, bytes]]
) -> dict[str, Any]:
    from hotstart.cache.bundle import write_bundle

    pairs = ((sound.entry.key, sound.data) for sound in found)
    manifests = list(manifests)
    if bundle == "-":
        entries = write_bundle(sys.stdout.buffer, location, pairs, manifests)
        sys.stdout.buffer.flush()
    else:
        with _replacing(Path(bundle)) as stream:
            entries = write_bundle(stream, location, pairs, manifests)
    return {
        "bundle": bundle,
        "entries": entries,
        "manifests": len(manifests),
        "size_bytes": found.size_bytes,
    }


def _to_stock(found: _Found, folder: str) -> dict[str, Any]:
    from hotstart.cache.errors import NotAnEntry
    from hotstart.cache.stock import write_stock
    from hotstart.cache.store import normalize_location

    location = normalize_location(folder)
    new = there = 0
    for sound in found:
        try:
            is_new = write_stock(location, sound.entry.key, sound.entry.payload)
        except NotAnEntry as error:
            found.bad[sound.entry.key] = str(error)
            continue
        new, there = new + is_new, there + (not is_new)
    return {"stock": location, "entries": new + there, "new": new, "there": there}


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` when it is whole and on the disk, and not before."""
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        with part.open("xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _tell(facts: dict[str, Any], found: _Found, *, err: bool) -> None:
    if "stock" in facts:
        click.echo(
            f"{facts['stock']}: {facts['entries']} entries of {facts['location']} for stock JAX: "
            f"{facts['new']} new, {facts['there']} there"
        )
        click.echo("JAX 0.10 asks for them with JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES=none alone")
    else:
        size = show_size(facts["size_bytes"])
        click.echo(
            f"{facts['bundle']}: {facts['entries']} entries of {facts['location']}, {size}; "
            f"manifests: {facts['manifests']}",
            err=err,
        )
    for name in found.missing:
        click.echo(f"  missing: {name}", err=err)
    for name, why in found.bad.items():
        click.echo(f"  bad: {name}: {why}", err=err)
