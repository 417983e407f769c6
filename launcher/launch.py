"""From a job to a finished run: record, ownership, Ray, attempts."""

from __future__ import annotations

import functools
import logging
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hotstart.cache.config import CacheConfig
from hotstart.cache.errors import StoreError
from hotstart.cache.keyring import load_keyring
from hotstart.cache.signing import Keyring
from hotstart.cache.store import open_store
from hotstart.conf.load import LoadedJob, job_to_yaml
from hotstart.conf.schema import JobConfig
from hotstart.launcher.ahead import Ahead, AheadSettings, installed_versions
from hotstart.launcher.asked import recorded_fingerprint
from hotstart.launcher.attempts import AttemptLoop, LoopSettings, Warm
from hotstart.launcher.beats import BEAT_DEADLINE_S, Ownership
from hotstart.launcher.cold_start import ColdStart, before_in_directory, before_in_record
from hotstart.launcher.errors import (
    CacheRequired,
    ClusterUnreachable,
    ExitCode,
    HostFailed,
    LauncherError,
    PlacementTimeout,
    RecordUnreachable,
    UsageError,
)
from hotstart.launcher.facts import RunEnd
from hotstart.launcher.following import Watcher
from hotstart.launcher.identity import OwnerIdentity
from hotstart.launcher.job_plan import (
    attempt_plan,
    cache_config_of,
    is_bucket,
    unshared_directories,
)
from hotstart.launcher.live import Live
from hotstart.launcher.outcome import Budgets, GiveUp
from hotstart.launcher.ownership import FIRST_EPOCH, take_ownership
from hotstart.launcher.placement import GangSize, place, sizes_of, total
from hotstart.launcher.plan import AttemptPlan
from hotstart.launcher.record import RunRecord
from hotstart.launcher.record_patience import Patience
from hotstart.launcher.recorded_job import RecordedJob
from hotstart.launcher.run_end import record_end, state_of_end
from hotstart.launcher.runs import new_run_name, open_runs
from hotstart.launcher.stopping import stop_reason
from hotstart.launcher.store_check import check_store
from hotstart.launcher.submitted import (
    RUN_NAME_VARIABLE,
    SUBMISSION_VARIABLE,
    keep_notes,
    keep_shipment,
    moved,
)
from hotstart.launcher.worker_facts import key_versions

if TYPE_CHECKING:
    from hotstart.launcher.gang import Gang

logger = logging.getLogger(__name__)

_COLD_S = 2.0
# The cluster's or the store's; whoever watches over the run tries again.
_NOT_ITS_FAULT = (ClusterUnreachable, HostFailed, PlacementTimeout, RecordUnreachable)


