"""When a worker counts as still, and when its gang is taken to hang."""

from __future__ import annotations

from typing import Any

import pytest

from hotstart.launcher.watchdog import GangWatch, Hang, StillLimits, Stillness, WorkerWatch

pytestmark = pytest.mark.unit

STEP = StillLimits(step_s=60.0)
COMPILE = StillLimits(compile_s=3600.0)
BOTH = StillLimits(step_s=60.0, compile_s=3600.0)


def report(
    step: int | None = None,
    in_flight: int = 0,
    requests: int = 0,
    steps: int = 0,
    user: bool = True,
) -> dict[str, Any]:
    return {
        "phases": {"user_code": 1.0 if user else None, "first_step": None},
        "cache": {"requests": requests, "in_flight": in_flight},
        "last_step": step,
        "steps": steps,
        "warnings": ["of no concern"],
    }


def told(limits: StillLimits, *looks: tuple[float, dict[str, Any]]) -> list[Stillness | None]:
    """What a watch tells of reports at these times."""
    watch = WorkerWatch(3, "host", limits)
    return [watch.look(report, now_s) for now_s, report in looks]


def test_watch_worker_without_a_step_for_as_long_as_it_may_is_still_and_is_told_once() -> None:
    looks = [(0.0, report(5)), (59.9, report(5)), (60.0, report(5)), (99.0, report(5))]
    is_still = Stillness(3, "host", 60.0, in_request=False, last_step=5)
    assert told(STEP, *looks) == [None, None, is_still, None]


@pytest.mark.parametrize(
    "moved",
    [report(6), report(5, requests=1), report(5, in_flight=1), report(5, steps=1)],
    ids=["a step", "a program served", "a program asked for", "a step of the same number"],
)
def test_watch_worker_that_goes_on_is_told_and_its_time_begins_anew(moved: dict[str, Any]) -> None:
    looks = [(0.0, report(5)), (60.0, report(5)), (70.0, moved), (129.0, moved)]
    is_still, goes_on, later = told(BOTH, *looks)[1:]
    assert is_still is not None
    assert goes_on is not None
    assert (goes_on.still_s, later) == (None, None)


def test_watch_warnings_are_no_progress() -> None:
    other = report(5) | {"warnings": []}
    assert told(STEP, (0.0, report(5)), (60.0, other))[1] is not None


def test_watch_worker_in_a_request_may_take_as_long_as_a_compilation() -> None:
    compiling = report(5, in_flight=1)
    looks = [(0.0, compiling), (3599.0, compiling), (3600.0, compiling)]
    is_still = Stillness(3, "host", 3600.0, in_request=True, last_step=5)
    assert told(BOTH, *looks) == [None, None, is_still]
    assert told(STEP, *looks) == [None, None, None]


def test_watch_time_in_which_its_agent_stood_still_does_not_count() -> None:
    watch = WorkerWatch(3, "host", STEP)
    assert watch.look(report(5), 0.0) is None
    watch.forgive(50.0)
    assert watch.look(report(5), 109.0) is None
    assert watch.look(report(5), 110.0) is not None


def test_watch_worker_before_user_code_is_never_still() -> None:
    early = report(user=False)
    assert told(BOTH, (0.0, early), (1e6, early)) == [None, None]
    assert told(BOTH, (0.0, {}), (1e6, {})) == [None, None]


def test_watch_worker_without_limits_is_never_still() -> None:
    looks = [(0.0, report(5)), (1e9, report(5))]
    assert told(StillLimits(), *looks) == [None, None]


def hang_of(limits: StillLimits, *said: Stillness, ended: tuple[int, ...] = ()) -> Hang | None:
    """Of a gang of two."""
    watch = GangWatch(2, limits)
    for index in ended:
        watch.ended(index)
    for one in said:
        watch.heard(one)
    return watch.hang


def test_gang_hangs_once_all_its_workers_are_still_and_names_the_one_behind() -> None:
    first, second = Stillness(0, "a", 61.0, last_step=9), Stillness(1, "b", 60.0, last_step=8)
    reason = "no progress: process 1 on b has done nothing since step 8 for 60 s"
    assert hang_of(STEP, first) is None
    assert hang_of(STEP, first, second) == Hang(f"{reason} (timeouts.step_s=60)", 1)
    assert hang_of(STEP, first, second, Stillness(0, "a")) is None


def test_gang_before_its_first_step_names_that() -> None:
    hang = hang_of(STEP, Stillness(0, "a", 60.0), Stillness(1, "b", 61.0))
    reason = "no progress: process 1 on b has not done its first step for 61 s"
    assert hang == Hang(f"{reason} (timeouts.step_s=60)", 1)


def test_gang_whose_others_have_ended_hangs_by_its_last_worker() -> None:
    last = Stillness(1, "b", 60.0, last_step=8)
    assert hang_of(STEP, last, Stillness(0, "a", 70.0), ended=(0,)) is not None
    assert hang_of(STEP, Stillness(0, "a", 70.0), ended=(0,)) is None


def test_gang_that_waits_for_one_compilation_hangs_by_that_alone() -> None:
    waits = Stillness(0, "a", 3600.0, last_step=None)
    compiles = Stillness(1, "b", 3601.0, in_request=True, last_step=4)
    reason = "process 1 on b has been inside one compilation, or waiting for it, for 3601 s"
    expected = Hang(f"no progress: {reason} (timeouts.compile_s=3600)", 1)
    assert hang_of(COMPILE, waits, compiles) == expected


def test_gang_that_reports_no_steps_is_never_stopped_for_having_done_none() -> None:
    assert hang_of(COMPILE, Stillness(0, "a", 3600.0), Stillness(1, "b", 3600.0)) is None
