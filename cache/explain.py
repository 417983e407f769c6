"""Why a program was compiled: what its key differs in from the nearest earlier one of its name.

Pure but for `entries_of`, `listed` and `find_keys`, which read a store. Of the earlier keys of a
module the nearest is the one that differs in the fewest components, of those the one that differs
in the fewest things, and of those the most recent. Keys that the same process or attempt made as
well are set aside where there are others: a module that comes in several shapes has several keys
side by side.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TypeAlias

from hotstart.cache.description import Description, from_text
from hotstart.cache.differences import Comparison, compare
from hotstart.cache.entry import VERSION, Entry, Head, decode_named, entry_name, module_of
from hotstart.cache.errors import EntryError, StoreError
from hotstart.cache.heads import read_head, read_whole
from hotstart.cache.signing import UNSEALED, Seal
from hotstart.cache.store import ObjectStat, Store

PREFIX = f"entries/v{VERSION}/"
MAX_READ = 24  # entries of a module, the latest ones
_NAME = re.compile(rf"{PREFIX}([0-9a-f]{{64}})(?:-([A-Za-z0-9_.]+))?(?:~(\d))?")

Listed: TypeAlias = tuple[ObjectStat, str, str]  # the stat, the key's hash, the module
Moment: TypeAlias = tuple[float, str]  # in the order in which entries were stored


@dataclass(frozen=True)
class Known:
    """A key of which something is known.

    order: grows with time, among those that are compared.
    where: an entry's name, or which attempt asked for it.
    description: None where none was recorded, as by an older hotstart.
    writer: the host and process id of who stored it, where that is known.
    """

    key: str
    order: float
    where: str
    description: Description | None = None
    writer: str = ""

    @property
    def session(self) -> str:
        """The same for keys that one process or attempt made; "" where that is not known."""
        made = self.description
        if made is None or made.session:
            return made.session if made else ""
        # Process ids come again; a process has one set of flags.
        around = made.flags, made.outside, made.versions
        return f"{self.writer} {around}" if self.writer else ""


@dataclass(frozen=True)
class Nearest:
    """The earlier key that is nearest to one, what differs, and among how many it was chosen.

    beside: how many more were set aside, for they belong beside this key, not before it.
    """

    known: Known
    comparison: Comparison
    considered: int
    beside: int = 0

    @property
    def choice(self) -> str:
        """Why this one."""
        aside = (
            f"; {self.beside} more {'is' if self.beside == 1 else 'are'} set aside, of the same "
            "process or attempt or with other arguments"
            if self.beside
            else ""
        )
        if self.considered == 1:
            return f"it is the only earlier key of this module of which that is known{aside}"
        return (
            f"of {self.considered} earlier keys of this module it differs in the fewest "
            f"components of the key, then in the fewest things, then it is the latest{aside}"
        )


def nearest(
    description: Description,
    earlier: Iterable[Known],
    beside: Collection[str] = (),
    session: str = "",
) -> Nearest | None:
    """The nearest of the earlier keys; None where none is described.

    `beside` are keys that were asked for together with this one, and so are those of its `session`.
    Where one of the others is of the very same program, those that take other arguments are set
    aside as well: they are what a function comes in beside it.
    """
    known = [one for one in earlier if one.description is not None]
    before = [one for one in known if one.key not in beside]
    before = [one for one in before if not session or one.session != session] or before or known
    found = [
        (compare(one.description, description), one)
        for one in before
        if one.description is not None
    ]
    if not found:
        return None
    if any("computation" not in comparison.components for comparison, _ in found):
        found = [pair for pair in found if not _takes_others(pair[0])]
    comparison, one = min(found, key=lambda pair: (pair[0].distance, -pair[1].order))
    return Nearest(one, comparison, len(found), len(known) - len(found))


def _takes_others(comparison: Comparison) -> bool:
    return any(cause.kind in ("dtype", "shape", "arguments") for cause in comparison.causes)


def entries_of(
    store: Store,
    module: str,
    seal: Seal = UNSEALED,
    *,
    always: Collection[str] = (),
    unread: Collection[str] = (),
    before: Moment | None = None,
    listing: Iterable[Listed] | None = None,
) -> list[Known]:
    """The entries of a module, the oldest first; the latest `MAX_READ` are read, and `always`.

    `always` and `unread` are keys; of the latter it is enough to know that they are there. Of
    other keys, the entries are left out that are not older than `before`. `listing` is what
    `listed` gives, where that has been asked for already. Only the beginnings are read, unverified,
    where there is no signing key; with one, what does not verify counts as not there. Raises
    `StoreError`.
    """
    wanted = _readable(module)
    found = listed(store) if listing is None else listing
    stats = sorted((stat for stat, _, name in found if name == wanted), key=moment)
    listed_only = {entry_name(key): key for key in unread}
    named = {entry_name(key) for key in always} | {*listed_only}
    others = [s for s in stats if _name(s) not in named and (before is None or moment(s) < before)]
    chosen = {*named, *(_name(stat) for stat in others[-MAX_READ:])}

    def read(stat: ObjectStat) -> Known | None:
        key = listed_only.get(_name(stat))
        if key is not None:
            return Known(key, stat.modified_s, stat.name)
        return _read(store, stat, seal)

    with ThreadPoolExecutor(8, thread_name_prefix="hotstart-explain") as pool:
        known = pool.map(read, [stat for stat in stats if _name(stat) in chosen])
        return [one for one in known if one is not None and module_of(one.key) == module]


def listed(store: Store) -> Iterator[Listed]:
    """The entries of a store without reading them: the stat, the key's hash, the module."""
    for stat in store.list(PREFIX):
        if match := _NAME.fullmatch(stat.name):
            yield stat, match[1], match[2] or ""


