"""What names alone tell of the objects in a cache: one listing, and nothing is read.

entries/v1/<hash>-<module>      an entry
entries/v1/<hash>-<module>~1    a replacement of it (repair.py)
leases/v1/<entry>@<epoch>...    somebody resolves the key, or did (leases.py)
anything else among entries/    a stray: no reader looks at it
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from hotstart.cache.entry import entry_name
from hotstart.cache.eviction import ENTRIES, is_entry, place_of
from hotstart.cache.lease_view import LEASES, View
from hotstart.cache.store import ObjectStat, Store

Kind = Literal["entry", "replacement", "stray"]
_PARTS = re.compile(r"(?:.*/)?([0-9a-f]{64})(?:-([A-Za-z0-9_.]+))?(?:~[1-9])?")
_KEY = re.compile(r"(?P<module>.+)-(?P<hash>[0-9a-f]{64})", re.DOTALL)
_HASH_PREFIX = re.compile(r"[0-9a-f]{1,64}")


@dataclass(frozen=True)
class Listed:
    """One object among the entries. `module` is as far as the name has it; `hash` the key's."""

    stat: ObjectStat
    kind: Kind
    module: str
    hash: str

    @property
    def key(self) -> str:
        """The key, but for a module whose name is long or has odd characters."""
        return f"{self.module}-{self.hash}" if self.module else self.hash


@dataclass(frozen=True)
class ListedLease:
    """The lease of one key. `last_sign_s` is by the store's clock."""

    entry: str
    epoch: int
    is_released: bool
    last_sign_s: float


def list_entries(store: Store, prefix: str = ENTRIES) -> Iterator[Listed]:
    """What is among the entries, in order of name. Raises `StoreError`."""
    for stat in store.list(prefix):
        match = _PARTS.fullmatch(stat.name)
        if match is None or not is_entry(stat.name):
            yield Listed(stat, "stray", "", "")
            continue
        kind: Kind = "entry" if stat.name == place_of(stat.name) else "replacement"
        yield Listed(stat, kind, match[2] or "", match[1])


def list_leases(store: Store) -> list[ListedLease]:
    """All leases that left a trace, in order of name. Raises `StoreError`."""
    objects: dict[str, list[ObjectStat]] = {}
    for stat in store.list(LEASES):
        objects.setdefault(stat.name.removeprefix(LEASES).rpartition("@")[0], []).append(stat)
    found = []
    for entry, stats in sorted(objects.items()):
        view = View.of(stats)
        if view.epoch:
            is_released = view.done >= view.epoch
            found.append(ListedLease(entry, view.epoch, is_released, view.last_sign_s(view.epoch)))
    return found


def matching(store: Store, text: str) -> list[Listed]:
    """The entries that a person may mean by `text`: the beginning of a key, its hash or a name.

    One request for a whole key, else one listing, of a few entries where `text` has some of the
    hash. Raises `StoreError`.
    """
    match = _KEY.fullmatch(text)
    if match is not None:
        name = entry_name(text)
        stat = store.stat(name)
        return [] if stat is None else [Listed(stat, "entry", match["module"], match["hash"])]
    module, _, tail = text.rpartition("-")
    by_hash = text if _HASH_PREFIX.fullmatch(text) else ""
    in_key = tail if module and _HASH_PREFIX.fullmatch(tail) else ""
    prefix = f"{ENTRIES}v1/{by_hash or in_key}"
    if text.startswith(ENTRIES):
        prefix = text
    found = _entries(list_entries(store, prefix), text)
    if not found and prefix != ENTRIES and by_hash:  # a module may be called `ada`
        found = _entries(list_entries(store), text)
    return found


def _entries(listed: Iterable[Listed], text: str) -> list[Listed]:
    return [
        one
        for one in listed
        if one.kind == "entry"
        and any(name.startswith(text) for name in (one.key, one.hash, one.stat.name))
    ]
