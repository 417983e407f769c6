"""`hotstart cache pin` and `unpin`: what stays in a cache, whatever else goes."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import click

from hotstart.launcher.cache_location import (
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
    from hotstart.cache.store import ObjectStat, Store

    Pins = Mapping[str, Mapping[str, ObjectStat]]

_PROBLEMS = 1
_SHOWN = 5


@click.command(epilog="\b\nExamples:\n  hotstart cache pin jit_step-14ac577c --why 'release 3'\n"
               "  hotstart cache pin --run latest --location gs://bucket/cache\n")  # fmt: skip
@click.argument("keys", nargs=-1, metavar="[KEY ...]")
@click.option("--run", metavar="RUN", help="Pin what a run has asked for so far, or `latest`.")
@click.option("--why", default="", metavar="TEXT", help="Kept with the pin.")
@location_option
@run_dirs
@signing_key_file
@json_option
def pin(
    keys: tuple[str, ...],
    run: str | None,
    why: str,
    location: str | None,
    run_dirs: tuple[str, ...],
    signing_key_file: str | None,
    as_json: bool,
) -> None:
    """Keep entries, whatever `gc` or a directory's bound would have go.

    KEY may be the beginning of a key, or of the hash in it, as long as it is one entry's alone.
    A bucket's own lifecycle rules know of no pins.
    """
    import socket
    import time

    from hotstart.cache import pins
    from hotstart.cache.announcements import settle
    from hotstart.cache.heads import in_order
    from hotstart.cache.inventory import list_entries
    from hotstart.cache.signing import SealedStore
    from hotstart.launcher.identity import OwnerIdentity

    store = open_location(location)
    seal = open_seal(store, signing_key_file)
    meant = _named(store, seal, keys, run, run_dirs)
    names, source, run = meant.names, meant.source, meant.run
    user = OwnerIdentity.of_this_process().user
    facts = pins.PinFacts(f"{user}@{socket.gethostname()}", time.time(), why)
    sealed = SealedStore(store, seal)
    pinning = in_order(lambda name: pins.pin(sealed, name, source, facts), names)
    created = dict(zip(names, pinning, strict=True))
    settled = settle(store, names)
    # After that: what is there now no collector deletes; see `announcements.py`.
    there = {one.stat.name for one in list_entries(store)} - settled.unsure.keys()
    there -= _unsound(store, seal, sorted(settled.contended & there))
    lost = [name for name in names if name not in there and name not in settled.unsure]
    for name in lost:
        if created[name]:  # another's pin is another's to take away
            pins.unpin(store, name, source)
    pinned = [name for name in names if name in there]
    new = sum(created[name] for name in pinned)
    told = _Pinned(pinned, new, lost, dict(settled.unsure), meant.absent)
    _tell_pins(store, run, as_json, told)
    sys.exit(_PROBLEMS if told.lost or told.unsure or told.absent else 0)


@click.command(epilog="\b\nExamples:\n  hotstart cache unpin jit_step-14ac577c\n"
               "  hotstart cache unpin --run bytelm-20261124-163001-3f2a\n")  # fmt: skip
@click.argument("keys", nargs=-1, metavar="[KEY ...]")
@click.option("--run", metavar="RUN", help="Take away the pins that were set for this run.")
@location_option
@run_dirs
@signing_key_file
@json_option
def unpin(
    keys: tuple[str, ...],
    run: str | None,
    location: str | None,
    run_dirs: tuple[str, ...],
    signing_key_file: str | None,
    as_json: bool,
) -> None:
    """Take pins away again: those set by key, or those set for a run; not the other's.

    KEY and RUN may be of an entry or a run that is gone: what counts are the pins.
    """
    from hotstart.cache import pins
    from hotstart.cache.heads import in_order
    from hotstart.launcher.errors import UsageError

    store = open_location(location)
    if bool(keys) == (run is not None):
        raise UsageError("unpin: give either keys or --run RUN")
    pinned = pins.list_pins(store)
    if run is None:
        folders, source = [_pinned_by_key(store, pinned, key) for key in keys], pins.BY_KEY
    else:
        run = _latest_run(store, pinned, run_dirs, signing_key_file) if run == "latest" else run
        folders, source = list(pinned), pins.source_of_run(run)
    found = [pinned[f][source] for f in dict.fromkeys(folders) if source in pinned.get(f, {})]
    deleting = in_order(lambda stat: store.delete(stat.name, stat.generation), found)
    gone = [stat.name.split("/")[2] for stat, was in zip(found, deleting, strict=True) if was]
    if as_json:
        click.echo(json.dumps({"location": store.url, "run": run, "unpinned": gone}, indent=2))
        return
    click.echo(f"{store.url}: {len(gone)} unpinned" + (f" of run {run}" if run else ""))
    if run is not None and not found:
        click.echo(f"pins here are of: {_pinning_runs(pinned)}")


def _pinned_by_key(store: Store, pinned: Pins, text: str) -> str:
    """The folder of the pins of the entry that is meant; raises `UsageError`.

    It need not have any, nor need it be there if it has.
    """
    from hotstart.cache import pins
    from hotstart.cache.eviction import pin_folder
    from hotstart.launcher.errors import UsageError
    from hotstart.launcher.find_entry import find_one

    by_key = pins.pinned_as({f for f, sources in pinned.items() if pins.BY_KEY in sources}, text)
    if len(by_key) > 1:
        shown = ", ".join(sorted(pins.key_of(folder) for folder in by_key)[:_SHOWN])
        raise UsageError(f"{text!r} may be any of {len(by_key)} pins by key: {shown}; give more")
    if by_key:
        return by_key.pop()
    try:
        return pin_folder(find_one(store, text))
    except UsageError as error:
        there = [pins.key_of(f) for f, sources in pinned.items() if pins.BY_KEY in sources]
        more = f" and {len(there) - _SHOWN} more" if len(there) > _SHOWN else ""
        shown = f"{', '.join(there[:_SHOWN])}{more}" if there else "none"
        raise UsageError(f"{error}; pinned by key are: {shown}") from error


def _latest_run(
    store: Store, pinned: Pins, run_dirs: tuple[str, ...], signing_key_file: str | None
) -> str:
    from hotstart.launcher.errors import RunNotFound
    from hotstart.launcher.run_needs import run_named

    seal = open_seal(store, signing_key_file)
    try:
        return run_named(run_locations(run_dirs), "latest", seal.keyring).name
    except RunNotFound as error:
        raise RunNotFound(
            f"{error}; pins in {store.url} are of: {_pinning_runs(pinned)}"
        ) from error


def _pinning_runs(pinned: Pins) -> str:
    from hotstart.cache import pins

    runs = {pins.run_of(source) for sources in pinned.values() for source in sources} - {None}
    return ", ".join(sorted(map(str, runs))) or "no run"


class _Meant(NamedTuple):
    """Names of entries, the source of their pins, the run; what that asked for and isn't there."""

    names: list[str]
    source: str
    run: str | None
    absent: list[str]


