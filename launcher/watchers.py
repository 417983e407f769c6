"""Who watches over a run without owning it (`restart --watch`): so `hotstart stop` finds them.

A watcher that waits for a cluster, or between two drivers, has no epoch to be asked by. So it
leaves facts of its own in the record:

    <run>/watchers/<id>/here    who watches, as in a claim
    <run>/watchers/<id>/stop    somebody asks this watcher to end
    <run>/watchers/<id>/end     it has ended

One that was killed leaves no end. On its own machine that is known; elsewhere it is found to be
deaf when it is asked, once.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from hotstart.launcher.identity import OwnerIdentity, identity_from
from hotstart.launcher.record import RunRecord

_FACT = re.compile(r"([0-9a-f]{16})/(here|stop|end)")


@dataclass(frozen=True)
class SeenWatcher:
    """A watcher as the record shows it; `identity` is None where that can't be read."""

    id: str
    identity: OwnerIdentity | None
    asked: bool


class WatcherFacts:
    """What one watcher writes and reads. All methods block; they may raise `StoreError`."""

    def __init__(self, record: RunRecord, identity: OwnerIdentity) -> None:
        self._record = record
        self._identity = identity
        self._id = secrets.token_hex(8)
        self._has_come = False

    def come(self) -> None:
        """Say that somebody watches; later calls do nothing."""
        if not self._has_come:
            self._record.create_fact(f"watchers/{self._id}/here", asdict(self._identity))
            self._has_come = True

    def stop_request(self) -> Mapping[str, Any] | None:
        """Who has asked this watcher to end, or None. One request."""
        return self._record.read_fact(f"watchers/{self._id}/stop")

    def go(self) -> None:
        """Say that it has ended."""
        if self._has_come:
            self._record.create_fact(f"watchers/{self._id}/end", {})


def live_watchers(record: RunRecord, observer: OwnerIdentity) -> list[SeenWatcher]:
    """The run's watchers that have not ended, as far as is known here. Raises `StoreError`."""
    facts: dict[str, set[str]] = {}
    for (watcher, fact), _ in record.facts_below("watchers/", _FACT):
        facts.setdefault(watcher, set()).add(fact)
    seen = []
    for watcher, there in sorted(facts.items()):
        if "here" in there and "end" not in there:
            identity = identity_from(record.read_fact(f"watchers/{watcher}/here"))
            if identity is None or not observer.knows_dead(identity):
                seen.append(SeenWatcher(watcher, identity, "stop" in there))
    return seen


def ask_watchers(
    record: RunRecord, observer: OwnerIdentity, facts: Mapping[str, Any]
) -> list[SeenWatcher]:
    """Ask the run's watchers to end; those that had not been asked before. Raises `StoreError`."""
    return [
        watcher
        for watcher in live_watchers(record, observer)
        if not watcher.asked and record.create_fact(f"watchers/{watcher.id}/stop", facts)
    ]
