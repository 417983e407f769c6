"""The bound on a directory's size: what counts, when entries go, and which go first.

    ROOT/.hotstart/total           size of all entries in decimal
    ROOT/.hotstart/eviction.lock   held by the process that evicts

Only entries count and only entries go: the directory may hold the user's own files as well. An
entry that is pinned (pins.py) counts and stays.
The total is a hint, counted anew by each process before its first `create` and by each eviction.
So none of its troubles fails an operation: they are logged, and the bound holds a little later.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path

from hotstart.cache.folders import locked
from hotstart.cache.store import ObjectStat

EVICT_DOWN_TO = 0.9
ENTRIES = "entries/"
PINS = "pins/v1/"
_ENTRY_NAME = re.compile(ENTRIES + r"(?:[^/]+/)*[0-9a-f]{64}(?:-[A-Za-z0-9_.]+)?(?:~[1-9])?")

logger = logging.getLogger(__name__)


def is_entry(name: str) -> bool:
    """Whether an object's name is one that `entry_name` gives, in any version of the format."""
    return _ENTRY_NAME.fullmatch(name) is not None


def place_of(name: str) -> str:
    """Where an entry under this name, or a further one (`~1`), belongs."""
    return name.partition("~")[0]


def pin_folder(name: str) -> str:
    """Where the pins of an entry are, which keep it under all its names."""
    return f"{PINS}{place_of(name).rpartition('/')[2]}/"


def eviction_order(
    last_use_ns: Mapping[str, int],
    *,
    created: str,
    is_created_too_large: bool,
    pinned: Collection[str] = (),
) -> list[str]:
    """The names in the order in which they go: read longest ago first.

    The one just created never goes, unless it alone is above the bound: then it goes first.
    `pinned` has the folders of pins (`pin_folder`); what they keep never goes.
    """
    may_go = [name for name in last_use_ns if pin_folder(name) not in pinned]
    older = sorted((name for name in may_go if name != created), key=last_use_ns.__getitem__)
    return [created, *older] if is_created_too_large and created in may_go else older


class SizeBound:
    """Keeps the entries under `root` within `max_size_bytes`. All calls block; none raises OSError.

    `list_objects` walks the objects of `entries/`, `list_pins` the pins; `remove` removes an
    object that still is as it was listed. Processes share the total and the locks in `own`,
    which exists.
    """

    def __init__(
        self,
        root: Path,
        own: Path,
        max_size_bytes: int,
        *,
        list_objects: Callable[[], Iterable[ObjectStat]],
        list_pins: Callable[[], Iterable[ObjectStat]],
        remove: Callable[[ObjectStat], bool],
    ) -> None:
        self._root = root
        self._own = own
        self._max_size_bytes = max_size_bytes
        self._list_objects = list_objects
        self._list_pins = list_pins
        self._remove = remove

    def recount(self) -> None:
        """Count the entries anew; walks all of them."""
        with self._only_logged("count the entries"):
            self._set_total(sum(found.size_bytes for found in self._entries()))

    def note_deleted(self, name: str, size_bytes: int) -> None:
        """Take a deleted object off the total."""
        if is_entry(name):
            with self._only_logged(f"count the deletion of {name}"):
                self._add_to_total(-size_bytes)

    def note_created(self, name: str, size_bytes: int) -> None:
        """Count a created object and evict if it brings the total above the bound."""
        if is_entry(name):
            with self._only_logged(f"count {name} or evict for it"):
                if self._add_to_total(size_bytes) > self._max_size_bytes:
                    self._evict(name, size_bytes)

    def _evict(self, created: str, created_bytes: int) -> None:
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(locked(self._own / "eviction.lock", wait=False))
            except BlockingIOError:
                return  # another process is at it
            entries = {found.name: found for found in self._entries()}
            total = sum(found.size_bytes for found in entries.values())
            order = eviction_order(
                {name: self._last_use_ns(name) for name in entries},
                created=created,
                is_created_too_large=created_bytes > self._max_size_bytes,
                pinned={pin.name.rpartition("/")[0] + "/" for pin in self._list_pins()},
            )
            for name in order:
                if total <= self._max_size_bytes * EVICT_DOWN_TO:
                    break
                # In a sticky directory the entries of others stay.
                with self._only_logged(f"evict {name}"):
                    if self._remove(entries[name]):
                        logger.debug("evicted %s from %s", name, self._root)
                        total -= entries[name].size_bytes
            self._set_total(total)

    def _entries(self) -> Iterator[ObjectStat]:
        return (found for found in self._list_objects() if is_entry(found.name))

    def _last_use_ns(self, name: str) -> int:
        try:
            return (self._root / name).stat().st_atime_ns
        except FileNotFoundError:
            return 0

    def _add_to_total(self, size_bytes: int) -> int:
        with locked(self._own / "total") as descriptor:
            # What is unreadable counts as nothing until the next process counts anew.
            text = os.pread(descriptor, 32, 0)
            total = max(0, (int(text) if text.isdigit() else 0) + size_bytes)
            _rewrite(descriptor, total)
            return total

    def _set_total(self, size_bytes: int) -> None:
        with locked(self._own / "total") as descriptor:
            _rewrite(descriptor, size_bytes)

    @contextlib.contextmanager
    def _only_logged(self, attempt: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            logger.debug("cannot %s in %s: %s; going on", attempt, self._root, error)


def _rewrite(descriptor: int, total: int) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, str(total).encode(), 0)
