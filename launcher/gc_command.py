"""`hotstart cache gc`: what goes from a cache in use, and what stays."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from hotstart.launcher.amounts import DURATION, SIZE, show_size
from hotstart.launcher.cache_location import (
    location_argument,
    open_location,
    open_seal,
    run_dirs,
    run_locations,
    signing_key_file,
)
from hotstart.launcher.foreground import json_option

if TYPE_CHECKING:
    from hotstart.cache.collect import Collected, Stored
    from hotstart.cache.janitor import Limits
    from hotstart.cache.store import Store
    from hotstart.launcher.live_needs import LiveNeeds
    from hotstart.launcher.run_needs import RunNeeds

_PROBLEMS = 1


@click.command(epilog="\b\nExamples:\n"
               "  hotstart cache gc gs://bucket/cache --max-size 50GiB --dry-run\n"
               "  hotstart cache gc --unused-for 10d\n"
               "  hotstart cache gc gs://bucket/cache --max-age 30d --run-dir gs://bucket/runs\n\n"
               "\b\nExit codes:\n  0  done\n  1  some could not be deleted\n"
               "  2  usage, or the location or a run directory can't be read; nothing was deleted\n"
               )  # fmt: skip
@location_argument
@click.option("--max-size", type=SIZE, metavar="SIZE", help="Bring all entries below, like 50GiB.")
@click.option("--max-age", type=DURATION, metavar="AGE", help="Delete those made before, like 10d.")
@click.option(
    "--unused-for",
    type=DURATION,
    metavar="AGE",
    help="Delete those not used for so long. A bucket keeps no last use: see above.",
)
@run_dirs
@click.option(
    "--ended", multiple=True, metavar="RUN", help="Take this run as ended, though it has no end."
)
@click.option("--dry-run", is_flag=True, help="Tell what would go, and why; delete nothing.")
@signing_key_file
@json_option
def gc(
    location: str | None,
    max_size: int | None,
    max_age: float | None,
    unused_for: float | None,
    run_dirs: tuple[str, ...],
    ended: tuple[str, ...],
    dry_run: bool,
    signing_key_file: str | None,
    as_json: bool,
) -> None:
    """Delete entries of LOCATION by age, last use and size; the ones used longest ago first.

    Safe on a cache in use. Pinned entries stay, and those that runs need which have not ended.
    In a bucket an entry counts as used when it was made, or when the last run that asked for it
    gave a sign, as far as the run directories and the cache's own manifests tell. Results of XLA's
    autotuning go by age too, and what killed collectors left.
    """
    import time

    from hotstart.cache.collect import list_stored, store_now_s, with_uses
    from hotstart.cache.janitor import Limits
    from hotstart.cache.signing import SealedStore
    from hotstart.launcher.errors import UsageError
    from hotstart.launcher.live_needs import LiveNeeds, check_told
    from hotstart.launcher.run_needs import last_uses, read_needs

    limits = Limits(max_size, max_age, unused_for)
    if limits == Limits():
        raise UsageError("gc: nothing to go by; give --max-size, --max-age or --unused-for")
    store = open_location(location)
    seal = open_seal(store, signing_key_file)
    sealed = SealedStore(store, seal)
    by_use = max_size is not None or unused_for is not None
    stored = list_stored(store)
    # After the listing: whose entries are in it has a record by now.
    with_ended = by_use and _is_far(store)
    where = run_locations(run_dirs)
    needs = check_told(
        read_needs(where, seal.keyring, sealed, only_live=dry_run and not with_ended, ended=ended)
    )
    if with_ended:
        stored = with_uses(stored, last_uses(needs, sealed))
    kept = _kept(store, stored, [one for one in needs if one.is_live])
    runs = LiveNeeds(where, seal.keyring, sealed, ended)
    now_s = time.time() if dry_run else store_now_s(store)
    fates = _collect(store, stored, kept, limits, runs, now_s, dry_run=dry_run)
    swept = _sweep(store, limits, now_s, dry_run=dry_run)
    _tell(store, stored, kept, fates, swept, needs, limits, dry_run=dry_run, as_json=as_json)
    failed = [one for one in [*fates, *swept] if one.fate.startswith("not deleted")]
    sys.exit(_PROBLEMS if failed else 0)


def _kept(store: Store, stored: Mapping[str, Stored], live: Sequence[RunNeeds]) -> dict[str, str]:
    """What stays, by name, and why."""
    from hotstart.cache.eviction import pin_folder
    from hotstart.cache.pins import list_pins

    pinned = list_pins(store)
    return _needed(store, stored, live) | {
        name: "pinned" for name in stored if pin_folder(name) in pinned
    }


def _needed(store: Store, stored: Mapping[str, Stored], live: Sequence[RunNeeds]) -> dict[str, str]:
    """What live runs need, or may have made, by name, and why that is."""
    from hotstart.launcher.run_needs import needed_by

    needed = needed_by(live)
    kept: dict[str, str] = {}
    for name, there in stored.items():
        made_s = there.candidate.created_s
        maker = next((run for run in live if run.made(made_s, store.url)), None)
        if name in needed:
            kept[name] = f"needed by run {needed[name][0].run}"
        elif maker is not None:
            kept[name] = f"may be of run {maker.run}, which has not ended"
    return kept


def _collect(
    store: Store,
    stored: Mapping[str, Stored],
    kept: Mapping[str, str],
    limits: Limits,
    runs: LiveNeeds,
    now_s: float,
    *,
    dry_run: bool,
) -> list[Collected]:
    """What became of each that goes; of a dry run, what would."""
    from hotstart.cache.collect import Collected, collect
    from hotstart.cache.errors import StoreError
    from hotstart.cache.janitor import choose
    from hotstart.launcher.errors import UsageError
    from hotstart.launcher.progress_bar import counted

    entries = [there.candidate for there in stored.values()]
    condemned = choose(entries, kept, limits, now_s)
    sizes = {entry.name: entry.size_bytes for entry in entries}
    if dry_run:
        return [Collected(one.name, sizes[one.name], one.why, "") for one in condemned]

    def spare(names: Sequence[str]) -> Mapping[str, str]:
        return _needed(store, {name: stored[name] for name in names}, runs.now())

    fates: list[Collected] = []
    collecting = collect(store, stored, condemned, spare=spare)
    try:
        for fate in counted(collecting, "gc", len(condemned)):
            fates.append(fate)  # noqa: PERF402 - what came before the trouble is told
    except (StoreError, UsageError) as error:
        if not fates:
            raise
        for one in condemned[len(fates) :]:  # fates come in this order
            fates.append(Collected(one.name, sizes[one.name], one.why, f"not deleted: {error}"))
    return fates


def _sweep(store: Store, limits: Limits, now_s: float, *, dry_run: bool) -> list[Collected]:
    """The same of what is no entry."""
    from hotstart.cache.collect import Collected
    from hotstart.cache.sweep import find_litter, sweep

    litter = find_litter(store, limits, now_s)
    if dry_run:
        return [Collected(one.stat.name, one.stat.size_bytes, one.why, "") for one in litter]
    return list(sweep(store, litter))


def _tell(
    store: Store,
    stored: Mapping[str, Stored],
    kept: Mapping[str, str],
    fates: Sequence[Collected],
    swept: Sequence[Collected],
    needs: Sequence[RunNeeds],
    limits: Limits,
    *,
    dry_run: bool,
    as_json: bool,
) -> None:
    all_bytes = sum(there.candidate.size_bytes for there in stored.values())
    going = fates if dry_run else [one for one in fates if one.is_deleted]
    gone_bytes = sum(one.size_bytes for one in going)
    live = sorted({one.run for one in needs if one.is_live})
    left = len(stored) - len(going)
    if as_json:
        facts: dict[str, Any] = {
            "location": store.url,
            "dry_run": dry_run,
            "limits": dataclasses.asdict(limits),
            "entries": len(stored),
            "size_bytes": all_bytes,
            "deleted": 0 if dry_run else len(going),
            "deleted_bytes": 0 if dry_run else gone_bytes,
            "live_runs": live,
            "kept": kept,
            "condemned": [dataclasses.asdict(one) for one in fates],
            "swept": [dataclasses.asdict(one) for one in swept],
        }
        click.echo(json.dumps(facts, indent=2))
        return
    for one in [*fates, *swept]:
        fate = f" ({one.fate})" if one.fate not in ("", "deleted") else ""
        click.echo(f"  {one.name}: {show_size(one.size_bytes)}, {one.why}{fate}")
    verb = "would be deleted" if dry_run else "deleted"
    click.echo(
        f"{store.url}: {len(going)} of {len(stored)} entries {verb}, {show_size(gone_bytes)} of "
        f"{show_size(all_bytes)}; {left} stay, {len(kept)} of them kept by pins or live runs"
    )
    if swept:
        gone = swept if dry_run else [one for one in swept if one.is_deleted]
        size = show_size(sum(one.size_bytes for one in gone))
        click.echo(f"{len(gone)} of {len(swept)} other objects {verb}, {size}")
    if live:
        click.echo(f"runs that have not ended: {', '.join(live)}")
    if limits.max_size_bytes is not None and all_bytes - gone_bytes > limits.max_size_bytes:
        failed = any(one.fate.startswith("not deleted") for one in fates)
        reason = "some could not be deleted" if failed else "it is kept"
        click.echo(f"what stays is more than {show_size(limits.max_size_bytes)}: {reason}")
    if dry_run:
        click.echo("ages are by this host's clock; without --dry-run they are by the store's")


def _is_far(store: Store) -> bool:
    return store.url.startswith("gs://")
