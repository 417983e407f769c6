from __future__ import annotations

import random

import pytest

from hotstart.launcher.errors import ExitCode
from hotstart.launcher.outcome import (
    Budgets,
    GiveUp,
    Outcome,
    OutcomeKind,
    Restart,
    decide,
    refilled,
)

pytestmark = pytest.mark.unit

CASES = {
    "done_ends_with_0": ("done", Budgets(3, 3), GiveUp(ExitCode.DONE, "why")),
    "interrupted_ends_with_130": (
        "interrupted",
        Budgets(3, 3),
        GiveUp(ExitCode.INTERRUPTED, "why"),
    ),
    "cache_required_ends_with_4": (
        "cache-required",
        Budgets(3, 3),
        GiveUp(ExitCode.CACHE_REQUIRED, "why"),
    ),
    "a_failure_is_charged_to_failures": (
        "failed",
        Budgets(1, 3),
        Restart(0.0, Budgets(0, 3, failures_spent=1)),
    ),
    "a_preemption_is_charged_to_preemptions": (
        "preempted",
        Budgets(1, 3),
        Restart(0.0, Budgets(1, 2, preemptions_spent=1)),
    ),
    "a_restart_that_was_asked_for_is_charged_to_preemptions": (
        "restart-asked",
        Budgets(1, 3),
        Restart(0.0, Budgets(1, 2, preemptions_spent=1)),
    ),
    "a_restart_that_was_asked_for_once_too_often_ends_with_3": (
        "restart-asked",
        Budgets(1, 0, preemptions_spent=2),
        GiveUp(ExitCode.BUDGET_SPENT, "why; restarts.preemptions=2 is spent"),
    ),
    "a_failure_without_a_budget_ends_with_1": (
        "failed",
        Budgets(0, 3),
        GiveUp(ExitCode.JOB_FAILED, "why"),
    ),
    "a_failure_without_a_budget_ends_with_1_after_a_preemption_too": (
        "failed",
        Budgets(0, 2, preemptions_spent=1),
        GiveUp(ExitCode.JOB_FAILED, "why"),
    ),
    "a_failure_after_the_last_restart_ends_with_3": (
        "failed",
        Budgets(0, 3, failures_spent=2),
        GiveUp(ExitCode.BUDGET_SPENT, "why; restarts.failures=2 is spent"),
    ),
    "a_preemption_after_the_last_restart_ends_with_3": (
        "preempted",
        Budgets(3, 0, preemptions_spent=1),
        GiveUp(ExitCode.BUDGET_SPENT, "why; restarts.preemptions=1 is spent"),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_decide_outcome_and_budgets_give_the_next_move(case: str) -> None:
    kind, budgets, expected = CASES[case]

    outcome = Outcome(kind, "why", None)
    decided = decide(outcome, budgets, backoff_s=2.0, failures_without_step=0, rng=random.Random(0))

    assert decided == expected


@pytest.mark.parametrize(
    ("failures_without_step", "longest_s"), [(1, 2.0), (2, 4.0), (3, 8.0), (6, 60.0), (5000, 60.0)]
)
@pytest.mark.parametrize("kind", ["failed", "preempted"])
def test_decide_failures_without_a_step_back_off_up_to_a_minute(
    kind: OutcomeKind, failures_without_step: int, longest_s: float
) -> None:
    decided = decide(
        Outcome(kind, "why", None),
        Budgets(9, 9),
        backoff_s=2.0,
        failures_without_step=failures_without_step,
        rng=random.Random(7),
    )

    assert isinstance(decided, Restart)
    assert decided.delay_s == longest_s * random.Random(7).uniform(0.5, 1.0)


def test_decide_zero_backoff_never_waits() -> None:
    decided = decide(
        Outcome("failed", "why", None),
        Budgets(1, 0),
        backoff_s=0.0,
        failures_without_step=3,
        rng=random.Random(0),
    )

    assert decided == Restart(0.0, Budgets(0, 0, failures_spent=1))


@pytest.mark.parametrize(
    ("steady_s", "refill_after_s", "expected"),
    [
        (3599.0, 3600.0, Budgets(1, 4, 2, 5)),
        (3600.0, 3600.0, Budgets(3, 4, 0, 5)),
        (9e9, None, Budgets(1, 4, 2, 5)),
    ],
)
def test_refilled_failures_are_whole_after_a_steady_stretch_and_preemptions_stay(
    steady_s: float, refill_after_s: float | None, expected: Budgets
) -> None:
    spent = Budgets(1, 4, failures_spent=2, preemptions_spent=5)

    assert refilled(spent, steady_s, refill_after_s) == expected
