"""`hotstart cache show`: all that can be told of one entry."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

from hotstart.launcher.amounts import show_age, show_size, show_time
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
    from hotstart.cache.entry import Head
    from hotstart.cache.signing import Seal, SealedStore
    from hotstart.cache.store import ObjectStat, Store


@click.command(epilog="\b\nExamples:\n  hotstart cache show jit_step-14ac577c\n"
               "  hotstart cache show 14ac57 --location gs://bucket/cache --json\n")  # fmt: skip
@click.argument("key", metavar="KEY")
@location_option
@run_dirs
@signing_key_file
@json_option
def show(
    key: str,
    location: str | None,
    run_dirs: tuple[str, ...],
    signing_key_file: str | None,
    as_json: bool,
) -> None:
    """Show an entry: its header, signature, replacements, pins, and which runs asked for it.

    KEY may be the beginning of a key, or of the hash in it, as long as it is one entry's alone.
    Reads the whole entry, which is no use of it, and the manifests of the run directories.
    """
    from hotstart.cache.repair import all_names
    from hotstart.cache.signing import SealedStore
    from hotstart.launcher.find_entry import find_one

    store = open_location(location)
    seal = open_seal(store, signing_key_file)
    sealed = SealedStore(store, seal)
    first = find_one(store, key)
    objects = []
    for name in all_names(first):
        stat = store.stat(name)
        if stat is None:
            break
        objects.append(_object_facts(store, seal, first, stat))
    facts = {
        "location": store.url,
        "objects": objects,
        "pins": _pins(store, sealed, first),
        "asked_for_by": _runs(sealed, seal, first, run_dirs),
    }
    if as_json:
        click.echo(json.dumps(facts, indent=2))
    else:
        for line in _lines(facts, time.time()):
            click.echo(line)


def _object_facts(store: Store, seal: Seal, place: str, stat: ObjectStat) -> dict[str, Any]:
    from hotstart.cache.entry import HEAD_BYTES, decode_head, decode_named
    from hotstart.cache.errors import EntryError
    from hotstart.cache.heads import read_whole
    from hotstart.cache.signing import split

    facts: dict[str, Any] = {
        "name": stat.name,
        "size_bytes": stat.size_bytes,
        "modified_s": stat.modified_s,
        "generation": str(stat.generation),  # more than JSON's numbers hold
    }
    data = read_whole(store, stat.name)
    if data is None:
        return facts | {"problem": "it is gone meanwhile"}
    try:
        facts |= _head_facts(decode_head(stat.name, data[:HEAD_BYTES]))
    except EntryError as error:
        return facts | {"problem": str(error)}
    try:
        decode_named(place, data)
        facts["problem"] = None
    except EntryError as error:
        facts["problem"] = str(error)
    return facts | {"signature": _signature(seal, place, split(data)[1], facts["digest"])}


def _head_facts(head: Head) -> dict[str, Any]:
    return {
        "key": head.key,
        **{k: v for k, v in dataclasses.asdict(head.meta).items() if k != "parts"},  # explain's
        "payload_bytes": head.payload_bytes,
        "digest": head.digest.hex(),
    }


def _signature(seal: Seal, place: str, line: bytes, digest_hex: str) -> dict[str, Any]:
    """state: none, unchecked (this host has no key), verifies, or refused."""
    from hotstart.cache.errors import EntryError
    from hotstart.cache.signing import key_id_in

    key_id = key_id_in(line)
    if not line or not seal.keyring:
        return {"state": "unchecked" if line else "none", "key_id": key_id, "why": None}
    try:
        seal.check(place, bytes.fromhex(digest_hex), line)
    except EntryError as error:
        return {"state": "refused", "key_id": key_id, "why": str(error)}
    return {"state": "verifies", "key_id": key_id, "why": None}


def _pins(store: Store, sealed: SealedStore, name: str) -> list[dict[str, Any]]:
    from hotstart.cache.pins import PinFacts, list_pins

    found = []
    for sources in list_pins(store, name).values():
        for source, stat in sources.items():
            data = sealed.get(stat.name)
            facts = None if data is None else PinFacts.from_json(data)
            found.append(
                {"source": source, **(dataclasses.asdict(facts) if facts is not None else {})}
            )
    return found


def _runs(
    sealed: SealedStore, seal: Seal, name: str, run_dirs: Iterable[str]
) -> list[dict[str, Any]]:
    from hotstart.launcher.run_needs import needed_by, read_needs

    needs = read_needs(run_locations(tuple(run_dirs)), seal.keyring, sealed)
    return [
        {"run": one.run, "run_dir": one.run_dir, "state": one.state}
        for one in needed_by(needs).get(name, [])
    ]


def _lines(facts: dict[str, Any], now_s: float) -> Iterable[str]:
    for found in facts["objects"]:
        yield f"{facts['location']}/{found['name']}"
        age = show_age(now_s - found["modified_s"])
        size = f"{show_size(found['size_bytes'])} ({found['size_bytes']} bytes)"
        yield f"  size       {size}, made {show_time(found['modified_s'])}, {age} ago"
        if "key" in found:
            yield f"  key        {found['key']}"
            versions = f"jax {found['jax'] or '?'}, jaxlib {found['jaxlib'] or '?'}"
            platform = found["platform"] or "?"
            yield f"  compiled   in {found['compile_s']:g} s by {versions} on {platform}"
            yield f"  writer     {found['writer'] or '?'}"
            yield f"  payload    {found['payload_bytes']} bytes, digest {found['digest']}"
        yield f"  contents   {found['problem'] or 'verified'}"
        if "signature" in found:
            yield f"  signature  {_signature_text(found['signature'])}"
    for pin in facts["pins"]:
        why = f": {pin['why']}" if pin.get("why") else ""
        by = f" by {pin['who']}, {show_time(pin['at_s'])}{why}" if "who" in pin else ""
        yield f"  pinned     {pin['source']}{by}"
    for run in facts["asked_for_by"]:
        yield f"  asked for  by run {run['run']} ({run['state']}) in {run['run_dir']}"


def _signature_text(signature: dict[str, Any]) -> str:
    state, key_id = signature["state"], signature["key_id"]
    if state == "none":
        return "none"
    if state == "unchecked":
        return f"by the key {key_id or '?'}, not checked: this host has no key"
    return f"verifies, by the key {key_id}" if state == "verifies" else signature["why"]
