"""One attempt, followed from the start of its workers to its end.

Events are taken until `classify` knows how it ended, strict mode refuses what its workers have in
common, or the watchdog finds that it hangs; then what is left is stopped.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from signal import SIGTERM
from typing import Any, Protocol

from hotstart.cache.config import CacheConfig
from hotstart.launcher.ahead import Answers
from hotstart.launcher.outcome import (
    AgentLost,
    GiveUp,
    Outcome,
    Restart,
    WorkerExit,
    classify,
)
from hotstart.launcher.placement import GangSize
from hotstart.launcher.plan import AttemptPlan
from hotstart.launcher.preemption import (
    GangPreemption,
    Leaving,
    PreemptionNotice,
    StopPoint,
    first_to_go,
)
from hotstart.launcher.preflight import Preflight, WorkerFacts, stages_before_user_code
from hotstart.launcher.progress import IN_USER_CODE
from hotstart.launcher.watchdog import GangWatch, Stillness
from hotstart.launcher.workers import (
    Event,
    FirstStep,
    OnItsOwn,
    Output,
    Reached,
    Unowned,
    reached_in,
)

logger = logging.getLogger(__name__)

_BY_SIGTERM = 128 + SIGTERM
_LAST_WORDS_S = 1.0
_PEER_GRACE_S = 1.0


class Gang(Protocol):
    """What the loop needs of `gang.Gang`; see there."""

    lost: list[AgentLost]

    @property
    def leaving(self) -> Mapping[int, float]: ...

    @property
    def size(self) -> GangSize: ...

    def could_grow(self) -> bool: ...
    def read_ahead(self, attempt: int, manifest_json: bytes) -> None: ...
    def latest_manifest(self, cache: CacheConfig, fingerprint: str) -> bytes | None: ...
    def latest_manifest_of(
        self, cache: CacheConfig, fingerprints: Sequence[str]
    ) -> bytes | None: ...
    def save_manifest(self, cache: CacheConfig, fingerprint: str, manifest_json: bytes) -> None: ...
    def fresh_coordinator(self) -> str | None: ...
    def start(self, attempt: AttemptPlan, decided_at: float) -> None: ...
    def go_on(self, attempt: int) -> None: ...
    def tell(self, attempt: int, message: dict[str, Any]) -> None: ...
    def events(self) -> Any: ...
    def stacks(self) -> dict[int, str]: ...
    def stop(self, grace_s: float, *, ask: bool) -> None: ...
    def asked(self) -> Answers: ...
    def finish(self) -> dict[int, dict[str, Any]]: ...
    def drained(self) -> bool: ...
    def look_at_nodes(self) -> None: ...
    def flush(self, timeout_s: float) -> bool: ...
    def take_stats(self) -> list[dict[str, Any]]: ...
    def close(self) -> None: ...


class Watcher(Protocol):
    """Is told what happens, to show it.

    waiting: there is no room for the gang; what it needs, and how much longer is waited for it.
    ready: all workers are in user code. Seconds count from the decision to start the attempt.
    attempt_ended: `first` is how the first worker to fail ended, where it is known.
    """

    def waiting(self, attempt: int, need: str, left_s: float) -> None: ...
    def attempt_started(self, attempt: int, size: GangSize) -> None: ...
    def output(self, output: Output) -> None: ...
    def reached(self, reached: Reached) -> None: ...
    def differs(self, attempt: int, difference: str) -> None: ...
    def ready(self, attempt: int, seconds: float) -> None: ...
    def first_step(self, attempt: int, seconds: float) -> None: ...
    def notice(self, attempt: int, notice: PreemptionNotice) -> None: ...
    def attempt_ended(
        self,
        attempt: int,
        outcome: Outcome,
        decision: Restart | GiveUp,
        first: WorkerExit | None = None,
    ) -> None: ...


@dataclass(frozen=True)
class Keep:
    """What is recorded while an attempt is followed; none of it blocks.

    all_stepped: takes the workers' reports when each has done a step.
    differs: takes a stage of `preflight.py` and what differs there.
    hung: takes the workers' stacks by process index; gives where they will be.
    """

    all_stepped: Callable[[Sequence[Mapping[str, Any]]], None]
    differs: Callable[[str, Sequence[Mapping[str, Any]]], None]
    hung: Callable[[Mapping[int, str]], str]


@dataclass(frozen=True)
class Ended:
    """How an attempt ended, whether all workers stepped, their reports, and what they asked for.

    `first_exit` is how the outcome's first worker ended, where that was seen. `steady_s` is how
    long it went on after all had stepped, or were in user code where none says its steps.
    `preemption` is for the record, a mapping for each notice.
    """

    outcome: Outcome
    stepped: bool
    reports: Mapping[int, Mapping[str, Any]]
    gang: Gang
    asked: Answers
    steady_s: float = 0.0
    preemption: Sequence[Mapping[str, Any]] = ()
    first_exit: WorkerExit | None = None


class Following:
    """Follows one attempt, whose workers have been started."""

    def __init__(
        self,
        gang: Gang,
        plan: AttemptPlan,
        decided_at: float,
        *,
        keep: Keep,
        watcher: Watcher,
        is_interrupted: Callable[[], bool],
        doubt: Callable[[], str | None] = lambda: None,
        stop_s: float,
        exit_codes: Collection[int] = (),
        clock: Callable[[], float] = time.monotonic,
        only_first_step: bool = False,
        save_s: float = 0.0,
        has_checkpoint: Callable[[], bool] = lambda: False,
    ) -> None:
        """`doubt` says why the driver can't be sure any more that it owns the run, else None.

        With `only_first_step` it is done, and stopped, once all workers have done a step; with
        `save_s`, and no checkpoint yet, they are told first, as of a preemption, to save and leave
        within so many seconds.
        """
        self._gang = gang
        self._plan = plan
        self._decided_at = decided_at
        self._keep = keep
        self._watcher = watcher
        self._is_interrupted = is_interrupted
        self._doubt = doubt
        self._ended_by = ""  # the host of an agent that did not hear from this driver
        self._on_its_own = ""  # a host that is not to be
        self._stop_s = stop_s
        self._exit_codes = exit_codes
        self._clock = clock
        self._preemption = GangPreemption(plan.process_count, decided_at, stop_s)
        self._all_stepped_at: float | None = None
        self._all_running_at: float | None = None
        self._running: set[int] = set()
        self._is_overdue = False
        self._only_first_step = only_first_step
        self._save_s = save_s
        self._has_checkpoint = has_checkpoint
        self._is_saving = False
        self._exits: list[WorkerExit] = []
        self._stepped: dict[int, Mapping[str, Any]] = {}
        self._preflight = Preflight(plan.process_count, stages_before_user_code(plan.cache))
        self._watch = GangWatch(plan.process_count, plan.limits)

    def to_the_end(self) -> Ended:
        """Block until it has ended and its workers have too."""
        gang, outcome = self._gang, None
        while outcome is None:
            self._see_events()
            judged = self._refused() or self._unowned()
            outcome = judged or self._classified()
            if outcome is None:
                outcome = judged = (
                    self._overdue() or self._warmed() or self._hung() or self._split()
                )
        ended_at = self._clock()
        if outcome.kind != "done" or judged is not None:
            # Who is asked may write a checkpoint, which may be another driver's to write by now.
            polite = outcome.kind in ("interrupted", "done") or self._is_overdue
            polite = polite and self._doubt() is None
            gang.stop(self._stop_s if polite else _PEER_GRACE_S, ask=polite)
        reports = gang.finish()
        asked = gang.asked()  # now: the next attempt's start makes agents forget this one
        deadline = self._clock() + _LAST_WORDS_S
        while not gang.drained() and self._clock() < deadline:
            self._see_events()
        for index in sorted(reports):  # whoever steps is heard of each 2 s only
            if reports[index]:
                self._watcher.reached(reached_in(index, reports[index]))
        if outcome.kind == "failed":
            gang.look_at_nodes()
        # A lost node may have been noticed only after the errors, or the hang, that it caused.
        last = self._classified()
        if last is not None and (judged is None or _explains(last, judged)):
            outcome = last
        # A program that never calls `context.step` is steady from its beginning on.
        since = self._all_stepped_at if self._stepped else self._all_running_at
        steady_s = 0.0 if since is None else ended_at - since
        return Ended(
            outcome,
            self._have_all_stepped,
            reports,
            gang,
            asked,
            steady_s,
            self._preemption.facts(),
            next((e for e in self._exits if e.process_index == outcome.first_worker), None),
        )

    @property
    def _have_all_stepped(self) -> bool:
        return len(self._stepped) == self._plan.process_count

    def _see_events(self) -> None:
        for attempt, event in list(self._gang.events()):
            if attempt == self._plan.attempt:
                self._see(event)

    def _see(self, event: Event) -> None:
        match event:
            case Output():
                self._watcher.output(event)
            case Unowned():
                self._ended_by = event.host
            case OnItsOwn():
                self._on_its_own = event.host
            case Reached():
                self._watcher.reached(event)
                self._watch.reached(event.process_index, event.last_step)
                self._runs(event)
            case WorkerExit():
                self._exits.append(event)
                self._watch.ended(event.process_index)
                self._stop_at(self._preemption.ended(event.process_index))
            case PreemptionNotice():
                self._notice(event)
            case StopPoint():
                self._answered(event)
            case Leaving():
                self._preemption.left(event, self._clock())
            case WorkerFacts():
                self._compare(event)
            case Stillness():
                self._watch.heard(event)
            case FirstStep():
                self._stepped[event.process_index] = event.report
                if self._have_all_stepped:
                    self._all_stepped_at = self._clock()
                    seconds = self._clock() - self._decided_at
                    self._watcher.first_step(self._plan.attempt, seconds)
                    self._keep.all_stepped([self._stepped[i] for i in sorted(self._stepped)])

    def _runs(self, reached: Reached) -> None:
        if reached.phase in IN_USER_CODE:
            self._running.add(reached.process_index)
            if self._all_running_at is None and len(self._running) == self._plan.process_count:
                self._all_running_at = self._clock()
                self._watcher.ready(self._plan.attempt, self._all_running_at - self._decided_at)

    def _compare(self, facts: WorkerFacts) -> None:
        found = self._preflight.heard(facts)
        for difference in found:
            self._watcher.differs(self._plan.attempt, str(difference))
        if found:
            self._keep.differs(facts.stage, [difference.to_json() for difference in found])
        if self._preflight.lets_go_on(facts.stage):  # said again where a worker was replaced
            self._gang.go_on(self._plan.attempt)

    def _classified(self) -> Outcome | None:
        outcome = classify(
            self._plan.process_count,
            self._exits,
            self._gang.lost,
            self._is_interrupted(),
            self._preemption.notices,
            self._exit_codes,
        )
        if outcome is None or not self._is_saving or self._preemption.notices or self._gang.lost:
            return outcome
        # They were asked to go: also by the program's own handler of SIGTERM.
        went = all(
            one.exit_code in (0, _BY_SIGTERM, *self._exit_codes) or one.signal == SIGTERM
            for one in self._exits
        )
        ended = outcome.kind in ("preempted", "failed") and went
        return self._stepped_enough() if ended else outcome

    def _notice(self, notice: PreemptionNotice) -> None:
        self._watcher.notice(self._plan.attempt, notice)
        if self._preemption.heard(notice, self._clock()):
            self._announce()

    def _announce(self) -> None:
        message = {"hold_s": self._preemption.hold_s, "turn": self._preemption.turn}
        self._gang.tell(self._plan.attempt, message)

    def _answered(self, point: StopPoint) -> None:
        if point.calls is None:
            logger.warning("process %d went on before it heard where to stop", point.process_index)
        self._stop_at(self._preemption.answered(point))

    def _stop_at(self, call: int | None) -> None:
        if call is not None:
            self._settle(call)

    def _settle(self, call: int | None) -> None:
        message = {"stop_at": call, "turn": self._preemption.turn}
        self._gang.tell(self._plan.attempt, message)

    def _overdue(self) -> Outcome | None:
        now_s = self._clock()
        if silent := self._preemption.has_no_agreement(now_s):
            who = ", ".join(map(str, silent))
            logger.warning("process %s does not answer: no agreement on where to stop", who)
            self._settle(None)
        if self._preemption.tries_again(now_s):
            self._announce()
        why = self._preemption.overdue(now_s)
        if why is None:
            return None
        if self._is_saving and not self._preemption.notices:
            return self._stepped_enough()
        self._is_overdue = True
        notice = first_to_go(self._preemption.notices)
        return Outcome("preempted", why if notice is None else f"{notice}; {why}", None)

    def _refused(self) -> Outcome | None:
        refusal = self._preflight.refusal
        if refusal is None:
            return None
        return Outcome("cache-required", f"strict mode: {refusal}", None)

    def _unowned(self) -> Outcome | None:
        doubt = self._doubt()
        if doubt is None and self._ended_by:
            doubt = f"the agent on {self._ended_by} did not hear from the driver in time"
        if doubt is None or self._is_interrupted():  # superseded: it ends for good
            return None
        return Outcome("preempted", f"{doubt}; workers ended in case another took the run", None)

    def _warmed(self) -> Outcome | None:
        if not self._only_first_step or not self._have_all_stepped:
            return None
        if not self._is_saving:
            if self._save_s <= 0 or self._has_checkpoint():
                return self._stepped_enough()
            self._is_saving = True
            self._notice(PreemptionNotice("warm", "", self._save_s))
        return None

    def _stepped_enough(self) -> Outcome:
        count = self._plan.process_count
        return Outcome("done", f"all {count} workers have done a step; no more was asked for", None)

    def _hung(self) -> Outcome | None:
        hang = self._watch.hang
        if hang is None:
            return None
        reason, stacks = hang.reason, self._gang.stacks()
        if stacks:
            reason = f"{reason}; what each worker was doing: {self._keep.hung(stacks)}"
        return Outcome("failed", reason, hang.process_index)

    def _split(self) -> Outcome | None:
        if not self._on_its_own:
            return None
        reason = (
            f"{self._on_its_own} has lost the coordinator and compiles by itself: on GPU two "
            "executables of one program can wait for each other for ever"
        )
        return Outcome("failed", reason, None)


def _explains(last: Outcome, judged: Outcome) -> bool:
    return judged.kind == "failed" and last.kind in ("preempted", "done", "cache-required")
