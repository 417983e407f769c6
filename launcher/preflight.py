"""What all workers of a gang must have in common, compared: pure, and free of JAX and Ray.

Each worker says what it has in stages, for not all is known at once:

    start     when it has its plan: versions, flags, settings; nothing is imported for it
    store     its agent says whether the host can read the cache's location
    devices   at its first program: kind of device, runtime, topology
    program   at the first program that runs on all devices: its key

A stage is compared once all workers have said theirs. A difference in any stage is a warning;
in strict mode one in `start` or `store`, which come before user code, ends the run.
How facts are gathered: `worker_facts.py`; how they reach the driver: `agent.py`, `attempts.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hotstart.cache.config import CacheConfig

STAGES = ("start", "store", "devices", "program")
FLAG_NAMES = frozenset({"XLA_FLAGS", "LIBTPU_INIT_ARGS"})
LOCATION, READABLE = "cache.location", "can be read"
ABSENT = "none"

_REQUIRED = {LOCATION: READABLE}  # also where all workers agree on something else
_MAX_FACTS = 64
_MAX_CHARS = 16_384
_SHOWN_CHARS = 200
_SHOWN_HOSTS = 4
_SHOWN_RANGES = 8


@dataclass(frozen=True)
class WorkerFacts:
    """What one worker has, by name, in one stage."""

    process_index: int
    host: str
    stage: str
    values: Mapping[str, str]


@dataclass(frozen=True)
class Held:
    """A value, and who has it: process indices and their hosts, each in order."""

    value: str
    processes: tuple[int, ...]
    hosts: tuple[str, ...]


@dataclass(frozen=True)
class Difference:
    """A fact that differs among workers, or that none should have; the most common value first.

    `many_hosts` says that the gang has several, so that a host's name tells something.
    """

    name: str
    held: tuple[Held, ...]
    many_hosts: bool = False

    def __str__(self) -> str:
        """One line: "jaxlib differs: 0.10.2 on processes 0-3, 0.10.1 on process 4 (host b)"."""
        groups = [
            f"{_shown(held.value)} on {_processes(held.processes)}"
            + (_hosts(held.hosts) if self.many_hosts and (rank or len(self.held) == 1) else "")
            for rank, held in enumerate(self.held)
        ]
        return f"{self.name}{' differs' if len(self.held) > 1 else ''}: {', '.join(groups)}"

    def to_json(self) -> dict[str, Any]:
        """As the record and the report have it."""
        values = [
            {"value": h.value, "processes": list(h.processes), "hosts": list(h.hosts)}
            for h in self.held
        ]
        return {"name": self.name, "text": str(self), "values": values}


def differences(facts: Sequence[WorkerFacts]) -> tuple[Difference, ...]:
    """What differs among workers, of one stage's facts; in the order in which facts are named.

    Of flags only those are left that not all workers have. A worker that lacks a fact which
    others have has `ABSENT`.
    """
    ordered = sorted(facts, key=lambda f: f.process_index)
    many_hosts = len({f.host for f in ordered}) > 1
    names = dict.fromkeys(name for f in ordered for name in f.values)
    found = []
    for name in names:
        values = [f.values.get(name) or ABSENT for f in ordered]
        if set(values) == {_REQUIRED.get(name, values[0])}:
            continue
        if name in FLAG_NAMES:
            values = _uncommon(values)
        groups: dict[str, list[WorkerFacts]] = {}
        for value, worker in zip(values, ordered, strict=True):
            groups.setdefault(value, []).append(worker)
        held = [
            Held(
                value,
                tuple(w.process_index for w in workers),
                tuple(dict.fromkeys(w.host for w in workers)),
            )
            for value, workers in groups.items()
        ]
        held.sort(key=lambda h: (-len(h.processes), h.processes))
        found.append(Difference(name, tuple(held), many_hosts))
    return tuple(found)


class Preflight:
    """One attempt's facts, as they come. Not safe among threads."""

    def __init__(self, process_count: int, awaited: frozenset[str] = frozenset()) -> None:
        """`awaited`: the stages in which nothing may differ for user code to run."""
        self._process_count = process_count
        self._awaited = awaited
        self._facts: dict[str, dict[int, WorkerFacts]] = {}
        self._compared: dict[str, tuple[Difference, ...]] = {}

    def heard(self, facts: WorkerFacts) -> tuple[Difference, ...]:
        """Take in what a worker says; what differs in its stage, once that is complete.

        What was found in that stage before is not given again: a worker that is replaced while
        it starts says all of its facts anew.
        """
        stage = self._facts.setdefault(facts.stage, {})
        stage[facts.process_index] = facts
        if len(stage) < self._process_count:
            return ()
        before = self._compared.get(facts.stage, ())
        self._compared[facts.stage] = found = differences(list(stage.values()))
        return tuple(difference for difference in found if difference not in before)

    @property
    def refusal(self) -> str | None:
        """Why user code must not run; None where it may, or where it is not known yet."""
        awaited = (stage for stage in STAGES if stage in self._awaited)
        found = [d for stage in awaited for d in self._compared.get(stage, ())]
        return "; ".join(map(str, found)) or None

    def lets_go_on(self, stage: str) -> bool:
        """Whether workers wait for a stage, and after all of those user code may run."""
        is_known = stage in self._awaited and self._awaited <= self._compared.keys()
        return is_known and not self.refusal


