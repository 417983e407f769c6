"""How an attempt ended, and what to do next: two pure functions.

`classify` turns what the agents saw into one `Outcome`, `decide` turns an outcome and two
budgets into `Restart` or `GiveUp`. The manner is that of Ray Train's failure policy
(ray `python/ray/train/v2/_internal/execution/failure_handling/default.py`), with two
differences: a lost node or a preemption notice is looked at before any worker's error, because
the survivors' errors often arrive first and would charge the wrong budget; and a worker that has
left for a notice is not done.
"""

from __future__ import annotations

import random
import signal as signals
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from hotstart.launcher.errors import ExitCode
from hotstart.launcher.preemption import PreemptionNotice, first_to_go

MAX_BACKOFF_S = 60.0
# A peer's death reaches the others as a connection error, and their ends may be seen before it:
# hosts' clocks are joined by a message only, and an agent's death is seen by Ray first.
_CASCADE_S = 0.5

OutcomeKind = Literal["done", "failed", "preempted", "restart-asked", "interrupted",
                      "cache-required"]  # fmt: skip


@dataclass(frozen=True)
class WorkerExit:
    """One worker's end, as its agent saw it.

    `at_s` is the agent's monotonic time since the attempt began. `stopped` says that the worker
    had been told to stop before it ended, so its end is a consequence and no cause.
    `cache_required` says why the worker gave up where the cache is demanded, and `required_by`
    what demands it. `left` says that its program ended with 0 after it had been told to leave: it
    is not done.
    """

    process_index: int
    exit_code: int | None
    signal: int | None
    host: str
    at_s: float
    stopped: bool
    cache_required: str = ""
    required_by: str = ""
    left: bool = False


