"""`hotstart cache verify`: reads and checks all entries of a cache."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import TYPE_CHECKING

import click

from hotstart.launcher.cache_location import (
    location_argument,
    open_location,
    open_seal,
    signing_key_file,
)
from hotstart.launcher.foreground import json_option

if TYPE_CHECKING:
    from hotstart.cache.verify import Looked

_PROBLEMS = 1


@click.command(epilog="\b\nExamples:\n  hotstart cache verify gs://bucket/cache\n"
               "  hotstart cache verify ~/.hotstart/cache --delete\n\n\b\n"
               "Exit codes:\n  0  all entries are sound, or those that are not were deleted\n"
               "  1  some are not\n  2  the location can't be read\n")  # fmt: skip
@location_argument
@click.option(
    "--delete", is_flag=True, help="Delete what is damaged or misplaced; it is compiled anew."
)
@signing_key_file
@json_option
def verify(location: str | None, delete: bool, signing_key_file: str | None, as_json: bool) -> None:
    """Read every entry of LOCATION and check it: digest, key, name and signature.

    Safe on a cache in use. Signatures are checked where this host has a signing key.
    """
    from hotstart.cache.verify import verify as verify_all
    from hotstart.launcher.progress_bar import counted

    store = open_location(location)
    seal = open_seal(store, signing_key_file)
    found: list[Looked] = []
    entries = size_bytes = 0
    for looked in counted(verify_all(store, seal, delete=delete), "verify"):
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
