"""`hotstart cache ls`: the entries of a cache, by names alone or by their heads too."""

from __future__ import annotations

import fnmatch
import json
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from hotstart.launcher.amounts import DURATION, SIZE, show_age, show_size, show_time
from hotstart.launcher.cache_location import location_argument, open_location
from hotstart.launcher.foreground import json_option

if TYPE_CHECKING:
    from hotstart.cache.inventory import Listed
    from hotstart.launcher.entry_rows import Row

_SORTS: dict[str, tuple[Callable[[Row], Any], bool]] = {
    "name": (lambda row: row.listed.stat.name, False),
    "module": (lambda row: (row.listed.module, row.listed.stat.name), False),
    "size": (lambda row: row.listed.stat.size_bytes, True),
    "age": (lambda row: row.listed.stat.modified_s, False),
    "compile": (lambda row: row.compile_s or 0.0, True),
}


@click.command(epilog="\b\nExamples:\n  hotstart cache ls\n"
               "  hotstart cache ls gs://bucket/cache --module 'jit_*' --sort size\n"
               "  hotstart cache ls --long --sort compile --limit 20\n")  # fmt: skip
@location_argument
@click.option("--module", metavar="GLOB", help="Only modules like this one.")
@click.option("--larger-than", type=SIZE, metavar="SIZE", help="Only these.")
@click.option("--older-than", type=DURATION, metavar="AGE", help="Only those made before.")
@click.option("--newer-than", type=DURATION, metavar="AGE", help="Only those made since.")
@click.option("--jax", metavar="VERSION", help="Only those of this JAX; reads as --long does.")
@click.option("--writer", metavar="TEXT", help="Only whose writer has TEXT; reads as --long does.")
@click.option("--pinned", is_flag=True, help="Only pinned ones.")
@click.option(
    "--sort",
    type=click.Choice(list(_SORTS)),
    default="module",
    help="Largest, oldest or slowest to compile first [default: module]; "
    "compile reads as --long does.",
)
@click.option("--reverse", is_flag=True, help="The other way round.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="No more than these.")
@click.option(
    "--long",
    "is_long",
    is_flag=True,
    help="Compile seconds, versions and writer too: reads the first 32 KiB of each entry, one "
    "request each; without it there is one for 1000 entries.",
)
@click.option("--all", "everything", is_flag=True, help="Replacements, strays and leases too.")
@json_option
def ls(
    location: str | None,
    module: str | None,
    larger_than: int | None,
    older_than: float | None,
    newer_than: float | None,
    jax: str | None,
    writer: str | None,
    pinned: bool,
    sort: str,
    reverse: bool,
    limit: int | None,
    is_long: bool,
    everything: bool,
    as_json: bool,
) -> None:
    """List the entries of LOCATION. Nothing of it is verified: that is `hotstart cache verify`."""
    from hotstart.cache.inventory import list_entries, list_leases
    from hotstart.launcher.entry_rows import rows_of

    store = open_location(location)
    now_s = time.time()

    def wanted(one: Listed) -> bool:
        age_s = now_s - one.stat.modified_s
        return (
            (everything or one.kind == "entry")
            and (module is None or fnmatch.fnmatchcase(one.module, module))
            and (larger_than is None or one.stat.size_bytes > larger_than)
            and (older_than is None or age_s > older_than)
            and (newer_than is None or age_s < newer_than)
        )

    found = [one for one in list_entries(store) if wanted(one)]
    reads = is_long or jax is not None or writer is not None or sort == "compile"
    rows = rows_of(store, found, reads=reads)
    if pinned:
        rows = [row for row in rows if row.pins]
    if jax is not None:
        rows = [row for row in rows if row.meta("jax") == jax]
    if writer is not None:
        rows = [row for row in rows if writer in row.meta("writer")]
    by, is_descending = _SORTS[sort]
    rows = sorted(rows, key=by, reverse=is_descending != reverse)[:limit]
    leases = list_leases(store) if everything else []
    if as_json:
        facts: dict[str, Any] = {"location": store.url, "entries": [_row_facts(r) for r in rows]}
        if everything:
            facts["leases"] = [
                {"entry": one.entry, "epoch": one.epoch, "released": one.is_released,
                 "last_sign_s": one.last_sign_s} for one in leases
            ]  # fmt: skip
        click.echo(json.dumps(facts, indent=2))
        return
    _print_rows(rows, now_s, is_long=reads)
    for lease in leases:
        state = "released" if lease.is_released else f"last sign {show_time(lease.last_sign_s)}"
        click.echo(f"lease  {lease.entry}  epoch {lease.epoch}, {state}")
    size_bytes = sum(row.listed.stat.size_bytes for row in rows)
    click.echo(f"{store.url}: {len(rows)} entries, {show_size(size_bytes)}")


def _row_facts(row: Row) -> dict[str, Any]:
    listed, head = row.listed, row.head
    facts: dict[str, Any] = {
        "name": listed.stat.name,
        "kind": listed.kind,
        "module": listed.module,
        "key": listed.key,
        "size_bytes": listed.stat.size_bytes,
        "modified_s": listed.stat.modified_s,
        "pins": list(row.pins),
    }
    if isinstance(head, str):
        facts["problem"] = head
    elif head is not None:
        facts |= {
            "key": head.key,
            "compile_s": head.meta.compile_s,
            "jax": head.meta.jax,
            "jaxlib": head.meta.jaxlib,
            "platform": head.meta.platform,
            "writer": head.meta.writer,
        }
    return facts


def _print_rows(rows: Sequence[Row], now_s: float, *, is_long: bool) -> None:
    if not rows:
        return
    head = ["MODULE", "KEY", "SIZE", "AGE", *(["COMPILE", "JAX", "WRITER"] if is_long else []), ""]
    table = [head, *(_cells(row, now_s, is_long=is_long) for row in rows)]
    widths = [max(len(cells[i]) for cells in table) for i in range(len(head))]
    for cells in table:
        click.echo("  ".join(c.ljust(w) for c, w in zip(cells, widths, strict=True)).rstrip())


def _cells(row: Row, now_s: float, *, is_long: bool) -> list[str]:
    stat = row.listed.stat
    notes = [] if row.listed.kind == "entry" else [f"{row.listed.kind} {stat.name}"]
    notes += ["pinned"] if row.pins else []
    notes += [row.head] if isinstance(row.head, str) else []
    cells = [
        row.listed.module or "-",
        row.listed.hash[:12] or "-",
        show_size(stat.size_bytes),
        show_age(now_s - stat.modified_s),
    ]
    if is_long:
        compile_s = "-" if row.compile_s is None else f"{row.compile_s:.1f}s"
        cells += [compile_s, row.version or "-", row.meta("writer") or "-"]
    return [*cells, ", ".join(notes)]
