"""Looks at every entry of a location, and takes out those that are of no use to anybody.

An entry is sound if it verifies as the entry of the key that it names, under that key's name and,
where there is a signing key, with a right signature. Readers check the same and compile anew where
it fails, so what is found here has cost time and no result. Safe on a location in use: what a
writer puts there meanwhile is left alone, since a deletion takes the generation that was looked at.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from hotstart.cache.entry import VERSION, decode_named
from hotstart.cache.errors import (
    BadSignature,
    EntryError,
    StoreError,
    StoreMissing,
    Unsigned,
    WrongKey,
)
from hotstart.cache.eviction import is_entry, place_of
from hotstart.cache.heads import in_order, read_whole
from hotstart.cache.repair import all_names
from hotstart.cache.signing import UNSEALED, Seal
from hotstart.cache.store import ObjectStat, Store

PREFIX = f"entries/v{VERSION}/"
Problem = Literal["damaged", "unsigned", "bad-signature", "misplaced", "unreadable"]
_DELETED = ("damaged", "misplaced")
_MOST_LOOKS = 3


@dataclass(frozen=True)
class Looked:
    """One object and what was found; `problem` is None where it is sound.

    damaged: its bytes are not what was written. misplaced: a sound entry of another name, or an
    object that has no business here. unsigned, bad-signature: for the keys of this host and this
    spelling of the location, so never deleted: others may rightly use them. unreadable: it may be
    sound.
    deletion: None where it was not asked for; else whether it is gone, or why it is not.
    """

    name: str
    size_bytes: int
    problem: Problem | None = None
    detail: str = ""
    deletion: str | None = None


def verify(
    store: Store, seal: Seal = UNSEALED, *, delete: bool = False, threads: int = 8
) -> Iterator[Looked]:
    """Look at each object among the entries of this format's version, in order of name.

    Reads all of them, each at once into memory, on `threads` threads; objects that go meanwhile
    are left out. With `delete`, what is damaged or misplaced is deleted, but for an entry that has
    a replacement under a further name: readers find that only past it. Raises `StoreError`.
    """
    look = functools.partial(_look, store, seal, delete=delete)
    yield from filter(None, in_order(look, store.list(PREFIX), threads=threads))


def _look(store: Store, seal: Seal, stat: ObjectStat, *, delete: bool) -> Looked | None:
    try:
        seen = _read_and_judge(store, seal, stat)
    except StoreMissing:
        raise
    except StoreError as error:
        return Looked(stat.name, stat.size_bytes, "unreadable", str(error))
    if seen is None:
        return None
    stat, size_bytes, found = seen
    if found is None:
        return Looked(stat.name, size_bytes)
    problem, detail = found
    deletion = _delete(store, stat) if delete and problem in _DELETED else None
    return Looked(stat.name, size_bytes, problem, detail, deletion)


def _read_and_judge(
    store: Store, seal: Seal, stat: ObjectStat
) -> tuple[ObjectStat, int, tuple[Problem, str] | None] | None:
    """What was looked at, its size, and what is wrong with it; None where it is gone.

    What was replaced between the listing and the read is looked at again.
    """
    for looks_left in reversed(range(_MOST_LOOKS)):
        data = read_whole(store, stat.name)
        if data is None:
            return None
        found = _judge(stat.name, data, seal)
        now = None if found is None else store.stat(stat.name)
        if found is None or (now is not None and now.generation == stat.generation):
            return stat, len(data), found
        if now is None:
            return None
        if not looks_left:
            return stat, len(data), found
        stat = now
    return None


def _delete(store: Store, stat: ObjectStat) -> str:
    names = all_names(place_of(stat.name))
    further = next((name for name in names if name > stat.name), None)
    try:
        if further is not None and store.stat(further) is not None:
            return f"kept: readers go by it to {further}"
        return "gone" if store.delete(stat.name, stat.generation) else "replaced meanwhile"
    except StoreError as error:
        return f"not deleted: {error}"


def _judge(name: str, data: bytes, seal: Seal) -> tuple[Problem, str] | None:
    if not is_entry(name):
        return "misplaced", "this is no name of an entry"
    try:
        decode_named(place_of(name), data, seal)
    except Unsigned as error:
        return "unsigned", str(error)
    except BadSignature as error:
        return "bad-signature", str(error)
    except WrongKey as error:
        return "misplaced", str(error)
    except EntryError as error:
        return "damaged", str(error)
    return None
