"""The durable run record, create-only facts in a store, folded into a state.

The store is rooted at the run directory (a directory or `gs://...`). One object a fact:

    index/<run>                             the run exists (so that listing runs reads nothing else)
    <run>/created                           decides who made the run; from where it was launched
    <run>/job.yaml                          the job as resolved
    <run>/job/<epoch:08d>.yaml              the job as the owner of this epoch has changed it
    <run>/owner/<epoch:08d>/00000000        the claim: decides who owns this epoch; never deleted
    <run>/owner/<epoch:08d>/<beat:08d>      the owner's latest beat; the one before it is deleted
    <run>/owner/<epoch:08d>/stop            somebody asks this owner to stop the run
    <run>/attempts/<n:05d>/start            attempt n began
    <run>/attempts/<n:05d>/first_step       all workers' reports when each had done a step
    <run>/attempts/<n:05d>/differs/<stage>  what differed among its workers (preflight.py)
    <run>/attempts/<n:05d>/stacks/<i:05d>   what process index i did when it hung, as text
    <run>/attempts/<n:05d>/workers/<i:05d>  the report of process index i at its end
    <run>/attempts/<n:05d>/end              how attempt n ended
    <run>/attempts/<n:05d>/manifest/<keys:08d>-<size>  what JAX asked for so far; size in bytes
    <run>/attempts/<n:05d>/asked/<size:08d>  who asked for which key, and of what it was made; the
                                            largest holds the others (asked_facts.py)
    <run>/watchers/<id>/...                 who watches over the run (watchers.py)
    <run>/shipment                          what was sent to the cluster, a zip (submitted.py)
    <run>/submitted/<epoch:08d>             what a later submission said anew (submitted.py)
    <run>/end/<epoch:08d>                   the final state under this owner

All are JSON objects but jobs, stacks and the shipment. Where the launching host has a signing key,
each ends in its signature, and what does not verify is not there for a host with a key. A run that
was restarted has one end an epoch and the latest epoch's counts. Of an attempt's manifests the one
with the most keys counts; its name says what a listing needs. `<run>/logs/` and
`<run>/checkpoints/` may lie beside them and are never listed.
Names and listings of runs: `runs.py`.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from hotstart.cache.store import ObjectStat, Store
from hotstart.launcher.asked_facts import AskedProgram, read_asked, size_of
from hotstart.launcher.errors import RecordDamaged, RunOwned, UsageError
from hotstart.launcher.facts import (
    AttemptFacts,
    FinalState,
    ManifestSummary,
    Owner,
    RunEnd,
    RunFacts,
    RunState,
    RunSummary,
    state_of,
)
from hotstart.launcher.identity import OwnerIdentity, identity_from
from hotstart.launcher.manifest import Manifest, ManifestError
from hotstart.launcher.outcome import Outcome
from hotstart.launcher.preflight import STAGES

logger = logging.getLogger(__name__)

PARALLEL_READS = 16
PARALLEL_WRITES = 16
_SEARCHED_ATTEMPTS = 32

RUN_NAME = re.compile(r"(?!(?:index|latest)$)[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_BEAT = re.compile(r"(\d{8})/(\d{8}|stop)")
_BEAT_OF_EPOCH = re.compile(r"(\d{8}|stop)")
_ATTEMPT_FACT = re.compile(
    r"(\d{5})/(?:(start|first_step|end|differs/[a-z]+)|workers/(\d{5})|manifest/(\d{8})-(\d{1,18})"
    r"|asked/(\d{8})|stacks/\d{5})"
)
_ONE_FACT = re.compile(r"(.+)")
_END = re.compile(r"(\d{8})")
_REVISION = re.compile(r"(\d{8})\.yaml")


@dataclass
class _Names:
    """Names of one attempt's facts, under `start`, `end`, ... or the process index."""

    facts: dict[str, str] = field(default_factory=dict)
    manifests: dict[ManifestSummary, str] = field(default_factory=dict)
    asked: dict[int, str] = field(default_factory=dict)


