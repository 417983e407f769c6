"""Pins: entries that stay, whatever a collector or a directory's bound would have go.

    pins/v1/<entry>/key          pinned by name
    pins/v1/<entry>/run-<run>    pinned for a run that asked for it

<entry> is the entry's name without its folder, so a pin holds for the entry under all its names.
Create-only, a JSON object that says who, when and why, for people to read. What keeps an entry is
the name of its pin alone: one listing tells all, and where signatures are checked a pin that was
forged keeps an entry and does no other harm. So nothing that is parsed decides anything.
A bucket's own lifecycle rules know of no pins.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass

from hotstart.cache.entry import entry_name
from hotstart.cache.eviction import ENTRIES, PINS, pin_folder
from hotstart.cache.store import ObjectStat, Store

BY_KEY = "key"
_PIN = re.compile(re.escape(PINS) + r"([^/]+/)([^/]+)")


@dataclass(frozen=True)
class PinFacts:
    """Why an entry is pinned. `at_s` is the pinning host's wall clock; for people alone."""

    who: str
    at_s: float
    why: str = ""

    @classmethod
    def from_json(cls, data: bytes) -> PinFacts | None:
        """The facts, or None where they are none."""
        try:
            match json.loads(data):
                case {"who": str(who), "at_s": int() | float() as at_s, "why": str(why)}:
                    return cls(who, float(at_s), why)
        except (ValueError, RecursionError):
            pass
        return None


def source_of_run(run: str) -> str:
    """The name of a run's pin of an entry."""
    return f"run-{run}"


def run_of(source: str) -> str | None:
    """The run whose pin has this name; None for one by key."""
    return source.removeprefix("run-") if source.startswith("run-") else None


def key_of(folder: str) -> str:
    """The key of the entry whose pins are there, as far as names tell; see `inventory.Listed`."""
    digits, _, module = folder.removeprefix(PINS).rstrip("/").partition("-")
    return f"{module}-{digits}" if module else digits


def pinned_as(folders: Collection[str], text: str) -> set[str]:
    """Those of the entries that a person may mean by `text`: the beginning of a key or a hash.

    Or an entry's name. A whole key or name means one at most.
    """
    exact = {pin_folder(text) if text.startswith(ENTRIES) else pin_folder(entry_name(text))}
    found = {
        folder
        for folder in folders
        if any(known.startswith(text) for known in (key_of(folder), key_of(folder)[-64:]))
    }
    return (exact & set(folders)) or found


def list_pins(store: Store, entry: str | None = None) -> Mapping[str, Mapping[str, ObjectStat]]:
    """The pins of all entries, or of one, by `pin_folder` and source.

    One listing; raises `StoreError`.
    """
    found: dict[str, dict[str, ObjectStat]] = {}
    for stat in store.list(PINS if entry is None else pin_folder(entry)):
        match = _PIN.fullmatch(stat.name)
        if match is not None:
            found.setdefault(f"{PINS}{match[1]}", {})[match[2]] = stat
    return found


def pin(store: Store, entry: str, source: str, facts: PinFacts) -> bool:
    """Pin an entry by its name; False where this source has pinned it before. One request.

    Where a signing key is set `store` signs (`SealedStore`). Whether the entry is there, still, is
    to be looked at afterwards. Raises `StoreError`.
    """
    return store.create(f"{pin_folder(entry)}{source}", json.dumps(asdict(facts)).encode())


def unpin(store: Store, entry: str, source: str) -> bool:
    """Take a source's pin of an entry away; False where there is none. Two requests."""
    found = store.stat(f"{pin_folder(entry)}{source}")
    return found is not None and store.delete(found.name, found.generation)
