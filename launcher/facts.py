"""What a run record holds, as plain values, and the state that they add up to.

States: `created` (nobody has owned it yet), `running` (its owner lives on this machine),
`done`, `failed`, `interrupted` (it has an end), `lost` (its owner lived on this machine and is
gone without an end), `unknown` (its owner is on another machine: only watching its beat for a
while would tell).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from hotstart.launcher.identity import OwnerIdentity

FinalState = Literal["done", "failed", "interrupted"]
RunState = Literal["created", "running", "done", "failed", "interrupted", "lost", "unknown"]


@dataclass(frozen=True)
class Owner:
    """A run's latest owner; the times are the store's wall clock, in seconds since the epoch.

    `beats` is all that the store lists of this epoch: the owner lives while it changes.
    `latest` is the name of the latest one. `identity` is None where the claim can't be read.
    `stop_asked` says that somebody has asked this owner to stop the run.
    """

    epoch: int
    identity: OwnerIdentity | None
    since_s: float
    last_beat_s: float
    beats: frozenset[tuple[str, int]]
    latest: str = ""
    stop_asked: bool = False


@dataclass(frozen=True)
class RunEnd:
    """The final state of a run under the owner of `epoch`.

    `may_restart` says that the run itself was not at fault: its cluster or its record was away.
    """

    epoch: int
    state: FinalState
    exit_code: int
    reason: str
    may_restart: bool = False


@dataclass(frozen=True, order=True)
class ManifestSummary:
    """How many keys a manifest has, and the bytes of all their entries together."""

    keys: int
    size_bytes: int


@dataclass(frozen=True)
class AttemptFacts:
    """What the record holds of one attempt; `end` is None while it runs or if its driver died.

    `manifest` is what the attempt taught of the programs to have ready at the next start; None
    where it taught nothing new. `differences` is what differed among its workers, a mapping a
    stage that has any (`preflight.py`).
    """

    attempt: int
    start: Mapping[str, Any]
    end: Mapping[str, Any] | None
    workers: tuple[Mapping[str, Any], ...]
    manifest: ManifestSummary | None = None
    differences: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class RunFacts:
    """All that the record holds of one run, as the report needs it."""

    run: str
    state: RunState
    created: Mapping[str, Any]
    owner: Owner | None
    end: RunEnd | None
    attempts: tuple[AttemptFacts, ...]


@dataclass(frozen=True)
class RunSummary:
    """One line of a listing.

    `started_at_s` is the launching host's wall clock, `last_beat_s` the store's; `exit_code`
    and `reason` are None unless the run has ended.
    """

    name: str
    state: RunState
    started_at_s: float | None
    attempts: int
    owner_host: str | None
    last_beat_s: float | None
    exit_code: int | None
    reason: str | None


def state_of(owner: Owner | None, end: RunEnd | None, observer: OwnerIdentity) -> RunState:
    """The state of a run as far as `observer` can tell without waiting."""
    if end is not None and (owner is None or end.epoch >= owner.epoch):
        return end.state
    if owner is None:
        return "created"
    if owner.identity is None or not observer.sees(owner.identity):
        return "unknown"
    return "lost" if observer.knows_dead(owner.identity) else "running"
