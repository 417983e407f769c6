"""How an attempt ended, and what to do next: two pure functions.

`classify` turns what the agents saw into one `Outcome`, `decide` turns an outcome and two
budgets into `Restart` or `GiveUp`. The manner is that of Ray Train's failure policy
(ray `python/ray/train/v2/_internal/execution/failure_handling/default.py`), with one
difference: a lost node is looked at before any worker's error, because the survivors' errors
often arrive first and would charge the wrong budget.
"""

from __future__ import annotations

import random
import signal as signals
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from hotstart.launcher.errors import ExitCode

MAX_BACKOFF_S = 60.0

OutcomeKind = Literal["done", "failed", "preempted", "interrupted", "cache-required"]


@dataclass(frozen=True)
class WorkerExit:
    """One worker's end, as its agent saw it.

    `at_s` is the agent's monotonic time since the attempt began. `stopped` says that the worker
    had been told to stop before it ended, so its end is a consequence and no cause.
    `cache_required` says why the worker gave up where the cache is demanded, and `required_by`
    what demands it.
    """

    process_index: int
    exit_code: int | None
    signal: int | None
    host: str
    at_s: float
    stopped: bool
    cache_required: str = ""
    required_by: str = ""


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
) -> Outcome | None:
    """How the attempt ended, or None while it goes on (an early exit with 0 ends nothing yet).

    Call it whenever something was seen; call it again once the stopped workers have ended too,
    since a lost node may be noticed after the errors that it caused.
    """
    finished = {e.process_index for e in exits if e.exit_code == 0 and not e.stopped}
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

    failed = sorted((e for e in exits if e.exit_code != 0 and not e.stopped), key=lambda e: e.at_s)
    if lost and not (failed and failed[0].at_s <= lost[0].at_s):
        reason = f"the agent of {_describe_agent(lost[0])} died; its node is alive"
        return Outcome("failed", reason, _first_unfinished(lost[0], finished))
    if failed:
        first = failed[0]
        if first.cache_required and first.exit_code == ExitCode.CACHE_REQUIRED:
            who = f"process {first.process_index} on {first.host}"
            reason = f"{first.required_by or 'strict mode'}: {who}: {first.cache_required}"
            return Outcome("cache-required", reason, first.process_index)
        return Outcome("failed", describe_exit(first), first.process_index)

    if {e.process_index for e in exits}.issuperset(range(process_count)):
        return Outcome("interrupted", "workers were told to stop before they had finished", None)
    return None


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
        case "preempted":
            left, spent = budgets.preemptions, budgets.preemptions_spent
            after = replace(budgets, preemptions=left - 1, preemptions_spent=spent + 1)
        case "failed":
            left, spent = budgets.failures, budgets.failures_spent
            after = replace(budgets, failures=left - 1, failures_spent=spent + 1)
    if left > 0:
        return Restart(_delay_s(backoff_s, failures_without_step, rng), after)
    if spent == 0:
        return GiveUp(ExitCode.JOB_FAILED, outcome.reason)
    noun = "preemptions" if outcome.kind == "preempted" else "failures"
    return GiveUp(
        ExitCode.BUDGET_SPENT,
        f"{outcome.reason}; restarts.{noun}={spent} is spent",
    )


def describe_exit(worker: WorkerExit) -> str:
    """One clause on a worker's end: "process 1 on host-a was killed by SIGKILL"."""
    who = f"process {worker.process_index} on {worker.host}"
    if worker.signal is not None:
        return f"{who} was killed by {_signal_name(worker.signal)}"
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


def _signal_name(number: int) -> str:
    try:
        return signals.Signals(number).name
    except ValueError:
        return f"signal {number}"  # real-time signals between SIGRTMIN and SIGRTMAX have no name


def _delay_s(backoff_s: float, failures_without_step: int, rng: random.Random) -> float:
    if failures_without_step == 0:
        return 0.0
    doublings = min(failures_without_step - 1, 30)  # far above the cap, far below an overflow
    return min(backoff_s * 2.0**doublings, MAX_BACKOFF_S) * rng.uniform(0.5, 1.0)
