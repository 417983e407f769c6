"""`hotstart cache stats`: what is in a cache, counted."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click

from hotstart.launcher.amounts import show_size
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
    from hotstart.launcher.entry_rows import Row

_AGES = (("1 day", 86400.0), ("7 days", 7 * 86400.0), ("30 days", 30 * 86400.0))
_UNKNOWN = "unknown"


@click.command(epilog="\b\nExamples:\n  hotstart cache stats\n"
               "  hotstart cache stats gs://bucket/cache --run-dir gs://bucket/runs --json\n"
               "  hotstart cache stats --quick\n")  # fmt: skip
@location_argument
@click.option(
    "--quick", is_flag=True, help="Names alone: no versions and no writers, no request an entry."
)
@click.option(
    "--jax",
    metavar="VERSION",
    help="What is not stale [default: the JAX that is installed here].",
)
@run_dirs
@signing_key_file
@json_option
def stats(
    location: str | None,
    quick: bool,
    jax: str | None,
    run_dirs: tuple[str, ...],
    signing_key_file: str | None,
    as_json: bool,
) -> None:
    """Count the entries of LOCATION: by module, age, JAX version and writer, and what is kept.

    Entries of another JAX are stale: it never asks for them. Reads the first 32 KiB of each entry.
    """
    from hotstart.cache.eviction import place_of
    from hotstart.cache.inventory import list_entries
    from hotstart.cache.signing import SealedStore
    from hotstart.launcher.entry_rows import rows_of
    from hotstart.launcher.run_needs import needed_by, read_needs

    store = open_location(location)
    seal = open_seal(store, signing_key_file)
    found = [one for one in list_entries(store) if one.kind != "stray"]
    rows = rows_of(store, found, reads=not quick)
    live = read_needs(
        run_locations(run_dirs), seal.keyring, SealedStore(store, seal), only_live=True
    )
    needed = needed_by(live)
    sizes = {one.stat.name: one.stat.size_bytes for one in found}
    now_s = time.time()
    facts: dict[str, Any] = {
        "location": store.url,
        **_sum(rows),
        "by_module": _grouped(rows, lambda row: row.listed.module or _UNKNOWN),
        "by_age": _grouped(rows, lambda row: _age_class(now_s - row.listed.stat.modified_s)),
        "pinned": _sum(row for row in rows if row.pins),
        "needed_by_live_runs": _sum(
            row for row in rows if place_of(row.listed.stat.name) in needed
        ),
        "live_runs": {
            run.run: _sum_of(sizes, (name for name in needed if run in needed[name]))
            for run in live
        },
    }
    if not quick:
        current = jax or _installed_jax()
        facts["by_version"] = _grouped(rows, lambda row: row.version or _UNKNOWN)
        facts["by_platform"] = _grouped(rows, lambda row: row.meta("platform") or _UNKNOWN)
        facts["by_writer"] = _grouped(
            rows, lambda row: row.meta("writer").split("/")[0] or _UNKNOWN
        )
        facts["jax"] = current
        facts["stale"] = _sum(row for row in rows if row.meta("jax") not in ("", current))
        facts["unreadable"] = _sum(row for row in rows if isinstance(row.head, str))
    if as_json:
        click.echo(json.dumps(facts, indent=2))
    else:
        _print_stats(facts)


def _sum(rows: Iterable[Row]) -> dict[str, int]:
    sizes = [row.listed.stat.size_bytes for row in rows]
    return {"entries": len(sizes), "size_bytes": sum(sizes)}


def _sum_of(sizes: dict[str, int], names: Iterable[str]) -> dict[str, int]:
    there = [sizes[name] for name in names if name in sizes]
    return {"entries": len(there), "size_bytes": sum(there)}


def _grouped(rows: Sequence[Row], by: Callable[[Row], str]) -> dict[str, dict[str, int]]:
    """Number and bytes by group, the most bytes first."""
    entries: Counter[str] = Counter()
    size_bytes: Counter[str] = Counter()
    for row in rows:
        entries[by(row)] += 1
        size_bytes[by(row)] += row.listed.stat.size_bytes
    return {
        group: {"entries": entries[group], "size_bytes": total}
        for group, total in sorted(size_bytes.items(), key=lambda item: (-item[1], item[0]))
    }


def _age_class(age_s: float) -> str:
    return next((f"up to {name}" for name, most_s in _AGES if age_s <= most_s), "older")


def _host(writer: str) -> str:
    return writer.partition("/")[0] or _UNKNOWN  # HOST/PID


def _installed_jax() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("jax")
    except PackageNotFoundError:
        return ""


def _print_stats(facts: dict[str, Any]) -> None:
    def line(name: str, group: dict[str, int], indent: str = "  ") -> None:
        size = show_size(group["size_bytes"])
        click.echo(f"{indent}{name}: {group['entries']} entries, {size}")

    line(facts["location"], facts, "")
    for title in ("module", "age", "version", "platform", "writer"):
        groups = facts.get(f"by_{title}")
        if groups:
            click.echo(f"by {title}")
            for name, group in groups.items():
                line(name, group)
    if "stale" in facts:
        line(f"stale, not of JAX {facts['jax']}", facts["stale"], "")
    if facts.get("unreadable", {}).get("entries"):
        line("unreadable", facts["unreadable"], "")
    line("pinned", facts["pinned"], "")
    line("needed by runs that have not ended", facts["needed_by_live_runs"], "")
    for run, group in facts["live_runs"].items():
        line(run, group)
