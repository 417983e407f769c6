"""The attempt loop: gang, outcome, decision, next attempt.

One attempt at a time: its start is recorded, workers start, it is followed to its end
(`following.py`), the end is recorded and `decide` says what comes next. An end is recorded beside
the next start, which does not wait for it (`attempt_writer.py`).
"""

from __future__ import annotations

import functools
import logging
import random
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from typing import Any

from hotstart.launcher.ahead import Ahead, Answers
from hotstart.launcher.attempt_writer import AttemptWriter
from hotstart.launcher.errors import ExitCode, HostFailed, LauncherError
from hotstart.launcher.following import Ended, Following, Gang, Keep, Watcher
from hotstart.launcher.outcome import Budgets, GiveUp, Outcome, Restart, decide, is_steady, refilled
from hotstart.launcher.placement import GangSize
from hotstart.launcher.plan import AttemptPlan
from hotstart.launcher.record import RunRecord
from hotstart.launcher.record_patience import Patience
from hotstart.launcher.run_end import is_final, result_of

logger = logging.getLogger(__name__)

_POLL_S = 0.2
_DOUBT_POLL_S = 0.5  # longer than the other, so that agents which are lost meanwhile are noticed
_LEARN_S = 15.0
_PLACINGS = 3
_TOLD_TO_STOP = "the launcher was told to stop"


@dataclass(frozen=True)
class Warm:
    """The job is to do no more than warm its cache: each attempt ends at its first step.

    restored: whether a second attempt restores a checkpoint, where there is one by then.
    save_s: how long the first one may go on to make one, where it has made none by its first step.
    """

    restored: bool = True
    save_s: float = 60.0


@dataclass(frozen=True)
class LoopSettings:
    """What the loop needs of the job.

    warm: None where the job is to run to its end.
    has_checkpoint: whether there is one to restore; blocks on the store.
    """

    budgets: Budgets
    backoff_s: float
    stop_s: float
    flush_s: float = 60.0
    cache_facts: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    cost_per_worker_hour: float | None = None
    exit_codes: Collection[int] = ()
    refill_after_s: float | None = None
    warm: Warm | None = None
    has_checkpoint: Callable[[], bool] = lambda: False