def moment(stat: ObjectStat) -> Moment:
    """When an entry was stored, by the store's clock; names tell those of one moment apart."""
    return stat.modified_s, stat.name


def _name(stat: ObjectStat) -> str:
    return stat.name.partition("~")[0]


def _readable(module: str) -> str:
    """The module's name as it stands in the names of its entries."""
    return entry_name(f"{module}-{'0' * 64}").removeprefix(f"{PREFIX}{'0' * 64}").lstrip("-")


def _read(store: Store, stat: ObjectStat, seal: Seal) -> Known | None:
    entry: Entry | Head
    try:
        if seal.keyring:
            data = read_whole(store, stat.name)
            if data is None:
                return None
            entry = decode_named(_name(stat), data, seal)
        else:
            head = read_head(store, stat)
            if not isinstance(head, Head) or entry_name(head.key) != _name(stat):
                return None
            entry = head
    except (EntryError, StoreError):
        return None
    return Known(
        entry.key, stat.modified_s, stat.name, from_text(entry.meta.parts), entry.meta.writer
    )


def find_keys(
    store: Store, wanted: str, seal: Seal = UNSEALED, listing: Iterable[Listed] | None = None
) -> Sequence[Known]:
    """The entries that a user may mean by a key, a part of its hash, a name or a module's name.

    The oldest first; of a module the latest alone. Raises `StoreError`.
    """
    wanted = wanted.removeprefix(PREFIX).partition("~")[0]
    stats = list(listed(store) if listing is None else listing)
    exact = [s for s in stats if _is_named(wanted, s[1], s[2])]
    module, _, digest = wanted.rpartition("-")
    if not exact and re.fullmatch(r"[0-9a-f]{6,64}", digest):
        exact = [
            s
            for s in stats
            if s[1].startswith(digest) and (not module or s[2] == _readable(module))
        ]
    found = exact or [s for s in stats if s[2] == _readable(wanted)]
    known = (
        one
        for stat in sorted((s[0] for s in found), key=moment, reverse=True)
        if (one := _read(store, stat, seal)) is not None
    )
    return list(known)[::-1] if exact else list(islice(known, 1))


def _is_named(wanted: str, digest: str, module: str) -> bool:
    given, dash, tail = wanted.rpartition("-")
    if dash and tail == digest:  # a key, whose module may have other characters than a name
        return _readable(given) == module
    return wanted in (f"{digest}-{module}", digest)
