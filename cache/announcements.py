"""Who is about to delete says so first, and who pins looks for that afterwards.

    collections/v1/<id>    {"who": "me@host", "at_s": 1796.0, "names": ["entries/v1/...", ...]}

    collector, for each batch                     pinner, and whoever must know
    1 create its announcement of the batch        1 create the pins (or a run's record)
    2 list the pins, look at the runs             2 list the announcements
    3 delete what nothing keeps, by generation    3 wait until those of its entries have gone;
    4 delete its announcement                       else give the entries new generations
                                                  4 look whether the entries are there

Why an entry that is there in the pinner's last step stays: take any collector. Either its step 2
began after the pin was made. Lists show what was made before they began, so it sees the pin and
leaves the entry alone. Or it began before, and so its announcement, of step 1, was made before the
pin, hence before the pinner's step 2. There the pinner sees it, unless the collector is past its
step 4 and has nothing left to delete. If it sees it, then either it waits until it is gone, with
the same result; or it gives the entry a new generation, and each deletion that is still to come
takes the old one and does nothing. So nobody need know whether a collector is alive, slow or dead,
and no two clocks are compared. A deletion whose answer was lost may be carried out later: then the
collector leaves its announcement behind, as one that was killed does.

What is left behind goes with the next `gc` that sees it a day old by the store's clock
(`sweep.py`). That is the only place where time matters: a collector deletes nothing more once ten
minutes of its own clock, which goes on while its machine sleeps, have gone since before it made its
announcement, so it would have to be stopped for a day between looking at the clock and the request.

Taken for granted: lists and looks that see what was made before, as Google Cloud Storage and local
file systems give. On NFS and the like a directory's names may be old by as much as the mount allows
(`acdirmax`, 60 s by default; `lookupcache=none` and `noac` turn it off). What is announced is not
signed: one that was forged makes a pin slow, and that is all.
https://cloud.google.com/storage/docs/consistency
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import socket
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from hotstart.cache.directory import DirectoryStore
from hotstart.cache.errors import StoreError
from hotstart.cache.eviction import place_of
from hotstart.cache.store import ObjectStat, Store

COLLECTIONS = "collections/v1/"
MAX_BYTES = 1 << 20
DELETES_FOR_S = 600.0
WAIT_S = 10.0
_POLL_S = 0.2


@runtime_checkable
class Renewing(Protocol):
    """A store that can give an object a new generation, with the same bytes."""

    def renew(self, name: str, generation: int) -> bool:
        """Do so if it still is of this generation; False if it is gone or newer. Atomic."""
        ...


class Announcement:
    """What a collector has announced; safe among threads."""

    def __init__(self, until: float, clock: Callable[[], float]) -> None:
        self._until = until
        self._clock = clock
        self.is_unsure = False

    @property
    def is_over(self) -> bool:
        """Whether it is too late to delete by it."""
        return self._clock() >= self._until

    def unsure(self) -> None:
        """A deletion may still be carried out: the announcement is to stay."""
        self.is_unsure = True


def _time_with_sleep() -> float:
    """Seconds that go on while the machine is suspended, which `time.monotonic` leaves out."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


@contextlib.contextmanager
def announced(
    store: Store, names: Sequence[str], *, clock: Callable[[], float] = _time_with_sleep
) -> Iterator[Announcement]:
    """Say that these entries are about to be deleted, and take that back at the end.

    All deletions must have ended by then; after an interrupt some may still go on, and it stays.
    Three requests; raises `StoreError` where it can't be said, but not where it can't be taken
    back.
    """
    announcement = Announcement(clock() + DELETES_FOR_S, clock)
    name = f"{COLLECTIONS}{uuid.uuid4().hex}"
    said = {"who": who_this_is(), "at_s": time.time(), "names": list(names)}
    store.create(name, json.dumps(said).encode())
    try:
        yield announcement
    except Exception:
        raise
    except BaseException:
        announcement.unsure()
        raise
    finally:
        if not announcement.is_unsure:
            with contextlib.suppress(StoreError):
                found = store.stat(name)
                if found is not None:
                    store.delete(name, found.generation)


@dataclass(frozen=True)
class Settled:
    """What `settle` found.

    contended: entries that a collector had announced; some may be gone, in whole or in part.
    unsure: of those, what a collector that has not ended may still delete, and why that could
        not be prevented.
    """

    contended: frozenset[str] = frozenset()
    unsure: Mapping[str, str] = field(default_factory=dict)


def settle(
    store: Store,
    entries: Collection[str],
    *,
    wait_s: float | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Settled:
    """After entries were pinned: see to it that those that are there from now on stay.

    One listing where nobody collects. Else blocks until who collects has done with these entries,
    for at most `wait_s` (`WAIT_S`); then gives them new generations, which takes two requests each
    and the right to delete. Raises `StoreError`.
    """
    if isinstance(store, DirectoryStore):
        store.await_evictions()
    seen = {stat.name: stat for stat in store.list(COLLECTIONS)}
    open_ = {name: said for name, stat in seen.items() if (said := _read(store, stat, entries))}
    contended = frozenset(entry for said in open_.values() for entry in said.entries)
    until = clock() + (WAIT_S if wait_s is None else wait_s)
    while open_ and clock() < until:
        there = {(stat.name, stat.generation) for stat in store.list(COLLECTIONS)}
        open_ = {n: said for n, said in open_.items() if (n, seen[n].generation) in there}
        if open_:
            sleep(_POLL_S)
    unsure: dict[str, str] = {}
    for name, said in open_.items():
        for entry in said.entries:
            why = _renew(store, entry)
            if why is not None:
                unsure[entry] = f"{said.who} announced to delete it, in {name}, and {why}"
    return Settled(contended, unsure)


def who_this_is() -> str:
    """This process, for people: `user@host, pid 17`."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}, pid {os.getpid()}"


@dataclass(frozen=True)
class _Said:
    who: str
    entries: frozenset[str]


def _read(store: Store, stat: ObjectStat, entries: Collection[str]) -> _Said | None:
    """What an announcement says of these entries; None where it names none, or is gone.

    One that can't be read may be of all of them.
    """
    try:
        data = store.get(stat.name) if stat.size_bytes <= MAX_BYTES else b""
        if data is None:
            return None
        match json.loads(data):
            case {"who": str(who), "names": [*names]}:
                named = frozenset(name for name in entries if name in names)
                return _Said(who, named) if named else None
    except (ValueError, RecursionError):
        pass
    return _Said("somebody", frozenset(entries))


def _renew(store: Store, entry: str) -> str | None:
    """Take an entry out of reach of deletions that were begun before; why that is not done."""
    if not isinstance(store, Renewing):
        return "this store can't take it out of reach"
    try:
        for stat in list(store.list(entry)):
            # False: it is gone, or of another generation than any that was listed before.
            if place_of(stat.name) == entry:
                store.renew(stat.name, stat.generation)
    except StoreError as error:
        return f"it can't be taken out of reach: {error}"
    return None
