"""`hotstart cache`: look after a cache, whoever fills it. None of it needs Ray or JAX."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hotstart.launcher.explain_commands import explain, warm

if TYPE_CHECKING:
    from hotstart.cache.verify import Looked

_PROBLEMS = 1


@click.group()
def cache() -> None:
    """Look after a cache: a directory or gs://bucket/prefix."""


cache.add_command(explain)
cache.add_command(warm)


@cache.command(epilog="\b\nExamples:\n  hotstart cache verify gs://bucket/cache\n"
               "  hotstart cache verify ~/.hotstart/cache --delete\n\n\b\n"
               "Exit codes:\n  0  all entries are sound, or those that are not were deleted\n"
               "  1  some are not\n  2  the location can't be read\n")  # fmt: skip
@click.argument("location", metavar="LOCATION")
@click.option(
    "--delete", is_flag=True, help="Delete what is damaged or misplaced; it is compiled anew."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output.")
def verify(location: str, delete: bool, as_json: bool) -> None:
    """Read every entry of LOCATION and check it: digest, key, name and signature.

    Safe on a cache in use. Signatures are checked where this host has a signing key.
    """
    from hotstart.cache.errors import StoreMissing
    from hotstart.cache.keyring import load_keyring
    from hotstart.cache.signing import Seal
    from hotstart.cache.store import open_store
    from hotstart.cache.verify import verify as verify_all

    store = open_store(location)
    if not store.url.startswith("gs://") and not Path(store.url).is_dir():
        raise StoreMissing(f"{store.url}: there is no such directory")
    seal = Seal(load_keyring(), store.url)
    found: list[Looked] = []
    entries = size_bytes = 0
    for looked in _shown(verify_all(store, seal, delete=delete)):
        entries, size_bytes = entries + 1, size_bytes + looked.size_bytes
        if looked.problem is not None:
            found.append(looked)
    left = [looked for looked in found if looked.deletion != "gone"]
    if as_json:
        facts = {
            "location": store.url,
            "entries": entries,
            "size_bytes": size_bytes,
            "signed_with": list(seal.keyring.ids),
            "problems": [dataclasses.asdict(looked) for looked in found],
        }
        click.echo(json.dumps(facts, indent=2))
    else:
        click.echo(
            f"{store.url}: {entries} entries, {size_bytes} bytes: {entries - len(found)} sound, "
            f"{len(found)} not" + (f", {len(found) - len(left)} of them deleted" if delete else "")
        )
        for looked in found:
            done = f" ({looked.deletion})" if looked.deletion else ""
            click.echo(f"  {looked.problem}: {looked.name}: {looked.detail}{done}")
        if left and not delete:
            click.echo("--delete takes out what is damaged or misplaced")
    sys.exit(_PROBLEMS if left else 0)


def _shown(looked: Iterator[Looked]) -> Iterator[Looked]:
    """With the count so far on standard error, where that is a terminal."""
    if not sys.stderr.isatty():
        yield from looked
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = SpinnerColumn(), TextColumn("{task.completed:.0f} entries"), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("verify", total=None)
        for one in looked:
            progress.advance(task)
            yield one