class Run:
    """A run that this process owns. `execute` blocks until it is over; `end` is set then."""

    def __init__(
        self,
        record: RunRecord,
        ownership: Ownership,
        config: JobConfig,
        keyring: Keyring,
        *,
        is_new: bool,
        warm: Warm | None = None,
    ) -> None:
        """With `warm` the job is not run to its end, but only to its first step."""
        self.record = record
        self._keyring = keyring
        self._ownership = ownership
        created = record.created()
        launched_from = created.get("launched_from", {})
        if not is_new and os.environ.get(SUBMISSION_VARIABLE):
            config, launched_from = moved(config, launched_from, str(Path.cwd()))
        self.config = config
        self._launched_from = launched_from
        made_s = created.get("created_s")
        self._created_s = made_s if isinstance(made_s, int | float) else time.time()
        self._is_new = self._unchecked = is_new
        self._lifetime_seen = False
        self._warm = warm
        self._interrupted = threading.Event()
        self._stop_reason = ""
        self.end: RunEnd | None = None
        self._loop: AttemptLoop | None = None

    @property
    def name(self) -> str:
        """The run's name."""
        return self.record.name

    @property
    def epoch(self) -> int:
        """The epoch in which this process owns it."""
        return self._ownership.epoch

    @property
    def superseded(self) -> bool:
        """Whether another driver has taken the run."""
        return self._ownership.superseded

    @property
    def is_over(self) -> bool:
        """Whether the run has been decided, and only its record may still be waited for."""
        return self._code_so_far() is not None

    @property
    def exit_code(self) -> int:
        """What to end with now: the run's own code once it is over, until then 130."""
        code = self._code_so_far()
        return int(ExitCode.INTERRUPTED) if code is None else code

    def _code_so_far(self) -> int | None:
        if self.end is not None:
            return self.end.exit_code
        decided = self._loop.decided if self._loop is not None else None
        return None if decided is None else int(decided.exit_code)

    def interrupt(self) -> None:
        """End the run soon, as Ctrl-C does; safe in a signal handler."""
        self._interrupted.set()

    def _stop_asked(self) -> None:
        """Somebody has written a stop request; see `stopping.py`."""
        if not self._stop_reason:
            self._stop_reason = stop_reason(self.record.stop_request(self._ownership.epoch) or {})
            logger.info("run %s: %s", self.name, self._stop_reason)
        self.interrupt()

    def _explained(self, decision: GiveUp) -> GiveUp:
        """The decision with the reason why the run was interrupted, where that is known."""
        if decision.exit_code != ExitCode.INTERRUPTED:
            return decision
        if self._ownership.superseded:
            return GiveUp(decision.exit_code, "another driver has taken the run")
        return GiveUp(decision.exit_code, self._stop_reason or decision.reason)

    def execute(self, watcher: Watcher, address: str | None, tell: Any) -> GiveUp:
        """Run attempts until the job is done, failed or interrupted; the run's end is recorded.

        Raises `ClusterUnreachable`, `PlacementTimeout`, or what `check_writable` does for a
        bucket, before anything was started.
        """
        from hotstart.launcher import cluster

        config = self.config
        shares = place(config, config.least_workers)
        settings = LoopSettings(
            budgets=Budgets(config.restarts.failures, config.restarts.preemptions),
            backoff_s=config.restarts.backoff_s,
            stop_s=config.timeouts.stop_s,
            flush_s=config.cache.flush_timeout_s,
            cache_facts=self._cache_facts(),
            versions=key_versions(),
            cost_per_worker_hour=config.cost_per_worker_hour,
            exit_codes=frozenset(config.restarts.exit_codes),
            refill_after_s=config.restarts.refill_after_s,
            warm=self._warm,
            has_checkpoint=self._has_checkpoint,
        )
        for problem in unshared_directories(config, len(shares)):
            tell(problem)
        live, patience = Live(watcher), Patience(tell=tell)
        self._ownership.keep(self.interrupt, on_stop=self._stop_asked, says=live.says)
        may_restart = False
        decision = GiveUp(ExitCode.JOB_FAILED, "the driver failed")
        try:
            cold = ColdStart(settings.versions, tell)
            ahead = self._ahead(cold)
            if ahead is not None:
                ahead.recall()
            with cluster.connect(address, total(shares), self._interrupted.is_set):
                loop = self._loop = AttemptLoop(
                    settings,
                    self.record,
                    lambda attempt: self._place(attempt, tell, live, cold),
                    self._plan,
                    live,
                    self._interrupted.is_set,
                    ahead=ahead,
                    doubt=self._ownership.doubt,
                    patience=patience,
                )
                decision = loop.run()
            if self._warm is not None and decision.exit_code == ExitCode.DONE:
                tell(decision.reason)
        except StoreError as error:
            decision, may_restart = GiveUp(ExitCode.JOB_FAILED, str(error)), True
            raise RecordUnreachable(
                f"run {self.name}: its record in {self.record.store.url} can't be kept: {error}; "
                "restart it when it can"
            ) from error
        except LauncherError as error:
            decision = GiveUp(error.exit_code, str(error))
            may_restart = isinstance(error, _NOT_ITS_FAULT)
            raise
        except Exception as error:
            decision = GiveUp(ExitCode.JOB_FAILED, str(error))
            may_restart = type(error).__module__.partition(".")[0] == "ray"  # its cluster went
            raise
        finally:
            decision = self._explained(decision)
            self.end = RunEnd(
                self._ownership.epoch,
                state_of_end(decision),
                int(decision.exit_code),
                decision.reason,
                may_restart,
            )
            record_end(
                self.record,
                self._ownership.epoch,
                decision,
                may_restart=may_restart,
                patience=patience,
                gives_up=self._interrupted.is_set,  # superseded, too
                tell=tell,
            )
            self._ownership.stop()  # not before: nobody is to take a run that is over
        return decision

    def _place(self, attempt: int, tell: Any, watcher: Watcher, cold: ColdStart) -> Gang | None:
        from hotstart.launcher.place_gang import Wishes, place_gang

        config = self.config
        cold.settle(_COLD_S)
        wishes = Wishes(
            config,
            config.timeouts.placement_s,
            self._interrupted.is_set,
            tell,
            waits=functools.partial(watcher.waiting, attempt),
        )
        gang = place_gang(wishes, lambda size: self._plan(attempt, "", size))
        if gang is None:
            return None
        gang.beat_age_s = self._ownership.beat_age_s
        cache = cache_config_of(config)
        try:
            if cache is not None and self._keyring:
                gang.check_signing_keys(cache, self._keyring.ids)
            gang.open_cache(cache)
            if cache is not None and self._unchecked and is_bucket(cache.location):
                source = self._launched_from.get("cache_source") or "default"
                gang.check_store(cache, source, self._interrupted.is_set)
                self._unchecked = False  # once: later an outage costs only time
            self._look_at_lifetime(gang, cache, tell)
        except BaseException:
            gang.close()
            raise
        return gang

    def _look_at_lifetime(self, gang: Gang, cache: CacheConfig | None, tell: Any) -> None:
        run = f"{self.record.store.url.rstrip('/')}/{self.name}"
        location = cache.location if cache else ""
        if self._lifetime_seen or not (is_bucket(location) or is_bucket(run)):
            return
        from hotstart.launcher.bucket_lifetime import Lived

        self._lifetime_seen = True
        # Another host's clock may have made the run; a rule's age is of days.
        age_s = max(0.0, time.time() - self._created_s)
        gang.look_at_lifetime(Lived(location, run, age_s), tell)

    def _ahead(self, cold: ColdStart) -> Ahead | None:
        cache = cache_config_of(self.config)
        if cache is None:
            return None
        sizes, in_bucket = sizes_of(self.config), is_bucket(cache.location)
        settings = AheadSettings(
            fingerprint=self._fingerprint,
            sizes=sizes if self._is_new and in_bucket else (),
            cache=cache,
            platform=self.config.platform,
            read_ahead=self.config.cache.read_ahead,
        )
        if not self._is_new:
            cold.look(lambda: before_in_record(self.record))
        elif not in_bucket:
            cold.look(
                lambda: before_in_directory(
                    cache.location,
                    {self._fingerprint(workers) for workers in sizes},
                    self._keyring,
                    key_versions(),
                )
            )
        versions = installed_versions(self.config.platform)
        return Ahead(settings, self.record, versions, is_new=self._is_new, on_misfit=cold.misfit)

    def _fingerprint(self, workers: int) -> str:
        return recorded_fingerprint(self.config, self._launched_from, workers)

    def _has_checkpoint(self) -> bool:
        try:
            store = open_store(self.record.checkpoint_location)
            return next(iter(store.list("")), None) is not None
        except StoreError:  # it was never made
            return False

    def _plan(self, attempt: int, coordinator: str, size: GangSize) -> AttemptPlan:
        return attempt_plan(
            self.config,
            self.record,
            attempt,
            coordinator,
            size,
            folder=self._launched_from.get("folder", ""),
        )

    def _cache_facts(self) -> Mapping[str, Any]:
        cache = self.config.cache
        source = self._launched_from.get("cache_source")
        return {"location": cache.location, "source": source, "mode": cache.mode}