@dataclass(frozen=True)
class AgentLost:
    """An agent that ended during the attempt; its workers, `processes`, ended with it.

    `node_alive` tells an agent that died from a node that went away under it. `at_s` is the
    driver's monotonic time since the attempt began.
    """

    host_index: int
    host: str
    node_alive: bool
    processes: tuple[int, ...]
    at_s: float


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended; `first_worker` is the process index that failed first, if any did."""

    kind: OutcomeKind
    reason: str
    first_worker: int | None


@dataclass(frozen=True)
class Budgets:
    """Restarts left for failures and for preemptions, and how many of each were made already."""

    failures: int
    preemptions: int
    failures_spent: int = 0
    preemptions_spent: int = 0


@dataclass(frozen=True)
class Restart:
    """Start another attempt after `delay_s` seconds."""

    delay_s: float
    budgets_left: Budgets


@dataclass(frozen=True)
class GiveUp:
    """End the run; a run that is done gives up with `ExitCode.DONE`."""

    exit_code: ExitCode
    reason: str


def classify(
    process_count: int,
    exits: Sequence[WorkerExit],
    lost_agents: Sequence[AgentLost],
    interrupted: bool,
    notices: Sequence[PreemptionNotice] = (),
    exit_codes: Collection[int] = (),
) -> Outcome | None:
    """How the attempt ended, or None while it goes on (an early exit with 0 ends nothing yet).

    Call it whenever something was seen; call it again once the stopped workers have ended too,
    since a lost node may be noticed after the errors that it caused. `exit_codes` are those by
    which a program asks to be started again.
    """
    finished = {e.process_index for e in exits if e.exit_code == 0 and not (e.stopped or e.left)}
    if finished.issuperset(range(process_count)):
        return Outcome("done", f"all {process_count} workers exited with code 0", None)
    if interrupted:
        return Outcome("interrupted", "the launcher was told to stop", None)

    lost = sorted(
        (a for a in lost_agents if not a.processes or not finished.issuperset(a.processes)),
        key=lambda a: a.at_s,
    )
    for agent in lost:
        if not agent.node_alive:
            reason = f"the node of {_describe_agent(agent)} went away"
            return Outcome("preempted", reason, _first_unfinished(agent, finished))

    failed = _in_order_of_cause([e for e in exits if e.exit_code != 0 and not e.stopped])
    have_ended = {e.process_index for e in exits}.issuperset(range(process_count))
    if (failed or lost or have_ended) and (notice := first_to_go(notices)):
        first = failed[0].process_index if failed else None
        how = _describe_left(exits)
        if failed or lost:
            how = describe_exit(failed[0]) if failed else f"{_describe_agent(lost[0])} was lost"
        return Outcome("preempted", f"{notice}; {how}", first)
    for worker in failed:
        if worker.exit_code in exit_codes:
            reason = f"{describe_exit(worker)}, which asks for a restart (restarts.exit_codes)"
            return Outcome("restart-asked", reason, worker.process_index)
    if lost and not (failed and failed[0].at_s <= lost[0].at_s - _CASCADE_S):
        reason = f"the agent of {_describe_agent(lost[0])} died; its node is alive"
        return Outcome("failed", reason, _first_unfinished(lost[0], finished))
    if failed:
        return _of_worker(failed[0])

    if have_ended and any(e.left for e in exits):
        return Outcome("preempted", _describe_left(exits), None)
    if have_ended:
        return Outcome("interrupted", "workers were told to stop before they had finished", None)
    return None


def _of_worker(first: WorkerExit) -> Outcome:
    if first.cache_required and first.exit_code == ExitCode.CACHE_REQUIRED:
        who = f"process {first.process_index} on {first.host}"
        reason = f"{first.required_by or 'strict mode'}: {who}: {first.cache_required}"
        return Outcome("cache-required", reason, first.process_index)
    # Nobody sends SIGTERM by accident: the system, or who looks after it, wants the host back.
    kind: OutcomeKind = "preempted" if first.signal == signals.SIGTERM else "failed"
    return Outcome(kind, describe_exit(first), first.process_index)


def _in_order_of_cause(failed: Sequence[WorkerExit]) -> list[WorkerExit]:
    """By time; but one that was killed just after the first to end is what the first died of."""
    by_time = sorted(failed, key=lambda e: e.at_s)
    for worker in by_time:
        is_killed = worker.signal is not None and worker.signal != signals.SIGABRT
        if is_killed and worker.at_s - by_time[0].at_s <= _CASCADE_S:
            by_time.remove(worker)
            return [worker, *by_time]
    return by_time


def _describe_left(exits: Sequence[WorkerExit]) -> str:
    left = sorted(e.process_index for e in exits if e.left)
    if not left:
        return "its workers were ended"
    if len(left) == len(exits):
        return f"all {len(left)} workers left" if len(left) > 1 else "its worker left"
    noun = "process" if len(left) == 1 else "processes"
    return f"{noun} {', '.join(map(str, left))} left, the others were ended"


def decide(
    outcome: Outcome,
    budgets: Budgets,
    *,
    backoff_s: float,
    failures_without_step: int,
    rng: random.Random,
) -> Restart | GiveUp:
    """What follows an outcome.

    `failures_without_step` counts the failed attempts in a row that reached no step, this one
    included: 0 restarts at once, k waits `backoff_s * 2**(k-1)`, at most 60 s, of which the
    jitter takes up to half.
    """
    match outcome.kind:
        case "done":
            return GiveUp(ExitCode.DONE, outcome.reason)
        case "interrupted":
            return GiveUp(ExitCode.INTERRUPTED, outcome.reason)
        case "cache-required":
            return GiveUp(ExitCode.CACHE_REQUIRED, outcome.reason)
        case "preempted" | "restart-asked":
            left, spent = budgets.preemptions, budgets.preemptions_spent
            after = replace(budgets, preemptions=left - 1, preemptions_spent=spent + 1)
        case "failed":
            left, spent = budgets.failures, budgets.failures_spent
            after = replace(budgets, failures=left - 1, failures_spent=spent + 1)
    if left > 0:
        return Restart(_delay_s(backoff_s, failures_without_step, rng), after)
    if spent == 0:
        return GiveUp(ExitCode.JOB_FAILED, outcome.reason)
    noun = "failures" if outcome.kind == "failed" else "preemptions"
    return GiveUp(
        ExitCode.BUDGET_SPENT,
        f"{outcome.reason}; restarts.{noun}={spent} is spent",
    )


def is_steady(steady_s: float, refill_after_s: float | None) -> bool:
    """Whether an attempt has gone on for so long that what was before it no longer counts."""
    return refill_after_s is not None and steady_s >= refill_after_s


def refilled(budgets: Budgets, steady_s: float, refill_after_s: float | None) -> Budgets:
    """The budgets after an attempt that went on for `steady_s` after its first step.

    From `refill_after_s` on the failures are forgotten that were before it.
    """
    if not is_steady(steady_s, refill_after_s):
        return budgets
    whole = budgets.failures + budgets.failures_spent
    return replace(budgets, failures=whole, failures_spent=0)


def describe_exit(worker: WorkerExit) -> str:
    """One clause on a worker's end: "process 1 on host-a was killed by SIGKILL"."""
    who = f"process {worker.process_index} on {worker.host}"
    if worker.signal is not None:
        return f"{who} was killed by {signal_name(worker.signal)}"
    if worker.exit_code is not None:
        return f"{who} exited with code {worker.exit_code}"
    return f"{who} ended and its exit code is unknown"


def _describe_agent(agent: AgentLost) -> str:
    if not agent.processes:
        return agent.host
    noun = "process" if len(agent.processes) == 1 else "processes"
    return f"{agent.host} ({noun} {', '.join(map(str, agent.processes))})"


def _first_unfinished(agent: AgentLost, finished: set[int]) -> int | None:
    return min((p for p in agent.processes if p not in finished), default=None)


def signal_name(number: int) -> str:
    """Such as `SIGKILL`."""
    try:
        return signals.Signals(number).name
    except ValueError:
        return f"signal {number}"  # real-time signals between SIGRTMIN and SIGRTMAX have no name


def _delay_s(backoff_s: float, failures_without_step: int, rng: random.Random) -> float:
    if failures_without_step == 0:
        return 0.0
    doublings = min(failures_without_step - 1, 30)  # far above the cap, far below an overflow
    return min(backoff_s * 2.0**doublings, MAX_BACKOFF_S) * rng.uniform(0.5, 1.0)
