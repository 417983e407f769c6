"""The durable run record, and who owns it: create-only facts in a store, folded into a state.

The store is rooted at the run directory (a directory or `gs://...`). One object a fact:

    index/<run>                             the run exists (so that listing runs reads nothing else)
    <run>/created                           decides who made the run; from where it was launched
    <run>/job.yaml                          the job as resolved
    <run>/owner/<epoch:08d>/00000000        the claim: decides who owns this epoch; never deleted
    <run>/owner/<epoch:08d>/<beat:08d>      the owner's latest beat; the one before it is deleted
    <run>/attempts/<n:05d>/start            attempt n began
    <run>/attempts/<n:05d>/workers/<i:05d>  the report of process index i
    <run>/attempts/<n:05d>/end              how attempt n ended
    <run>/end/<epoch:08d>                   the final state under this owner

All are JSON objects but `job.yaml`. A run that was restarted has one end an epoch and the latest
epoch's counts. `<run>/logs/` and `<run>/checkpoints/` may lie beside them and are never listed.

States: `created` (nobody has owned it yet), `running` (its owner lives on this machine),
`done`, `failed`, `interrupted` (it has an end), `lost` (its owner lived on this machine and is
gone without an end), `unknown` (its owner is on another machine: only watching its beat for a
while would tell).
"""

from __future__ import annotations

import getpass
import json
import logging
import os
import random
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from hotstart.cache.errors import AccessDenied, StoreMissing
from hotstart.cache.store import ObjectStat, Store
from hotstart.launcher.errors import RecordDamaged, RunNotFound, RunOwned, UsageError
from hotstart.launcher.outcome import Outcome

logger = logging.getLogger(__name__)

FinalState = Literal["done", "failed", "interrupted"]
RunState = Literal["created", "running", "done", "failed", "interrupted", "lost", "unknown"]

OWNER_TTL_S = 15.0
BEAT_INTERVAL_S = 5.0
_PARALLEL_READS = 16