def new_run(job: LoadedJob, *, warm: Warm | None = None) -> Run:
    """Record a new run of a job and own it; raises `UsageError` where that can't be written.

    With `warm` it is run to its first step alone.

    `SigningKeyError` where this host's signing key can't be used.
    """
    config = job.config
    keyring = load_keyring(config.cache.signing_key_file)
    check_writable(job)
    store = open_runs(config.run_dir or "", keyring)
    submission = os.environ.get(SUBMISSION_VARIABLE)
    launched_from = {
        "host": socket.gethostname(),
        "folder": str(Path.cwd()),
        "job_file": str(job.source),
        "cache_source": job.origins.get("cache.location"),
        "submission": submission,
    }
    now_s = time.time()
    name = os.environ.get(RUN_NAME_VARIABLE) or new_run_name(
        config.name, now_s, random.SystemRandom()
    )
    try:
        record = RunRecord.create(store, name, job_to_yaml(config), launched_from, now_s)
    except StoreError as error:
        raise UsageError(f"{job.origins.get('run_dir', 'default')}: run_dir: {error}") from error
    if submission:
        keep_shipment(record, Path.cwd())
    try:
        me, beats = OwnerIdentity.of_this_process(), _for_beats(record, keyring)
        ownership = take_ownership(record, me, beats=beats)
        return Run(record, ownership, config, keyring, is_new=True, warm=warm)
    except KeyboardInterrupt:  # without an end it would look like a run whose driver was lost
        record.finish("interrupted", ExitCode.INTERRUPTED, "interrupted", epoch=FIRST_EPOCH)
        raise


def reopen_run(job: RecordedJob, tell: Callable[[str], None]) -> Run:
    """Take over a run that its driver no longer looks after; see `read_job`, `take_ownership`.

    A changed job is recorded once the run is owned, so one that is refused changes nothing.
    """
    me, beats = OwnerIdentity.of_this_process(), _for_beats(job.record, job.keyring)
    ownership = take_ownership(job.record, me, tell=tell, beats=beats)
    if job.changed is not None:
        job.record.revise_job(ownership.epoch, job.changed)
    keep_notes(job.record, ownership.epoch)
    return Run(job.record, ownership, job.config, job.keyring, is_new=False)


def _for_beats(record: RunRecord, keyring: Keyring) -> RunRecord:
    """The same record, by a store that gives up soon: see `beats.py`."""
    return RunRecord(open_runs(record.store.url, keyring, BEAT_DEADLINE_S), record.name)


def check_writable(job: LoadedJob) -> None:
    """Raise where the cache's store can't be written: `UsageError`, in strict mode `CacheRequired`.

    Directories only: a bucket is checked by an agent (`Gang.check_store`), for importing gcsfs
    here would hold up the launch. Read-only jobs are not checked.
    """
    cache = cache_config_of(job.config)
    if cache is None or is_bucket(cache.location):
        return
    problem = check_store(cache, job.origins.get("cache.location", "default"))
    if problem is not None:
        raise (CacheRequired if cache.strict else UsageError)(problem)
