"""The one entry that a person means by the beginning of a key."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

from hotstart.launcher.errors import UsageError

if TYPE_CHECKING:
    from hotstart.cache.store import Store

_SHOWN = 5


def find_one(store: Store, text: str) -> str:
    """The name of the entry; raises `UsageError`, which names the nearest or all that it may be."""
    from hotstart.cache.inventory import list_entries, matching

    found = matching(store, text)
    exact = [one for one in found if text in (one.key, one.hash, one.stat.name)]
    if len(found) == 1 or len(exact) == 1:
        return (exact or found)[0].stat.name
    if found:
        shown = ", ".join(one.key for one in found[:_SHOWN])
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise UsageError(
            f"{text!r} may be any of {len(found)} entries: {shown}{more}; give more of it"
        )
    there = [one.key for one in list_entries(store) if one.kind == "entry"]
    if not there:
        raise UsageError(f"no entry {text!r}: {store.url} has none at all")
    modules = {key.rpartition("-")[0]: key for key in there}
    near = get_close_matches(text, there, n=3, cutoff=0.5) or [
        modules[module]
        for module in get_close_matches(text.rpartition("-")[0] or text, modules, n=3, cutoff=0.5)
    ]
    nearest = f"the nearest are {', '.join(near)}" if near else f"{len(there)} entries are there"
    raise UsageError(
        f"no entry {text!r} in {store.url}; {nearest}; see `hotstart cache ls {store.url}`"
    )
