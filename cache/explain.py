"""Why a program was compiled: what its key differs in from the nearest earlier one of its name.

Pure but for `entries_of`, which reads a store. Of the earlier keys of a module the nearest is the
one that differs in the fewest components, of those the one that differs in the fewest things, and
of those the most recent. Keys that the same processes asked for as well are set aside where there
are others: a module that comes in several shapes has several keys side by side.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from hotstart.cache.description import Description, from_text
from hotstart.cache.differences import Comparison, compare
from hotstart.cache.directory import DirectoryStore
from hotstart.cache.entry import VERSION, decode_named, entry_name, module_of
from hotstart.cache.errors import EntryError, StoreError
from hotstart.cache.signing import UNSEALED, Seal
from hotstart.cache.store import ObjectStat, Store

PREFIX = f"entries/v{VERSION}/"
MAX_READ = 24  # entries of a module, the latest ones
_NAME = re.compile(rf"{PREFIX}([0-9a-f]{{64}})(?:-([A-Za-z0-9_.]+))?(?:~(\d))?")


@dataclass(frozen=True)
class Known:
    """A key of which something is known.

    order: grows with time, among those that are compared.
    where: an entry's name, or which attempt asked for it.
    description: None where none was recorded, as by an older hotstart.
    """

    key: str
    order: float
    where: str
    description: Description | None = None


@dataclass(frozen=True)
class Nearest:
    """The earlier key that is nearest to one, what differs, and among how many it was chosen."""

    known: Known
    comparison: Comparison
    considered: int

    @property
    def choice(self) -> str:
        """Why this one."""
        if self.considered == 1:
            return "it is the only earlier key of this module of which that is known"
        return (
            f"of {self.considered} earlier keys of this module it differs in the fewest "
            "components of the key, then in the fewest things, then it is the latest"
        )


def nearest(
    description: Description, earlier: Iterable[Known], beside: Collection[str] = ()
) -> Nearest | None:
    """The nearest of the earlier keys; None where none is described.

    `beside` are keys that were asked for together with this one.
    """
    known = [one for one in earlier if one.description is not None]
    known = [one for one in known if one.key not in beside] or known
    found = [
        (compare(one.description, description), one) for one in known if one.description is not None
    ]
    if not found:
        return None
    comparison, one = min(found, key=lambda pair: (pair[0].distance, -pair[1].order))
    return Nearest(one, comparison, len(found))


def entries_of(
    store: Store,
    module: str,
    seal: Seal = UNSEALED,
    *,
    always: Collection[str] = (),
    unread: Collection[str] = (),
) -> list[Known]:
    """The entries of a module, the oldest first; the latest `MAX_READ` are read, and `always`.

    Both are keys; of those in `unread` it is enough to know that they are there. What does not
    verify counts as not there. Raises `StoreError`.
    """
    wanted = entry_name(f"{module}-{'0' * 64}").removeprefix(f"{PREFIX}{'0' * 64}-")
    stats = sorted(
        (stat for stat, _, name in listed(store) if name == wanted),
        key=lambda stat: (stat.modified_s, stat.name),
    )
    names = {entry_name(key) for key in always}
    chosen = {stat.name for stat in stats[-MAX_READ:]} | names
    chosen_stats = [stat for stat in stats if stat.name.partition("~")[0] in chosen]

    listed_only = {entry_name(key): key for key in unread}

    def read(stat: ObjectStat) -> Known | None:
        key = listed_only.get(stat.name.partition("~")[0])
        if key is not None:
            return Known(key, stat.modified_s, stat.name)
        return _read(store, stat, seal)

    with ThreadPoolExecutor(8, thread_name_prefix="hotstart-explain") as pool:
        found = [one for one in pool.map(read, chosen_stats) if one is not None]
    return [one for one in found if module_of(one.key) == module]


def listed(store: Store) -> Iterator[tuple[ObjectStat, str, str]]:
    """The entries of a store without reading them: the stat, the key's hash, the module."""
    for stat in store.list(PREFIX):
        if match := _NAME.fullmatch(stat.name):
            yield stat, match[1], match[2] or ""


def _read(store: Store, stat: ObjectStat, seal: Seal) -> Known | None:
    try:
        if isinstance(store, DirectoryStore):  # a look is no use, by which evictions go
            data = store.read_head(stat.name, stat.size_bytes + 1)
        else:
            data = store.get(stat.name)
        if data is None:
            return None
        entry = decode_named(stat.name.partition("~")[0], data, seal)
    except (EntryError, StoreError):
        return None
    return Known(entry.key, stat.modified_s, stat.name, from_text(entry.meta.parts))


def find_keys(store: Store, wanted: str, seal: Seal = UNSEALED) -> Sequence[Known]:
    """The entries that a user may mean by a key, a part of its hash, a name or a module's name.

    The oldest first. Raises `StoreError`.
    """
    wanted = wanted.removeprefix(PREFIX).partition("~")[0]
    stats = list(listed(store))
    hashed = re.search(r"[0-9a-f]{6,64}", wanted)
    exact = [s for s in stats if _is_named(wanted, s[1], s[2])]
    if not exact and hashed and hashed[0] in (wanted, wanted.rpartition("-")[2]):
        exact = [s for s in stats if s[1].startswith(hashed[0])]
    found = exact or [s for s in stats if s[2] == wanted]
    ordered = sorted((s[0] for s in found), key=lambda stat: (stat.modified_s, stat.name))
    return [one for stat in ordered if (one := _read(store, stat, seal)) is not None]


def _is_named(wanted: str, digest: str, module: str) -> bool:
    return wanted in (f"{module}-{digest}", f"{digest}-{module}", digest)