def stages_before_user_code(cache: CacheConfig | None) -> frozenset[str]:
    """The stages that user code waits for: none but in strict mode."""
    if cache is None or not cache.strict:
        return frozenset()
    return frozenset({"start", "store"} if agents_read(cache) else {"start"})


def agents_read(cache: CacheConfig | None) -> bool:
    """Whether agents read the store for their workers, and so say whether they can."""
    return cache is not None and cache.compile == "once"


def facts_from(process_index: int, host: str, message: object) -> WorkerFacts | None:
    """What a worker's message says, or None where it is no such message: it is the user's process.

    Facts beyond 64, and what is longer than 16 kB, are cut.
    """
    if not isinstance(message, Mapping):
        return None
    stage, values = message.get("stage"), message.get("values")
    if stage not in STAGES or not isinstance(values, Mapping):
        return None
    kept = {str(k)[:100]: str(v)[:_MAX_CHARS] for k, v in list(values.items())[:_MAX_FACTS]}
    return WorkerFacts(process_index, host, str(stage), kept)


def recorded(stage: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The differences in a stage's record as `Difference.to_json` made them; what is not is empty.

    A record is read long after, and by other versions.
    """
    return [
        {
            "name": str(difference.get("name", "")),
            "text": str(difference.get("text", "")),
            "values": [
                {
                    "value": str(held.get("value", "")),
                    "processes": [i for i in _list(held, "processes") if isinstance(i, int)],
                    "hosts": [str(host) for host in _list(held, "hosts")],
                }
                for held in _list(difference, "values")
                if isinstance(held, Mapping)
            ],
        }
        for difference in _list(stage, "differences")
        if isinstance(difference, Mapping)
    ]


def _list(facts: Mapping[str, Any], name: str) -> list[Any]:
    found = facts.get(name)
    return found if isinstance(found, list) else []


def _uncommon(values: Sequence[str]) -> list[str]:
    """Each worker's flags less those that all have."""
    flags = [() if value == ABSENT else tuple(value.split()) for value in values]
    common = set(flags[0]).intersection(*flags)
    return [" ".join(f for f in own if f not in common) or ABSENT for own in flags]


def _shown(value: str) -> str:
    if len(value) <= _SHOWN_CHARS:
        return value
    digest = hashlib.sha256(value.encode(errors="replace")).hexdigest()[:8]
    return f"{value[:_SHOWN_CHARS]}... (SHA-256 {digest})"


def _processes(indices: Sequence[int]) -> str:
    ranges: list[list[int]] = []
    for index in indices:
        if ranges and ranges[-1][1] == index - 1:
            ranges[-1][1] = index
        else:
            ranges.append([index, index])
    texts = [str(first) if first == last else f"{first}-{last}" for first, last in ranges]
    return f"process{'es' if len(indices) > 1 else ''} {_some(texts, _SHOWN_RANGES)}"


def _hosts(hosts: Sequence[str]) -> str:
    return f" (host{'s' if len(hosts) > 1 else ''} {_some(hosts, _SHOWN_HOSTS)})"


def _some(texts: Iterable[str], most: int) -> str:
    texts = list(texts)
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more
