"""The names of a key's entry: find one that is of use, take out one that is not, and no other.

    <name>      where it belongs
    <name>~1    what replaces it where the role may create and not delete; then ~2 and ~3

A name is looked at only where what stands under those before it is of no use, so a sound entry
costs one request.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from hotstart.cache.entry import Entry, decode, entry_name
from hotstart.cache.errors import AccessDenied, EntryError
from hotstart.cache.signing import UNSEALED, Seal
from hotstart.cache.store import Store

logger = logging.getLogger(__name__)

REPLACEMENTS = 3


@dataclass(frozen=True)
class Look:
    """What a store has of a key.

    entry, data: an entry that verifies, and its bytes; None and empty where there is none.
    read_bytes: of all that was read for it. bad: what did not verify, by name.
    """

    entry: Entry | None
    data: bytes
    read_bytes: int
    bad: tuple[tuple[str, EntryError], ...] = ()


def entry_names(key: str) -> tuple[str, ...]:
    """Where an entry of `key` may be, in the order of looking."""
    return all_names(entry_name(key))


def all_names(name: str) -> tuple[str, ...]:
    """A name and the further ones, in order."""
    return (name, *(f"{name}~{number}" for number in range(1, REPLACEMENTS + 1)))


def find_entry(
    store: Store,
    key: str,
    seal: Seal = UNSEALED,
    is_useless: Callable[[bytes], bool] = lambda digest: False,
) -> Look:
    """The first entry of `key` that verifies and whose digest is not useless.

    One request, and one more for each that is of no use. Raises `StoreError`.
    """
    bad: list[tuple[str, EntryError]] = []
    read_bytes = 0
    for name in entry_names(key):
        data = store.get(name)
        if data is None:
            break
        read_bytes += len(data)
        try:
            entry = decode(key, data, seal)
        except EntryError as error:
            bad.append((name, error))
            continue
        if not is_useless(entry.digest):
            return Look(entry, data, read_bytes, tuple(bad))
    return Look(None, b"", read_bytes, tuple(bad))


def tell_bad(store: Store, name: str, error: EntryError, look: Look) -> None:
    """Log what did not verify: a warning where nothing has taken its place yet."""
    if look.entry is None:
        logger.warning("%s in %s: %s; it will be replaced", name, store.url, error)
    else:
        logger.info("%s in %s: %s; another is in its place", name, store.url, error)


def make_room(
    store: Store, key: str, seal: Seal = UNSEALED, unloadable: bytes | None = None
) -> str:
    """The name under which to create an entry in place of a bad one, or of `unloadable`'s.

    Where the role may not delete that is the first name without a bad one. Blocks for three
    requests a name at most; raises `StoreError`.
    """
    denied: AccessDenied | None = None
    for name in entry_names(key):
        try:
            discard_bad(store, key, seal, unloadable, name=name)
            return name
        except AccessDenied as error:
            denied = error
    assert denied is not None
    raise denied


def discard_bad(
    store: Store,
    key: str,
    seal: Seal = UNSEALED,
    unloadable: bytes | None = None,
    *,
    name: str | None = None,
) -> None:
    """Remove the entry of `key` if it does not verify or has the digest `unloadable`.

    `name` is where it is, if not where it belongs. What a peer has put there meanwhile stays: the
    generation is older than the bytes looked at. Blocks for three requests at most; raises
    `StoreError`.
    """
    name = name or entry_name(key)
    found = store.stat(name)
    data = None if found is None else store.get(name)
    if found is None or data is None:
        return
    try:
        bad = decode(key, data, seal).digest == unloadable
    except EntryError:
        bad = True
    if bad:
        store.delete(name, found.generation)