class AttemptLoop:
    """Runs attempts until the run is over. `run` blocks for as long as the job takes."""

    def __init__(
        self,
        settings: LoopSettings,
        record: RunRecord,
        place: Callable[[int], Gang | None],
        plan: Callable[[int, str, GangSize], AttemptPlan],
        watcher: Watcher,
        is_interrupted: Callable[[], bool],
        *,
        ahead: Ahead | None = None,
        doubt: Callable[[], str | None] = lambda: None,
        patience: Patience | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        rng: random.Random | None = None,
    ) -> None:
        """`place` waits for an attempt's hosts and gives a gang, None where interrupted; `plan`
        makes an attempt's plan from its number, its coordinator's address and the gang's size.
        `ahead` is None where nothing is to be made ready ahead of time. `doubt` says why this
        driver can't be sure that it owns the run: no attempt goes on, or starts, meanwhile.
        `patience` is with the record."""
        self._settings = settings
        self._record = record
        self._place = place
        self._plan = plan
        self._watcher = watcher
        self._is_interrupted = is_interrupted
        self._ahead = ahead
        self._doubt = doubt
        self._clock = clock
        self._sleep = sleep
        self._rng = rng or random.Random()
        self._gang: Gang | None = None
        self._warmed_starts = 0
        self._learning: list[Future[None]] = []
        self._patience = patience or Patience(clock=clock, sleep=sleep)
        self._writer = AttemptWriter(record, self._patience, is_interrupted)
        self.decided: GiveUp | None = None

    def run(self) -> GiveUp:
        """All attempts; the last decision. The gang is closed and the record written.

        The decision is in `decided` before that, which may take long where the record is out.
        Raises `StoreError` where the record refuses an attempt's start.
        """
        try:
            decision = self.decided = self._run()
        finally:
            if self._ahead is not None:
                wait(self._learning, timeout=_LEARN_S)  # needs the agents
                self._ahead.close()
            self._drop_gang()  # before the writes: a record that is out must not hold accelerators
            if self.decided is not None:
                self._patience.over(result_of(self.decided), is_final=is_final(self.decided))
            else:
                self._patience.over("the driver failed", is_final=False)
            self._writer.close()
        return decision

    def _run(self) -> GiveUp:
        budgets, without_step = self._settings.budgets, 0
        number = self._next_number()
        while True:
            ended = self._attempt(number)
            if ended is None:
                told = GiveUp(ExitCode.INTERRUPTED, _TOLD_TO_STOP)
                self._flush(told)
                return told
            outcome = ended.outcome
            refill_after_s = self._settings.refill_after_s
            moved_on = ended.stepped or is_steady(ended.steady_s, refill_after_s)
            without_step = 0 if moved_on else without_step + 1
            budgets = refilled(budgets, ended.steady_s, refill_after_s)
            decision = decide(
                outcome,
                budgets,
                backoff_s=self._settings.backoff_s,
                failures_without_step=without_step,
                rng=self._rng,
            )
            if self._settings.warm is not None and outcome.kind == "done":
                decision = self._warmed(self._settings.warm, ended.stepped, budgets)
            if isinstance(decision, GiveUp):
                self._flush(decision)
            hosts = ended.gang.take_stats()
            self._writer.end(
                number, outcome, ended.reports, hosts, ended.preemption, ended.first_exit
            )
            self._learn(number, ended.gang, ended.asked, ended.stepped, outcome.kind == "done")
            self._watcher.attempt_ended(number, outcome, decision, ended.first_exit)
            if isinstance(decision, GiveUp):
                return decision
            budgets = decision.budgets_left
            self._leave_hosts()
            self._pause(decision.delay_s)
            number += 1

    def _warmed(self, warm: Warm, stepped: bool, budgets: Budgets) -> Restart | GiveUp:
        """What follows an attempt that was only to warm the cache."""
        self._warmed_starts += stepped
        if not stepped:
            reason = "the script reported no step (context.step), so it ran to its end"
        elif self._warmed_starts > 1:
            reason = "warm for a fresh start and for one that restores a checkpoint"
        elif not warm.restored:
            reason = "warm for a fresh start alone, as was asked for"
        elif self._settings.has_checkpoint():
            return Restart(0.0, budgets)
        else:
            reason = (
                "warm for a fresh start alone: the script made no checkpoint in its run's "
                f"checkpoint folder within {warm.save_s:.0f} s of its first step, so what a "
                "restored start asks for is not known"
            )
        return GiveUp(ExitCode.DONE, reason)

    def _save_s(self) -> float:
        """How long the attempt may go on after its first step to make a checkpoint."""
        warm = self._settings.warm
        return 0.0 if warm is None or not warm.restored or self._warmed_starts else warm.save_s

    def _attempt(self, number: int) -> Ended | None:
        """One attempt; None if it was never started, since the run was interrupted before."""
        self._wait_until_sure()
        decided_at = self._clock()
        while True:
            ready = self._ready_gang(number)
            if ready is None or not self._may_start():  # hosts may have been long in coming
                return None
            gang, coordinator = ready
            if not gang.lost:  # or gone in a long doubt
                break
        plan = self._plan(number, coordinator, gang.size)
        info = {
            "started_at_s": time.time(),
            "waited_s": round(self._clock() - decided_at, 3),  # for hosts; phases count from before
            "process_count": plan.process_count,
            "host_count": gang.size.host_count,
            "workers": {"min": gang.size.least, "max": gang.size.most},
            "cache": dict(self._settings.cache_facts),
            "versions": dict(self._settings.versions),
            "cost_per_worker_hour": self._settings.cost_per_worker_hour,
        }
        if not self._writer.start(number, info, self._may_start, self._pause):
            return None
        self._watcher.attempt_started(number, gang.size)
        try:
            gang.start(plan, decided_at)
            return Following(
                gang,
                plan,
                decided_at,
                watcher=self._watcher,
                keep=Keep(
                    functools.partial(self._all_stepped, number, gang),
                    functools.partial(self._writer.differences, number),
                    functools.partial(self._writer.stacks, number),
                ),
                is_interrupted=self._is_interrupted,
                doubt=self._doubt,
                stop_s=self._settings.stop_s,
                exit_codes=self._settings.exit_codes,
                clock=self._clock,
                only_first_step=self._settings.warm is not None,
                save_s=self._save_s(),
                has_checkpoint=self._settings.has_checkpoint,
            ).to_the_end()
        except LauncherError as error:
            self._writer.end(number, Outcome("failed", str(error), None), {})
            raise

    def _ready_gang(self, number: int) -> tuple[Gang, str] | None:
        """A gang whose agents all live, as large as there is room for; its next coordinator.

        None if interrupted.

        An agent lost between attempts is charged to no budget: no worker was running, so no work
        is lost, and the new placement has its own deadline. Raises `HostFailed` where the agents
        of several gangs in a row are lost before they could be used.
        """
        for _ in range(_PLACINGS):
            self._leave_hosts()
            if self._gang is not None and (self._gang.lost or self._gang.could_grow()):
                self._drop_gang()
            if self._gang is None and not self._is_interrupted():
                self._gang = self._place(number)
            if self._gang is None or self._is_interrupted():
                return None
            if self._ahead is not None:
                self._ahead.send(number, self._gang)
            coordinator = self._gang.fresh_coordinator()
            if coordinator is not None:
                return self._gang, coordinator
            logger.warning("an agent was lost between attempts; placing the job anew")
        hosts = sorted({lost.host for lost in self._gang.lost}) if self._gang else []
        raise HostFailed(
            f"agents were lost {_PLACINGS} times before an attempt could start, last on "
            f"{', '.join(hosts)}; see Ray's logs there"
        )

    def _next_number(self) -> int:
        # An interrupted driver finds out in `_attempt`, for which any number will do.
        return self._patience.keep(
            lambda: 0 if self._is_interrupted() else self._record.next_attempt(),
            gives_up=lambda: False,
            pause=self._pause,
        )

    def _may_start(self) -> bool:
        """Whether an attempt may start; blocks while that isn't known."""
        self._wait_until_sure()
        return not self._is_interrupted() and self._doubt() is None

    def _wait_until_sure(self) -> None:
        """Block while the driver can't be sure that it owns the run, and isn't interrupted."""
        doubt = self._doubt()
        if doubt is not None:
            logger.warning("%s; the next attempt waits until it is", doubt)
        while not self._is_interrupted() and self._doubt() is not None:
            self._pause(_DOUBT_POLL_S)

    def _all_stepped(self, number: int, gang: Gang, reports: Sequence[Mapping[str, Any]]) -> None:
        self._writer.first_step(number, reports)
        self._learn(number, gang, gang.asked(), True, False)

    def _learn(self, attempt: int, gang: Gang, asked: Answers, stepped: bool, done: bool) -> None:
        ahead = self._ahead
        if ahead is not None:
            learn = self._writer.then(ahead.learn, attempt, gang, asked, stepped=stepped, done=done)
            self._learning = [learn]  # the writer has done all that was before it

    def _pause(self, delay_s: float) -> None:
        until = self._clock() + delay_s
        while not self._is_interrupted() and (left := until - self._clock()) > 0:
            if left > _POLL_S and self._gang is not None and not self._gang.lost:
                list(self._gang.events())  # notices lost agents, and blocks for at most 0.2 s
                left = until - self._clock()
            self._sleep(max(0.0, min(left, _POLL_S)))

    def _flush(self, decision: GiveUp) -> None:
        """Wait for what workers published: agents upload it, and end with the gang."""
        settings = self._settings
        told = decision.exit_code == ExitCode.INTERRUPTED
        timeout_s = min(settings.stop_s, settings.flush_s) if told else settings.flush_s
        if self._gang is not None and not self._gang.flush(timeout_s):
            logger.warning(
                "not all that was compiled is in the cache's location; hosts that start again "
                "upload the rest"
            )

    def _leave_hosts(self) -> None:
        """Where a host of the gang is about to go: store what is there, and let the gang go.

        Ray puts nothing on such a host any more, so the next attempt is placed elsewhere.
        """
        gang = self._gang
        if gang is None or not gang.leaving:
            return
        left_s = max(0.0, min(gang.leaving.values()) - self._clock())
        if not gang.flush(min(left_s, self._settings.flush_s)):
            logger.warning(
                "not all that was compiled is in the cache's location, and a host of it goes"
            )
        wait(self._learning, timeout=min(left_s, _LEARN_S))  # needs the agents
        self._drop_gang()

    def _drop_gang(self) -> None:
        if self._gang is not None:
            self._gang.close()
            self._gang = None