def _named(
    store: Store,
    seal: Seal,
    keys: tuple[str, ...],
    run: str | None,
    run_dirs: tuple[str, ...],
) -> _Meant:
    """Raises `UsageError`."""
    from hotstart.cache import pins
    from hotstart.launcher.errors import UsageError

    if bool(keys) == (run is not None):
        raise UsageError("pin: give either keys or --run RUN")
    if run is None:
        from hotstart.launcher.find_entry import find_one

        return _Meant([find_one(store, key) for key in keys], pins.BY_KEY, None, [])
    from hotstart.cache.inventory import list_entries
    from hotstart.cache.signing import SealedStore
    from hotstart.launcher.run_needs import needed_by, needs_of_run

    needs = needs_of_run(run_locations(run_dirs), run, seal.keyring, SealedStore(store, seal))
    if needs.unread:
        raise UsageError(
            f"what run {needs.run} in {needs.run_dir} asked for can't all be read, or is not "
            "signed with a key of this host; set the key of its launch. Nothing was pinned"
        )
    there = {one.stat.name for one in list_entries(store)}
    wanted = sorted(needed_by([needs]))
    names = [name for name in wanted if name in there]
    if not names:
        raise UsageError(
            f"run {needs.run} in {needs.run_dir} asked for {len(needs.keys)} programs, of which "
            f"none is in {store.url}; name its cache with --location"
        )
    absent = [name for name in wanted if name not in there]
    return _Meant(names, pins.source_of_run(needs.run), needs.run, absent)


def _unsound(store: Store, seal: Seal, names: list[str]) -> set[str]:
    """Of entries that a collector was about to delete: what it left is not the whole of them."""
    from hotstart.cache.transfer import Unsound, read_sound

    return {one.name for one in read_sound(store, names, seal) if isinstance(one, Unsound)}


class _Pinned(NamedTuple):
    pinned: list[str]
    new: int
    lost: list[str]
    unsure: dict[str, str]
    absent: list[str]


def _tell_pins(store: Store, run: str | None, as_json: bool, told: _Pinned) -> None:
    pinned = told.pinned
    if as_json:
        facts = {
            "location": store.url,
            "run": run,
            "pinned": pinned,
            "new": told.new,
            "gone": told.lost,
            "unsure": told.unsure,
            "absent": told.absent,
        }
        click.echo(json.dumps(facts, indent=2))
        return
    of_run = f" for run {run}" if run else ""
    click.echo(
        f"{store.url}: {len(pinned)} pinned{of_run}, {len(pinned) - told.new} of them before"
    )
    for name in told.lost:
        click.echo(f"  {name}: gone meanwhile, and not pinned")
    for name, why in told.unsure.items():
        click.echo(f"  {name}: pinned, but {why}; see that it has ended, and pin it again")
    for name in told.absent:
        click.echo(f"  {name}: asked for by the run, and not in this cache")
