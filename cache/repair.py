"""Take an entry out of a store that is of no use, and no other."""

from __future__ import annotations

from hotstart.cache.entry import decode, entry_name
from hotstart.cache.errors import EntryError
from hotstart.cache.store import Store


def discard_bad(store: Store, key: str, unloadable: bytes | None = None) -> None:
    """Remove the entry of `key` if it does not verify or has the digest `unloadable`.

    What a peer has put there meanwhile stays: the generation is older than the bytes looked at.
    Blocks for three requests at most; raises `StoreError`.
    """
    name = entry_name(key)
    found = store.stat(name)
    data = None if found is None else store.get(name)
    if found is None or data is None:
        return
    try:
        bad = decode(key, data).digest == unloadable
    except EntryError:
        bad = True
    if bad:
        store.delete(name, found.generation)
