"""Brings entries from one place to another, one by one, each verified on its way.

A signature holds for one location (signing.py). Into a location with a signing key an entry goes
as it is where its signature verifies there; else it is refused unless the caller asks to sign it,
for whoever made the bundle need not have had the key: to sign is to vouch for native code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from hotstart.cache.entry import HEAD_BYTES, Entry, decode_head, decode_named, entry_name
from hotstart.cache.errors import EntryError
from hotstart.cache.heads import in_order, read_whole
from hotstart.cache.repair import all_names
from hotstart.cache.signing import UNSEALED, Seal, split
from hotstart.cache.store import Store

Fate = Literal["new", "there", "bad", "refused"]
_AT_ONCE = 4  # entries in memory, twice as many with those that wait


@dataclass(frozen=True)
class Brought:
    """What became of one entry; `source` is what it was called where it came from."""

    source: str
    key: str
    size_bytes: int
    fate: Fate
    detail: str = ""


@dataclass(frozen=True)
class Sound:
    """An entry of a store that verifies, and its bytes."""

    entry: Entry
    data: bytes


@dataclass(frozen=True)
class Unsound:
    """An entry of which nothing that is stored verifies, and why; None where it is not there."""

    name: str
    why: str | None


def read_sound(
    store: Store, names: Iterable[str], seal: Seal = UNSEALED
) -> Iterator[Sound | Unsound]:
    """The entries that belong under these names, or their replacements. Raises `StoreError`.

    A request each and one more for each that is bad; reading a directory so is no use of it.
    """

    def read(name: str) -> Sound | Unsound:
        why: str | None = None
        for further in all_names(name):
            data = read_whole(store, further)
            if data is None:
                break
            try:
                return Sound(decode_named(name, data, seal), data)
            except EntryError as error:
                why = str(error)
        return Unsound(name, why)

    yield from in_order(read, names, threads=_AT_ONCE)


def bring(
    store: Store,
    seal: Seal,
    entries: Iterable[tuple[str, bytes]],
    *,
    sign: bool = False,
    threads: int = _AT_ONCE,
) -> Iterator[Brought]:
    """Verify and create entries, given by what they are called and their bytes; in that order.

    One request each; never overwrites. Raises `StoreError`, and whatever `entries` raises, after
    which those that were told are in the store.
    """

    def create(pair: tuple[str, bytes]) -> Brought:
        source, data = pair
        key = ""
        try:
            key = decode_head(source, data[:HEAD_BYTES]).key
            name = entry_name(key)
            entry = decode_named(name, data)
        except EntryError as error:
            return Brought(source, key, len(data), "bad", str(error))
        try:
            seal.check(name, entry.digest, split(data)[1])
        except EntryError as error:
            if not sign:
                return Brought(source, key, len(data), "refused", str(error))
            data = split(data)[0] + seal.sign(name, entry.digest)
        created = store.create(name, data)
        return Brought(source, key, len(data), "new" if created else "there")

    yield from in_order(create, entries, threads=threads)


def tally(brought: Iterable[Brought], note: Callable[[Brought], None]) -> Mapping[Fate, int]:
    """How many had each fate; `note` is told of each."""
    counts: dict[Fate, int] = {"new": 0, "there": 0, "bad": 0, "refused": 0}
    for one in brought:
        counts[one.fate] += 1
        note(one)
    return counts