_RUN_NAME = re.compile(r"(?!(?:index|latest)$)[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_BEAT = re.compile(r"(\d{8})/(\d{8})")
_ATTEMPT_FACT = re.compile(r"(\d{5})/(?:(start|end)|workers/(\d{5}))")
_END = re.compile(r"(\d{8})")


@dataclass(frozen=True)
class OwnerIdentity:
    """Which process owns a run, so that its death can be told on the same machine.

    `pid_started` is field 22 of `/proc/<pid>/stat` (clock ticks since boot): it tells a process
    from a later one of the same pid. Containers share a boot, hence `pid_namespace`. Without
    `/proc` the last three are 0 or empty and death is never certain.
    """

    host: str
    user: str
    pid: int
    pid_started: int
    boot_id: str
    pid_namespace: str

    @classmethod
    def of_this_process(cls) -> OwnerIdentity:
        """The identity of the calling process."""
        try:
            boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
            pid_namespace = str(Path("/proc/self/ns/pid").readlink())
        except OSError:
            boot_id, pid_namespace = "", ""
        try:
            user = getpass.getuser()
        except (KeyError, OSError):  # a container's uid without a name
            user = f"uid {os.getuid()}"
        pid = os.getpid()
        started = _process_started(pid) or 0
        return cls(socket.gethostname(), user, pid, started, boot_id, pid_namespace)

    def sees(self, other: OwnerIdentity) -> bool:
        """Whether this process can look up the other's pid: same host, boot and pid namespace."""
        return bool(self.boot_id and self.pid_namespace and other.pid_started) and (
            (self.host, self.boot_id, self.pid_namespace)
            == (other.host, other.boot_id, other.pid_namespace)
        )

    def knows_dead(self, other: OwnerIdentity) -> bool:
        """Whether the other process is certainly dead; False where it can't be told."""
        if not self.sees(other):
            return False
        try:
            os.kill(other.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass  # another user's process
        started = _process_started(other.pid)
        return started is not None and started != other.pid_started


@dataclass(frozen=True)
class Owner:
    """A run's latest owner; the times are the store's wall clock, in seconds since the epoch.

    `beats` is all that the store lists of this epoch: the owner lives while it changes.
    `identity` is None where the claim can't be read.
    """

    epoch: int
    identity: OwnerIdentity | None
    since_s: float
    last_beat_s: float
    beats: frozenset[tuple[str, int]]


@dataclass(frozen=True)
class RunEnd:
    """The final state of a run under the owner of `epoch`."""

    epoch: int
    state: FinalState
    exit_code: int
    reason: str


@dataclass(frozen=True)
class AttemptFacts:
    """What the record holds of one attempt; `end` is None while it runs or if its driver died."""

    attempt: int
    start: Mapping[str, Any]
    end: Mapping[str, Any] | None
    workers: tuple[Mapping[str, Any], ...]


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


class RunRecord:
    """One run's record. All methods block on the store and may raise `StoreError`."""

    def __init__(self, store: Store, name: str) -> None:
        """A record by name, unchecked: use `create`, `open` or `resolve_run`."""
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
        if not _RUN_NAME.fullmatch(run_name):
            raise UsageError(f"{run_name!r} can't be a run's name; use letters, digits, . _ and -")
        record = cls(store, run_name)
        created = {"run": run_name, "created_s": now_s, "launched_from": dict(launched_from)}
        fresh = record._create("created", created)
        if not fresh or not store.create(f"{run_name}/job.yaml", job_yaml.encode()):
            raise UsageError(f"a run {run_name} exists already in {store.url}; choose another name")
        store.create(f"index/{run_name}", b"{}")  # last: a listed run is a complete one
        return record

    @classmethod
    def open(cls, store: Store, name: str) -> RunRecord:
        """An existing run; raises `RunNotFound`, which names the nearest runs."""
        if _RUN_NAME.fullmatch(name) and store.stat(f"{name}/created") is not None:
            return cls(store, name)
        names = [run for run, _ in _index(store)]
        near = get_close_matches(name, names, n=3, cutoff=0.5)
        nearest = f"the nearest are {', '.join(near)}" if near else f"{len(names)} runs are there"
        raise RunNotFound(
            f"no run {name!r} in {store.url}; {nearest}; see `hotstart runs`, or name another "
            "run directory"
        )

    @property
    def checkpoint_location(self) -> str:
        """Where the run keeps its checkpoints: an absolute path or a `gs://` URL."""
        return f"{self.store.url.rstrip('/')}/{self.name}/checkpoints"

    @property
    def log_location(self) -> str:
        """Where the run's logs belong: an absolute path or a `gs://` URL."""
        return f"{self.store.url.rstrip('/')}/{self.name}/logs"

    def job_yaml(self) -> str:
        """The job as it was launched; raises `RecordDamaged` if it isn't there."""
        name = f"{self.name}/job.yaml"
        data = self.store.get(name)
        if data is None:
            raise RecordDamaged(f"{self.store.url}/{name} is missing; launch the job anew")
        return data.decode()

    def start_attempt(self, n: int, info: Mapping[str, Any]) -> None:
        """Record that attempt n begins; raises `RunOwned` if another driver has started it.

        The report reads `started_at_s` (wall clock) and `cache` from `info`.
        """
        if not self._create(f"attempts/{n:05d}/start", info):
            raise RunOwned(
                f"attempt {n} of run {self.name} in {self.store.url} was started by another "
                "driver; look at `hotstart runs` and stop one of the two"
            )

    def end_attempt(self, n: int, outcome: Outcome, info: Mapping[str, Any]) -> None:
        """Record how attempt n ended; the first end of an attempt stays."""
        facts = {
            **info,
            "outcome": outcome.kind,
            "reason": outcome.reason,
            "first_worker": outcome.first_worker,
        }
        self._create(f"attempts/{n:05d}/end", facts)

    def worker_report(self, n: int, i: int, report: Mapping[str, Any]) -> None:
        """Keep the report of process index i in attempt n; the first one stays."""
        self._create(f"attempts/{n:05d}/workers/{i:05d}", report)

    def finish(self, state: FinalState, exit_code: int, reason: str, *, epoch: int) -> None:
        """Record the run's end under the owner of `epoch`; without effect once superseded."""
        facts = {"state": state, "exit_code": int(exit_code), "reason": reason}
        self._create(f"end/{epoch:08d}", facts)

    def next_attempt(self) -> int:
        """The number of the attempt to start next, from 1."""
        return max(self._attempt_names(), default=0) + 1

    def attempts(self) -> tuple[AttemptFacts, ...]:
        """Every attempt in order, unreadable facts left out."""
        names = self._attempt_names()
        everything = [name for facts in names.values() for name in facts.values()]
        with ThreadPoolExecutor(_PARALLEL_READS) as pool:
            read = dict(zip(everything, pool.map(self._read, everything), strict=True))

        def facts_of(n: int) -> AttemptFacts:
            found = {key: fact for key, name in names[n].items() if (fact := read[name])}
            workers = tuple(found[key] for key in sorted(found.keys() - {"start", "end"}))
            return AttemptFacts(n, found.get("start", {}), found.get("end"), workers)

        return tuple(facts_of(n) for n in sorted(names))

    def end(self) -> RunEnd | None:
        """The latest end that was recorded, or None; an older epoch's end may be outdated."""
        for key, stat in sorted(self._matching("end/", _END), key=lambda x: x[0], reverse=True):
            facts = self._read(stat.name) or {}
            state, exit_code = facts.get("state"), facts.get("exit_code")
            if state in ("done", "failed", "interrupted") and isinstance(exit_code, int):
                return RunEnd(int(key[0]), state, exit_code, str(facts.get("reason", "")))
        return None

    def owner(self) -> Owner | None:
        """The owner of the highest epoch, or None if the run never had one."""
        epochs: dict[int, dict[int, ObjectStat]] = {}
        for key, stat in self._matching("owner/", _BEAT):
            epochs.setdefault(int(key[0]), {})[int(key[1])] = stat
        claimed = [epoch for epoch, stats in epochs.items() if 0 in stats]
        if not claimed:
            return None
        stats = epochs[max(claimed)]
        return Owner(
            epoch=max(claimed),
            identity=_identity_from(self._read(stats[0].name)),
            since_s=stats[0].modified_s,
            last_beat_s=max(s.modified_s for s in stats.values()),
            beats=frozenset((s.name, s.generation) for s in stats.values()),
        )

    def state(self, observer: OwnerIdentity | None = None) -> RunState:
        """The run's state as far as it can be told without waiting (the words: see above)."""
        return _state(self.owner(), self.end(), observer or OwnerIdentity.of_this_process())

    def read(self, observer: OwnerIdentity | None = None) -> RunFacts:
        """Everything that the record holds."""
        observer = observer or OwnerIdentity.of_this_process()
        owner, end = self.owner(), self.end()
        created = self._read(f"{self.name}/created") or {}
        state = _state(owner, end, observer)
        return RunFacts(self.name, state, created, owner, end, self.attempts())

    def summary(self, observer: OwnerIdentity) -> RunSummary:
        """One line on the run."""
        owner, end = self.owner(), self.end()
        state = _state(owner, end, observer)
        created_s = (self._read(f"{self.name}/created") or {}).get("created_s")
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

    def _create(self, fact: str, facts: Mapping[str, Any]) -> bool:
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

    def _matching(
        self, folder: str, pattern: re.Pattern[str]
    ) -> Iterator[tuple[tuple[str, ...], ObjectStat]]:
        prefix = f"{self.name}/{folder}"
        for stat in self.store.list(prefix):
            if match := pattern.fullmatch(stat.name.removeprefix(prefix)):
                yield match.groups(), stat
            else:
                self._warn_once(stat.name, "is no fact of a run record; it is skipped")

    def _attempt_names(self) -> dict[int, dict[str, str]]:
        """Names of the facts of each attempt, under `start`, `end` or the process index."""
        names: dict[int, dict[str, str]] = {}
        for (n, fact, index), stat in self._matching("attempts/", _ATTEMPT_FACT):
            names.setdefault(int(n), {})[fact or index] = stat.name
        return names

    def _warn_once(self, name: str, problem: str) -> None:
        if name not in self._warned:
            self._warned.add(name)
            logger.warning("%s/%s %s", self.store.url, name, problem)


class Ownership:
    """The right to start workers for a run, kept by beats. Made by `take_ownership`.

    Safe to use from one thread beside the one that `keep` starts.
    """

    def __init__(self, record: RunRecord, epoch: int) -> None:
        """Ownership of an epoch whose claim the caller has just created."""
        self.epoch = epoch
        self._record = record
        self._beat = 0
        self._superseded = False
        self._may_delete = True
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def superseded(self) -> bool:
        """Whether the last beat found that another driver has taken the run."""
        return self._superseded

    def beat(self) -> bool:
        """Say that this owner lives; False once another owns the run, and then nothing is written.

        Blocks on the store (a list, a create, a delete); raises `StoreError`.
        """
        owner = self._record.owner()
        if owner is None or owner.epoch != self.epoch:  # superseded, or the record was removed
            self._superseded = True
            return False
        self._beat += 1  # before the call: a beat whose fate is unknown is not sent again
        self._record._create(f"owner/{self.epoch:08d}/{self._beat:08d}", {})
        self._delete_older(owner)
        return True

    def keep(
        self, on_superseded: Callable[[], None], *, interval_s: float = BEAT_INTERVAL_S
    ) -> None:
        """Beat in a background thread until `stop`; errors of the store are logged, not fatal.

        `on_superseded` is called once, in that thread, when another driver has taken the run.
        """
        self._thread = threading.Thread(
            target=self._keep, args=(on_superseded, interval_s), name="owner-beat", daemon=True
        )
        self._thread.start()

    def stop(self, timeout_s: float = 1.0) -> None:
        """End the background beats; blocks for at most `timeout_s`.

        A request to a slow store may outlast it: a beat after the run's end changes nothing.
        """
        self._stop.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout_s)

    def _keep(self, on_superseded: Callable[[], None], interval_s: float) -> None:
        name = self._record.name
        while not self._stop.wait(interval_s):
            try:
                owned = self.beat()
            except Exception as e:  # a thread that dies here would cost the run its owner
                logger.warning("run %s: no owner's beat this time: %s", name, e)
                continue
            if not owned:
                logger.warning("run %s: epoch %d is superseded", name, self.epoch)
                on_superseded()
                return

    def _delete_older(self, owner: Owner) -> None:
        claim = f"{self._record.name}/owner/{self.epoch:08d}/{0:08d}"
        for name, generation in owner.beats:
            if name != claim and self._may_delete:  # the claim keeps later contenders out
                try:
                    self._record.store.delete(name, generation)
                except AccessDenied as e:
                    logger.warning("run %s: old beats stay: %s", self._record.name, e)
                    self._may_delete = False


def take_ownership(
    record: RunRecord,
    identity: OwnerIdentity,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    ttl_s: float = OWNER_TTL_S,
    poll_s: float = 1.0,
) -> Ownership:
    """Become the run's owner: at once where that is safe, else after watching the old one.

    At once if the run has no owner or an end, or if the owner was a process of this machine that
    is gone. Otherwise blocks until the old owner's beat moves (raises `RunOwned`) or has not
    moved for `ttl_s` on this process's own `clock`. Two hosts' clocks are never compared.
    Exactly one of several contenders wins; the others raise `RunOwned`. A run that is done
    raises `UsageError`.
    """
    first = record.owner()
    if _must_watch(record, first, identity) and first is not None:
        since = clock()
        while (waited_s := clock() - since) < ttl_s:
            sleep(min(poll_s, ttl_s - waited_s))
            now = record.owner()
            if now is None or now.epoch != first.epoch:
                raise _owned(record, now)
            if not _must_watch(record, now, identity):
                break
            if now.beats != first.beats:
                raise _owned(record, now)
        else:
            logger.warning("run %s: its owner gave no beat for %g s", record.name, ttl_s)
    epoch = first.epoch + 1 if first else 1
    if not record._create(f"owner/{epoch:08d}/{0:08d}", asdict(identity)):
        raise _owned(record, record.owner())
    logger.info("run %s: owned in epoch %d by pid %d", record.name, epoch, identity.pid)
    return Ownership(record, epoch)


def new_run_name(job_name: str, now_s: float, rng: random.Random) -> str:
    """A name like `bytelm-20261124-163001-3f2a`: job, UTC date and time, 16 random bits.

    `now_s` is wall-clock time in seconds since the epoch.
    """
    job = re.sub(r"[^A-Za-z0-9._-]+", "-", job_name).lstrip("._-")[:120] or "job"
    return f"{job}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime(now_s))}-{rng.getrandbits(16):04x}"


def list_runs(store: Store, observer: OwnerIdentity | None = None) -> list[RunSummary]:
    """All runs, the one launched last at the end. Blocks; raises `StoreError`."""
    observer = observer or OwnerIdentity.of_this_process()
    records = [RunRecord(store, name) for name, _ in _index(store)]
    with ThreadPoolExecutor(_PARALLEL_READS) as pool:
        return list(pool.map(lambda record: record.summary(observer), records))


def resolve_run(store: Store, name: str) -> RunRecord:
    """The run of this name, or for `latest` the one that was launched last.

    Blocks; raises `RunNotFound`, `StoreError`.
    """
    if name != "latest":
        return RunRecord.open(store, name)
    runs = _index(store)
    if not runs:
        raise RunNotFound(
            f"no runs in {store.url}; launch one with `hotstart launch JOB.yaml`, or name "
            "another run directory"
        )
    return RunRecord.open(store, runs[-1][0])


def _index(store: Store) -> list[tuple[str, float]]:
    """Names of the runs and when the store made them, in that order."""
    try:
        runs = [(s.name.removeprefix("index/"), s.modified_s) for s in store.list("index/")]
    except StoreMissing:
        return []
    return sorted((r for r in runs if _RUN_NAME.fullmatch(r[0])), key=lambda r: (r[1], r[0]))


def _state(owner: Owner | None, end: RunEnd | None, observer: OwnerIdentity) -> RunState:
    if end is not None and (owner is None or end.epoch >= owner.epoch):
        return end.state
    if owner is None:
        return "created"
    if owner.identity is None or not observer.sees(owner.identity):
        return "unknown"
    return "lost" if observer.knows_dead(owner.identity) else "running"


def _must_watch(record: RunRecord, owner: Owner | None, identity: OwnerIdentity) -> bool:
    state = _state(owner, record.end(), identity)
    if state == "done":
        raise UsageError(f"run {record.name} is done; launch the job anew instead")
    return state in ("running", "unknown")


def _owned(record: RunRecord, owner: Owner | None) -> RunOwned:
    run = f"run {record.name} in {record.store.url}"
    if owner is None:
        return RunOwned(f"{run} was removed while its owner was watched")
    who = owner.identity
    by = f"pid {who.pid} on {who.host} (user {who.user})" if who else "an unreadable owner"
    since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(owner.since_s))
    return RunOwned(
        f"{run} is owned by {by} since {since} by the store's clock; stop that driver first"
    )


def _identity_from(facts: Mapping[str, Any] | None) -> OwnerIdentity | None:
    types = {"host": str, "user": str, "pid": int, "pid_started": int}
    types |= {"boot_id": str, "pid_namespace": str}
    if facts is None or not all(isinstance(facts.get(k), t) for k, t in types.items()):
        return None
    if not 0 < facts["pid"] < 2**31:  # 0 and below would ask about process groups
        return None
    return OwnerIdentity(**{k: facts[k] for k in types})


def _process_started(pid: int) -> int | None:
    """Start time of a process in clock ticks since boot, -1 for a zombie, None if unreadable.

    See proc_pid_stat(5); the command in the second field may hold spaces and parentheses.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return -1 if fields[0] in "ZX" else int(fields[19])
