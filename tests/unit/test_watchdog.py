"""When a worker counts as still, and when its gang is taken to hang."""

from __future__ import annotations

from dataclasses import replace
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


@pytest.mark.parametrize("is_over", [False, True])
def test_watch_worker_tells_steps_once_it_has_and_until_its_program_ends(is_over: bool) -> None:
    watch = WorkerWatch(3, "host", STEP)
    stepped = report(5, steps=5)
    assert watch.look(stepped, 0.0, is_over=is_over) is None
    said = watch.look(stepped, 60.0, is_over=is_over)
    assert said == Stillness(3, "host", 60.0, last_step=5, tells_steps=not is_over)


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


HANGS = Stillness(1, "b", 60.0, last_step=8, tells_steps=True)


def stepping(
    limits: StillLimits, said: Stillness, *steps: tuple[int, int], before: int | None = None
) -> Hang | None:
    """Of a gang of three; each step is a process index and the number of the step."""
    watch = GangWatch(3, limits)
    for index in (0, 1, 2):
        watch.reached(index, before)
    watch.heard(said)
    for index, number in steps:
        watch.reached(index, number)
    return watch.hang


def test_gang_of_which_one_hangs_while_all_others_step_hangs_by_that_one() -> None:
    reason = "no progress: process 1 on b has done nothing since step 8 for 60 s"
    hang = Hang(f"{reason} (timeouts.step_s=60)", 1)
    assert stepping(STEP, HANGS, (0, 9), (2, 9), before=8) == hang
    assert stepping(BOTH, HANGS, (0, 9), (2, 9), (0, 10), before=8) == hang


@pytest.mark.parametrize(
    "steps",
    [(), ((0, 9),), ((0, 9), (2, 8)), ((0, 8), (2, 8))],
    ids=["none", "one", "the other the same again", "both the same again"],
)
def test_gang_of_which_one_is_still_goes_on_where_another_may_be_what_it_waits_for(
    steps: tuple[tuple[int, int], ...],
) -> None:
    assert stepping(STEP, HANGS, *steps, before=8) is None


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (COMPILE, HANGS),
        (BOTH, replace(HANGS, in_request=True)),
        (STEP, replace(HANGS, tells_steps=False)),
    ],
    ids=["step_s is off", "it compiles", "it has told no step, or its program has ended"],
)
def test_gang_of_which_one_is_still_for_a_reason_goes_on(
    limits: StillLimits, said: Stillness
) -> None:
    assert stepping(limits, said, (0, 9), (2, 9), before=8) is None


def test_gang_of_which_one_was_still_and_steps_again_goes_on() -> None:
    watch = GangWatch(2, STEP)
    watch.heard(HANGS)
    watch.heard(Stillness(1, "b", last_step=9))
    watch.reached(0, 9)
    assert watch.hang is None
    watch.heard(replace(HANGS, last_step=9))
    assert watch.hang is None
    watch.reached(0, 10)
    assert watch.hang is not None


def test_gang_of_which_two_hang_while_the_third_steps_names_the_one_behind() -> None:
    watch = GangWatch(3, STEP)
    watch.heard(HANGS)
    watch.heard(Stillness(2, "c", 61.0, last_step=7, tells_steps=True))
    watch.reached(0, 9)
    hang = watch.hang
    assert hang is not None
    assert hang.process_index == 2