class RunRecord:
    """One run's record. All methods block on the store and may raise `StoreError`."""

    def __init__(self, store: Store, name: str) -> None:
        """A record by name, unchecked: use `create`, or see `runs.py`."""
        self.store = store
        self.name = name
        self._warned: set[str] = set()

    @classmethod
    def create(
        cls,
        store: Store,
        run_name: str,
        job_yaml: str,
        launched_from: Mapping[str, Any],
        now_s: float,
    ) -> RunRecord:
        """Make a new run; raises `UsageError` if the name is taken or can't be a run's name.

        `now_s` is wall-clock time in seconds since the epoch, for display only.
        """
        if not RUN_NAME.fullmatch(run_name):
            raise UsageError(f"{run_name!r} can't be a run's name; use letters, digits, . _ and -")
        record = cls(store, run_name)
        created = {"run": run_name, "created_s": now_s, "launched_from": dict(launched_from)}
        fresh = record.create_fact("created", created)
        if not fresh or not store.create(f"{run_name}/job.yaml", job_yaml.encode()):
            raise UsageError(f"a run {run_name} exists already in {store.url}; choose another name")
        store.create(f"index/{run_name}", b"{}")  # last: a listed run is a complete one
        return record

    @property
    def checkpoint_location(self) -> str:
        """Where the run keeps its checkpoints: an absolute path or a `gs://` URL."""
        return f"{self.store.url.rstrip('/')}/{self.name}/checkpoints"

    @property
    def log_location(self) -> str:
        """Where the run's logs belong: an absolute path or a `gs://` URL."""
        return f"{self.store.url.rstrip('/')}/{self.name}/logs"

    def job_yaml(self) -> str:
        """The job as it was launched, or as the latest restart with `a.b=c` has left it.

        Raises `RecordDamaged` if it isn't there, or is no text.
        """
        revised = [s.name for key, s in self.facts_below("job/", _REVISION)]
        name = max(revised, default=f"{self.name}/job.yaml")
        data = self.store.get(name)
        if data is None and self.store.stat(name) is not None:
            raise RecordDamaged(
                f"{self.store.url}/{name} is not signed with a key of this host; set the key that "
                "the run was launched with (docs/trust.md), or launch the job anew"
            )
        if data is None:
            raise RecordDamaged(f"{self.store.url}/{name} is missing; launch the job anew")
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise RecordDamaged(
                f"{self.store.url}/{name} is damaged: {error}; launch the job anew"
            ) from error

    def revise_job(self, epoch: int, job_yaml: str) -> None:
        """Keep a changed job for the attempts of this epoch and later ones."""
        self.store.create(f"{self.name}/job/{epoch:08d}.yaml", job_yaml.encode())

    def ask_to_stop(self, epoch: int, facts: Mapping[str, Any]) -> bool:
        """Ask the owner of `epoch` to stop the run; False if somebody has asked before."""
        return self.create_fact(f"owner/{epoch:08d}/stop", facts)

    def stop_request(self, epoch: int) -> dict[str, Any] | None:
        """Who has asked the owner of `epoch` to stop, or None. One request."""
        return self._read(f"{self.name}/owner/{epoch:08d}/stop")

    def said(self, owner: Owner) -> dict[str, Any]:
        """What the owner's latest beat says of the attempt; empty where it says nothing."""
        return self._read(owner.latest) or {}

    def has_created(self) -> bool:
        """Whether the fact is there that tells how the run was launched."""
        return self._read(f"{self.name}/created") is not None

    def created(self) -> Mapping[str, Any]:
        """How the run was launched; empty where that can't be read."""
        return self._read(f"{self.name}/created") or {}

    def start_attempt(self, n: int, info: Mapping[str, Any], *, starter: str = "") -> None:
        """Record that attempt n begins; raises `RunOwned` if another driver has started it.

        The report reads `started_at_s` (wall clock) and `cache` from `info`. `starter` tells this
        driver from others, so that a start whose answer was lost can be recorded again.
        """
        facts = {**info, "starter": starter} if starter else info
        fresh = self.create_fact(f"attempts/{n:05d}/start", facts)
        if not fresh and not self.has_started(n, starter):
            raise RunOwned(
                f"attempt {n} of run {self.name} in {self.store.url} was started by another "
                "driver; look at `hotstart runs` and stop one of the two"
            )

    def has_started(self, n: int, starter: str) -> bool:
        """Whether attempt n was started by the driver that calls itself so."""
        start = self._read(f"{self.name}/attempts/{n:05d}/start") or {}
        return bool(starter) and start.get("starter") == starter

    def first_step(self, n: int, reports: Sequence[Mapping[str, Any]]) -> None:
        """Keep what the workers had to report when all of them had done a step.

        A driver that is killed later leaves no other report of attempt n.
        """
        self.create_fact(f"attempts/{n:05d}/first_step", {"workers": list(reports)})

    def differences(self, n: int, stage: str, found: Sequence[Mapping[str, Any]]) -> None:
        """Keep what differed among the workers of attempt n in a stage of `preflight.py`."""
        self.create_fact(f"attempts/{n:05d}/differs/{stage}", {"differences": list(found)})

    def end_attempt(self, n: int, outcome: Outcome, info: Mapping[str, Any]) -> None:
        """Record how attempt n ended; the first end of an attempt stays."""
        facts = {
            **info,
            "outcome": outcome.kind,
            "reason": outcome.reason,
            "first_worker": outcome.first_worker,
        }
        self.create_fact(f"attempts/{n:05d}/end", facts)

    def worker_report(self, n: int, i: int, report: Mapping[str, Any]) -> None:
        """Keep the report of process index i in attempt n; the first one stays."""
        self.create_fact(f"attempts/{n:05d}/workers/{i:05d}", report)

    def worker_reports(self, n: int, reports: Mapping[int, Mapping[str, Any]]) -> None:
        """`worker_report` for each process index; after one has failed no more are begun."""
        _for_each(sorted(reports), lambda index: self.worker_report(n, index, reports[index]))

    def stacks(self, n: int, stacks: Mapping[int, str]) -> None:
        """Keep what the workers of attempt n, by process index, did when it hung."""

        def keep(index: int) -> None:
            name = f"{self.name}/attempts/{n:05d}/stacks/{index:05d}"
            self.store.create(name, stacks[index].encode())

        _for_each(stacks, keep)

    def stacks_location(self, n: int) -> str:
        """Where `stacks` keeps them: an absolute path or a `gs://` URL."""
        return f"{self.store.url.rstrip('/')}/{self.name}/attempts/{n:05d}/stacks"

    def keep_manifest(self, n: int, manifest: Manifest) -> None:
        """Keep what the next start of this run is to go by, learned in attempt n."""
        keys, size_bytes = len(manifest.entries), manifest.size_bytes
        name = f"attempts/{n:05d}/manifest/{keys:08d}-{size_bytes}"
        self.store.create(f"{self.name}/{name}", manifest.to_json())

    def manifest(self, workers: int | None = None) -> Manifest | None:
        """The manifest of the latest attempt that has a sound one, or None.

        With a number of workers that of the latest attempt of so many, of the last 32 that have
        one: a manifest of another size is of no use.
        """
        kept = [there for _, there in sorted(self._attempt_names().items()) if there.manifests]
        for there in reversed(kept[-_SEARCHED_ATTEMPTS:] if workers else kept):
            for _, name in sorted(there.manifests.items(), reverse=True):
                data = self.store.get(name)
                if data is None:
                    continue
                try:
                    found = Manifest.from_json(data)
                    if workers is None or found.process_count == workers:
                        return found
                    break  # its others are of the same attempt
                except ManifestError as error:
                    self._warn_once(name, f"is no manifest: {error}; it is skipped")
        return None

    def keep_asked(self, n: int, facts: Mapping[str, Any]) -> None:
        """Keep what attempt n has asked the cache for so far, as `asked_facts` gives it."""
        self.create_fact(f"attempts/{n:05d}/asked/{min(size_of(facts), 99_999_999):08d}", facts)

    def asked(self) -> dict[int, tuple[AskedProgram, ...]]:
        """What each attempt has asked for; of attempts of older versions nothing is known."""
        latest = {
            n: there.asked[max(there.asked)]
            for n, there in sorted(self._attempt_names().items())
            if there.asked
        }
        with ThreadPoolExecutor(PARALLEL_READS) as pool:
            facts = pool.map(self._read, latest.values())
            return {n: read_asked(fact) for n, fact in zip(latest, facts, strict=True)}

    def finish(
        self,
        state: FinalState,
        exit_code: int,
        reason: str,
        *,
        epoch: int,
        may_restart: bool = False,
    ) -> None:
        """Record the run's end under the owner of `epoch`; without effect once superseded."""
        facts: dict[str, Any] = {"state": state, "exit_code": int(exit_code), "reason": reason}
        if may_restart:
            facts["may_restart"] = True
        self.create_fact(f"end/{epoch:08d}", facts)

    def next_attempt(self) -> int:
        """The number of the attempt to start next, from 1."""
        return max(self._attempt_names(), default=0) + 1

    def attempts(self) -> tuple[AttemptFacts, ...]:
        """Every attempt in order, unreadable facts left out."""
        names = self._attempt_names()
        everything = [name for there in names.values() for name in there.facts.values()]
        with ThreadPoolExecutor(PARALLEL_READS) as pool:
            read = dict(zip(everything, pool.map(self._read, everything), strict=True))

        def facts_of(n: int) -> AttemptFacts:
            there = names[n]
            found = {key: fact for key, name in there.facts.items() if (fact := read[name])}
            workers = tuple(found[name] for name in sorted(found) if name.isdecimal())
            differences = tuple(found[f"differs/{s}"] for s in STAGES if f"differs/{s}" in found)
            early = found.get("first_step", {}).get("workers")
            if not workers and isinstance(early, list):
                workers = tuple(w for w in early if isinstance(w, dict))
            manifest = max(there.manifests, default=None)
            start, end = found.get("start", {}), found.get("end")
            return AttemptFacts(n, start, end, workers, manifest, differences)

        return tuple(facts_of(n) for n in sorted(names))

    def attempt_facts(self, n: int) -> frozenset[str]:
        """The names of what there is of attempt n, such as `start`; empty without any. One list."""
        found = self.facts_below(f"attempts/{n:05d}/", _ONE_FACT)
        return frozenset(fact for (fact,), _ in found)

    def attempt_fact(self, n: int, fact: str) -> dict[str, Any]:
        """One fact of attempt n, by its name there; empty where it can't be read."""
        return self._read(f"{self.name}/attempts/{n:05d}/{fact}") or {}

    def last_start(self) -> tuple[int, Mapping[str, Any]] | None:
        """Number and start of the latest attempt that has a sound one."""
        for n, there in sorted(self._attempt_names().items(), reverse=True):
            name = there.facts.get("start")
            if name is not None and (facts := self._read(name)):
                return n, facts
        return None

    def end(self) -> RunEnd | None:
        """The latest end that was recorded, or None; an older epoch's end may be outdated."""
        for key, stat in sorted(self.facts_below("end/", _END), key=lambda x: x[0], reverse=True):
            facts = self._read(stat.name) or {}
            state, exit_code = facts.get("state"), facts.get("exit_code")
            if state in ("done", "failed", "interrupted") and isinstance(exit_code, int):
                reason, may_restart = str(facts.get("reason", "")), facts.get("may_restart") is True
                return RunEnd(int(key[0]), state, exit_code, reason, may_restart)
        return None

    def owner(self, *, identify: bool = True) -> Owner | None:
        """The owner of the highest epoch, or None if the run never had one.

        A list, and a request for its identity, which is None unless that is wanted.
        """
        epochs: dict[int, dict[int, ObjectStat]] = {}
        asked: set[int] = set()
        for (epoch, beat), stat in self.facts_below("owner/", _BEAT):
            if beat == "stop":
                asked.add(int(epoch))
            else:
                epochs.setdefault(int(epoch), {})[int(beat)] = stat
        claimed = [epoch for epoch, stats in epochs.items() if 0 in stats]
        if not claimed:
            return None
        stats = epochs[max(claimed)]
        return Owner(
            epoch=max(claimed),
            identity=identity_from(self._read(stats[0].name)) if identify else None,
            since_s=stats[0].modified_s,
            last_beat_s=max(s.modified_s for s in stats.values()),
            beats=frozenset((s.name, s.generation) for s in stats.values()),
            latest=stats[max(stats)].name,
            stop_asked=max(claimed) in asked,
        )

    def beats(self, epoch: int) -> frozenset[tuple[str, int]]:
        """What `Owner.beats` is, of the owner of this epoch, whoever came later."""
        there = self.facts_below(f"owner/{epoch:08d}/", _BEAT_OF_EPOCH)
        return frozenset((stat.name, stat.generation) for (beat,), stat in there if beat != "stop")

    def signs_for(self, epoch: int) -> tuple[bool, bool]:
        """Whether a later owner has claimed the run, and whether this one is asked to stop.

        Costs two small lists, however many beats there are.
        """
        names = f"{epoch + 1:08d}/", f"{epoch:08d}/stop"
        later, stop = (any(self.store.list(f"{self.name}/owner/{name}")) for name in names)
        return later, stop

    def state(self, observer: OwnerIdentity | None = None) -> RunState:
        """The run's state as far as it can be told without waiting (the words: see above)."""
        return state_of(self.owner(), self.end(), observer or OwnerIdentity.of_this_process())

    def read(self, observer: OwnerIdentity | None = None) -> RunFacts:
        """Everything that the record holds."""
        observer = observer or OwnerIdentity.of_this_process()
        owner, end = self.owner(), self.end()
        state = state_of(owner, end, observer)
        return RunFacts(self.name, state, self.created(), owner, end, self.attempts())

    def summary(self, observer: OwnerIdentity) -> RunSummary:
        """One line on the run."""
        owner, end = self.owner(), self.end()
        state = state_of(owner, end, observer)
        created_s = self.created().get("created_s")
        ended = end if end is not None and state == end.state else None
        return RunSummary(
            name=self.name,
            state=state,
            started_at_s=created_s if isinstance(created_s, int | float) else None,
            attempts=len(self._attempt_names()),
            owner_host=owner.identity.host if owner and owner.identity else None,
            last_beat_s=owner.last_beat_s if owner else None,
            exit_code=ended.exit_code if ended else None,
            reason=ended.reason if ended else None,
        )

    def create_fact(self, fact: str, facts: Mapping[str, Any]) -> bool:
        """Create one fact of this run; False if it is there already."""
        data = json.dumps(facts, sort_keys=True).encode()
        return self.store.create(f"{self.name}/{fact}", data)

    def _read(self, name: str) -> dict[str, Any] | None:
        data = self.store.get(name)
        if data is None:
            return None
        try:
            facts = json.loads(data)
        except ValueError:  # undecodable bytes too
            facts = None
        if isinstance(facts, dict):
            return facts
        self._warn_once(name, "is not a JSON object; it is skipped")
        return None

    def read_fact(self, fact: str) -> dict[str, Any] | None:
        """One fact of this run, or None where there is none that can be read."""
        return self._read(f"{self.name}/{fact}")

    def facts_below(
        self, folder: str, pattern: re.Pattern[str]
    ) -> Iterator[tuple[tuple[str, ...], ObjectStat]]:
        """The groups of each name in a folder that matches, and what the store knows of it."""
        prefix = f"{self.name}/{folder}"
        for stat in self.store.list(prefix):
            if match := pattern.fullmatch(stat.name.removeprefix(prefix)):
                yield match.groups(), stat
            else:
                self._warn_once(stat.name, "is no fact of a run record; it is skipped")

    def _attempt_names(self) -> dict[int, _Names]:
        names: dict[int, _Names] = {}
        for (n, fact, index, keys, size, asked), stat in self.facts_below(
            "attempts/", _ATTEMPT_FACT
        ):
            there = names.setdefault(int(n), _Names())
            if keys:
                there.manifests[ManifestSummary(int(keys), int(size))] = stat.name
            elif asked:
                there.asked[int(asked)] = stat.name
            elif fact or index:
                there.facts[fact or index] = stat.name
        return names

    def _warn_once(self, name: str, problem: str) -> None:
        if name not in self._warned:
            self._warned.add(name)
            logger.warning("%s/%s %s", self.store.url, name, problem)


def _for_each(indices: Iterable[int], write: Callable[[int], None]) -> None:
    """Write several facts side by side; after one has failed no more are begun."""
    with ThreadPoolExecutor(PARALLEL_WRITES) as pool:
        try:
            list(pool.map(write, indices))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
