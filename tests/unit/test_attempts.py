"""The attempt loop: what follows what, and what is recorded of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from hotstart.cache.config import CacheConfig
from hotstart.launcher.attempts import Warm
from hotstart.launcher.errors import ExitCode, HostFailed
from hotstart.launcher.outcome import (
    Budgets,
    GiveUp,
    Outcome,
    Restart,
    WorkerExit,
)
from hotstart.launcher.placement import GangSize
from hotstart.launcher.plan import AttemptPlan
from hotstart.launcher.preemption import Leaving, PreemptionNotice, StopPoint
from hotstart.launcher.preflight import WorkerFacts
from hotstart.launcher.watchdog import StillLimits, Stillness
from hotstart.launcher.workers import Event, FirstStep, Output, Reached
from tests.support.attempt_loop import (
    COUNT,
    DONE,
    KILLED,
    Bench,
    FakeAhead,
    FakeGang,
    Script,
    Told,
    ended,
    lost_agent,
    plan,
    stopped,
)

pytestmark = pytest.mark.unit


def test_loop_all_done_gives_up_with_zero_and_stops_nobody() -> None:
    bench = Bench(DONE)
    assert bench.run() == GiveUp(ExitCode.DONE, "all 2 workers exited with code 0")
    assert bench.calls == [
        ("gang 1", "start", 1),
        ("gang 1", "finish"),
        ("gang 1", "flush 60"),
        ("gang 1", "close"),
    ]
    assert bench.outcomes() == ["done"]
    [attempt] = bench.record.attempts()
    assert (attempt.start["process_count"], attempt.start["cache"]) == (2, {"a": 1})


def test_loop_killed_worker_stops_the_others_and_starts_anew_in_the_same_gang() -> None:
    bench = Bench(KILLED, DONE)
    assert bench.run().exit_code == ExitCode.DONE
    assert bench.calls == [
        ("gang 1", "start", 1),
        ("gang 1", "stop", 1.0, False),
        ("gang 1", "finish"),
        ("gang 1", "start", 2),
        ("gang 1", "finish"),
        ("gang 1", "flush 60"),
        ("gang 1", "close"),
    ]
    assert bench.outcomes() == ["failed", "done"]
    number, outcome, decision = bench.told.ended[0]
    assert number == 1
    assert outcome == Outcome("failed", "process 1 on host was killed by SIGKILL", 1)
    assert decision == Restart(0.0, Budgets(2, 3, failures_spent=1))


def test_loop_budget_spent_ends_with_three() -> None:
    bench = Bench(KILLED, KILLED)
    assert bench.run(failures=1) == GiveUp(
        ExitCode.BUDGET_SPENT,
        "process 1 on host was killed by SIGKILL; restarts.failures=1 is spent",
    )
    assert bench.outcomes() == ["failed", "failed"]


def test_loop_no_budget_ends_with_one() -> None:
    assert Bench(KILLED).run(failures=0).exit_code == ExitCode.JOB_FAILED


def test_loop_lost_agent_drops_the_gang_and_places_another() -> None:
    bench = Bench(Script([[]], lost=[lost_agent(node_alive=True)]), DONE)
    assert bench.run().exit_code == ExitCode.DONE
    assert bench.placed == 2
    assert [call for call in bench.calls if call[1] in ("start", "close")] == [
        ("gang 1", "start", 1),
        ("gang 1", "close"),
        ("gang 2", "start", 2),
        ("gang 2", "close"),
    ]
    assert bench.told.ended[0][2] == Restart(0.0, Budgets(2, 3, failures_spent=1))


def test_loop_node_that_is_missed_after_its_errors_is_charged_as_preemption() -> None:
    lost = Script([[ended(1, 1)]], lost_when_stopped=[lost_agent(node_alive=False, at_s=2.0)])
    bench = Bench(lost, DONE)
    assert bench.run(failures=0).exit_code == ExitCode.DONE
    assert bench.outcomes() == ["preempted", "done"]
    assert bench.told.ended[0][2] == Restart(0.0, Budgets(0, 2, preemptions_spent=1))


def test_loop_node_that_nobody_missed_is_looked_at_before_a_failure_is_charged() -> None:
    gone = [lost_agent(node_alive=False, at_s=2.0)]
    bench = Bench(Script([[ended(1, 1)]], lost_when_looked_at=gone), DONE)
    assert bench.run(failures=0).exit_code == ExitCode.DONE
    assert bench.outcomes() == ["preempted", "done"]
    assert bench.placed == 2


def test_loop_interrupted_asks_workers_to_stop_and_records_it() -> None:
    bench = Bench(Script([[FirstStep(0)], []], last_words=[stopped(0), stopped(1)]))
    bench.is_interrupted = lambda: ("gang 1", "start", 1) in bench.calls
    assert bench.run() == GiveUp(ExitCode.INTERRUPTED, "the launcher was told to stop")
    assert ("gang 1", "stop", 3.0, True) in bench.calls
    assert bench.outcomes() == ["interrupted"]


def test_loop_interrupted_before_the_start_records_no_attempt() -> None:
    bench = Bench()
    bench.is_interrupted = lambda: True
    assert bench.run() == GiveUp(ExitCode.INTERRUPTED, "the launcher was told to stop")
    assert (bench.placed, bench.calls, bench.outcomes(), bench.told.ended) == (0, [], [], [])


def test_loop_interrupted_in_a_pause_starts_no_other_attempt() -> None:
    bench = Bench(KILLED)
    bench.is_interrupted = lambda: bench.clock.slept_s > 0.5
    decision = bench.run(backoff_s=40.0)
    assert decision == GiveUp(ExitCode.INTERRUPTED, "the launcher was told to stop")
    assert bench.clock.slept_s == pytest.approx(0.6)
    assert bench.outcomes() == ["failed"]


def test_loop_failures_without_a_step_wait_longer_each_time() -> None:
    bench = Bench(KILLED, KILLED, KILLED, DONE)
    bench.run(backoff_s=2.0)
    delays = [d.delay_s for _, _, d in bench.told.ended if isinstance(d, Restart)]
    assert [2.0 * k / 2 <= d <= 2.0 * k for d, k in zip(delays, (1, 2, 4), strict=True)] == [
        True,
        True,
        True,
    ]
    assert bench.clock.slept_s == pytest.approx(sum(delays))


def test_loop_failure_after_a_step_restarts_at_once() -> None:
    stepped = Script([[FirstStep(0), FirstStep(1)], [ended(1, None, 9)]])
    bench = Bench(stepped, stepped, DONE)
    bench.run(backoff_s=2.0)
    assert bench.clock.slept_s == 0.0
    assert bench.told.first_steps == [(1, 0.0), (2, 0.0)]


def test_loop_output_that_comes_after_the_last_exit_is_shown() -> None:
    late = Script([[Output(0, ("early",)), ended(0), ended(1)], [Output(1, ("late",))]])
    bench = Bench(late)
    bench.run()
    assert bench.told.lines == ["attempt 1", "early", "late"]


def test_loop_tells_and_records_how_the_first_worker_to_fail_ended() -> None:
    bench = Bench(KILLED, DONE)
    bench.run()
    assert bench.told.first_exits == [ended(1, None, 9), None]
    assert [a.end["first_exit"] for a in bench.record.attempts() if a.end] == [
        {"host": ended(1).host, "exit_code": None, "signal": 9},
        None,
    ]


def test_loop_events_of_an_earlier_attempt_are_left_out() -> None:
    bench = Bench(KILLED, Script([[Output(0, ("second",))], [ended(0), ended(1)]]))
    loose = (1, ended(0, 1))
    start = FakeGang.start

    class Late(FakeGang):
        def start(self, attempt: AttemptPlan, decided_at: float) -> None:
            start(self, attempt, decided_at)
            if attempt.attempt == 2:
                self._pending.insert(0, [loose, (1, Output(0, ("first",)))])

    bench._place = lambda attempt: Late(bench.scripts, bench.calls, "gang 1")  # type: ignore[method-assign]
    assert bench.run().exit_code == ExitCode.DONE
    assert bench.told.lines == ["attempt 1", "attempt 2", "second"]


def test_loop_tells_when_all_are_in_user_code_and_where_each_was_at_its_end() -> None:
    entered = [Reached(index, "host-a", "user_code", None) for index in range(COUNT)]
    report = {"host": "host-a", "phases": {"first_step": 1.0}, "last_step": 9, "cache": {"hits": 2}}
    bench = Bench(Script([entered, [ended(0), ended(1)]], reports={0: report, 1: {}}))
    bench.run()
    assert bench.told.all_ready == [(1, 0.0)]
    assert bench.told.reached_last == {
        0: Reached(0, "host-a", "first_step", 9, hits=2),
        1: entered[1],
    }


def test_loop_worker_reports_are_recorded_by_attempt() -> None:
    killed = Script(KILLED.batches, KILLED.last_words, reports={0: {"process_index": 0}})
    done = Script(DONE.batches, reports={i: {"process_index": i} for i in range(COUNT)})
    bench = Bench(killed, done)
    bench.run()
    assert [[w["process_index"] for w in a.workers] for a in bench.record.attempts()] == [
        [0],
        [0, 1],
    ]


def test_loop_of_a_restarted_run_goes_on_with_the_next_number() -> None:
    bench = Bench(DONE, first=3)
    bench.record.start_attempt(2, {})
    assert bench.run().exit_code == ExitCode.DONE
    assert bench.calls[0] == ("gang 1", "start", 3)


def test_loop_agent_lost_in_a_pause_places_another_gang_and_charges_nothing() -> None:
    bench = Bench(KILLED, DONE)

    class Dying(FakeGang):
        def events(self) -> Iterator[tuple[int, Event]]:
            if bench.clock.slept_s > 0.3 and self._name == "gang 1":
                self._lose([lost_agent(node_alive=True)])
            yield from super().events()

    def dying(attempt: int) -> FakeGang:
        bench.placed += 1
        return Dying(bench.scripts, bench.calls, f"gang {bench.placed}")

    bench._place = dying  # type: ignore[method-assign]
    assert bench.run(failures=1, backoff_s=4.0).exit_code == ExitCode.DONE
    assert bench.placed == 2
    assert [call for call in bench.calls if call[1] in ("start", "close")] == [
        ("gang 1", "start", 1),
        ("gang 1", "close"),
        ("gang 2", "start", 2),
        ("gang 2", "close"),
    ]
    assert bench.outcomes() == ["failed", "done"]


def test_loop_agents_that_are_always_lost_before_the_start_end_the_run() -> None:
    bench = Bench()

    def stillborn(attempt: int) -> FakeGang:
        bench.placed += 1
        gang = FakeGang(bench.scripts, bench.calls, f"gang {bench.placed}")
        gang.lost.append(lost_agent(node_alive=True))
        return gang

    bench._place = stillborn  # type: ignore[method-assign]
    with pytest.raises(HostFailed) as raised:
        bench.run()
    assert str(raised.value) == (
        "agents were lost 3 times before an attempt could start, last on host; see Ray's logs there"
    )
    assert (bench.placed, bench.outcomes()) == (3, [])
    assert bench.calls == [(f"gang {n}", "close") for n in (1, 2, 3)]


def test_loop_start_that_a_host_refuses_ends_the_attempt_and_the_run() -> None:
    bench = Bench(DONE)

    class Refusing(FakeGang):
        def start(self, attempt: AttemptPlan, decided_at: float) -> None:
            raise HostFailed("host can't start its workers: why")

    bench._place = lambda attempt: Refusing({}, bench.calls, "gang 1")  # type: ignore[method-assign]
    with pytest.raises(HostFailed, match="why"):
        bench.run()
    assert bench.calls == [("gang 1", "close")]
    [attempt] = bench.record.attempts()
    assert (attempt.end or {})["reason"] == "host can't start its workers: why"


def test_loop_closes_the_gang_when_something_breaks() -> None:
    bench = Bench(DONE)
    bench.record.start_attempt(1, {})
    bench.record.next_attempt = lambda: 1  # type: ignore[method-assign]
    with pytest.raises(Exception, match="attempt 1 of run run"):
        bench.run()
    assert bench.calls == [("gang 1", "close")]


def test_loop_sends_ahead_before_each_start_and_learns_at_first_step_and_end() -> None:
    stepped = Script([[FirstStep(0), FirstStep(1)], [ended(1, None, 9)]], asked={0: [{"key": "a"}]})
    bench = Bench(stepped, Script(DONE.batches, asked={0: [{"key": "b"}]}))
    bench.ahead = FakeAhead(bench.calls)
    assert bench.run().exit_code == ExitCode.DONE
    assert [call for call in bench.calls if call[1] not in ("stop", "finish")] == [
        ("gang 1", "ahead", 1),
        ("gang 1", "start", 1),
        ("gang 1", "ahead", 2),
        ("gang 1", "start", 2),
        ("gang 1", "flush 60"),
        "ahead closed",
        ("gang 1", "close"),
    ]
    assert bench.ahead.learned == [
        (1, {0: [{"key": "a"}]}, True, False),
        (1, {0: [{"key": "a"}]}, True, False),
        (2, {0: [{"key": "b"}]}, False, True),
    ]
    assert bench.ahead.too_late == []


def test_loop_lost_agent_sends_ahead_to_the_gang_that_follows() -> None:
    bench = Bench(Script([[]], lost=[lost_agent(node_alive=True)]), DONE)
    bench.ahead = FakeAhead(bench.calls)
    bench.run()
    assert [call for call in bench.calls if call[1] == "ahead"] == [
        ("gang 1", "ahead", 1),
        ("gang 2", "ahead", 2),
    ]


def test_loop_told_to_stop_flushes_no_longer_than_a_stop_may_take() -> None:
    bench = Bench(Script([]))
    bench.is_interrupted = lambda: ("gang 1", "start", 1) in bench.calls
    assert bench.run().exit_code == ExitCode.INTERRUPTED
    assert ("gang 1", "flush 3") in bench.calls


def said(stage: str, *values: str) -> list[WorkerFacts]:
    """What the workers say of themselves, one value each."""
    return [WorkerFacts(i, "host", stage, {"jaxlib": value}) for i, value in enumerate(values)]


def strict_plan(attempt: int, coordinator: str, size: GangSize) -> AttemptPlan:
    cache = CacheConfig("/cache", strict=True)
    return replace(plan(attempt, coordinator, size), cache=cache)


DIFFERS = "jaxlib differs: 1 on process 0, 2 on process 1"


def test_loop_workers_that_differ_are_told_and_recorded_and_go_on() -> None:
    bench = Bench(Script([said("start", "1", "2"), [ended(0), ended(1)]]))
    assert bench.run().exit_code == ExitCode.DONE
    assert bench.told.lines == ["attempt 1", f"attempt 1 differs: {DIFFERS}"]
    [attempt] = bench.record.attempts()
    [stage] = attempt.differences
    assert [difference["text"] for difference in stage["differences"]] == [DIFFERS]
    assert ("gang 1", "go_on", 1) not in bench.calls


def test_loop_workers_that_differ_in_strict_mode_end_the_run_with_four() -> None:
    bench = Bench(Script([said("start", "1", "2")], last_words=[stopped(0), stopped(1)]))
    bench.plan = strict_plan
    assert bench.run() == GiveUp(ExitCode.CACHE_REQUIRED, f"strict mode: {DIFFERS}")
    assert ("gang 1", "go_on", 1) not in bench.calls
    assert ("gang 1", "stop", 1.0, False) in bench.calls
    assert bench.outcomes() == ["cache-required"]


def test_loop_workers_that_agree_in_strict_mode_are_let_on_once_all_have_said_all() -> None:
    batches = [said("start", "1", "1"), said("store", "1", "1"), [ended(0), ended(1)]]
    bench = Bench(Script(batches))
    bench.plan = strict_plan
    assert bench.run().exit_code == ExitCode.DONE
    assert bench.calls.count(("gang 1", "go_on", 1)) == 1
    assert bench.told.lines == ["attempt 1"]


def limited_plan(attempt: int, coordinator: str, size: GangSize) -> AttemptPlan:
    return replace(plan(attempt, coordinator, size), limits=StillLimits(step_s=60.0))


def still(index: int, step: int) -> Stillness:
    return Stillness(index, "host", 60.0, last_step=step)


def reached(index: int, step: int) -> Reached:
    return Reached(index, "host", "first_step", step)


HUNG = [still(0, 7), still(1, 6)]
HANG = "no progress: process 1 on host has done nothing since step 6 for 60 s (timeouts.step_s=60)"


def test_loop_hang_keeps_stacks_and_is_charged_as_a_failure() -> None:
    stacks = {0: "in a collective", 1: "in a data loader"}
    bench = Bench(Script([HUNG], last_words=[stopped(0), stopped(1)], stacks=stacks), DONE)
    bench.plan = limited_plan
    assert bench.run().exit_code == ExitCode.DONE
    assert bench.calls[:4] == [
        ("gang 1", "start", 1),
        ("gang 1", "stacks"),
        ("gang 1", "stop", 1.0, False),
        ("gang 1", "finish"),
    ]
    where = bench.record.stacks_location(1)
    reason = f"{HANG}; what each worker was doing: {where}"
    _, outcome, decision = bench.told.ended[0]
    assert outcome == Outcome("failed", reason, 1)
    assert decision == Restart(0.0, Budgets(2, 3, failures_spent=1))
    assert bench.outcomes() == ["failed", "done"]
    kept = [bench.record.store.get(f"run/attempts/00001/stacks/0000{i}") for i in range(2)]
    assert kept == [b"in a collective", b"in a data loader"]


def test_loop_hang_without_stacks_says_so_by_naming_no_place() -> None:
    bench = Bench(Script([HUNG], last_words=[stopped(0), stopped(1)]), DONE)
    bench.plan = limited_plan
    bench.run()
    assert bench.told.ended[0][1] == Outcome("failed", HANG, 1)


def test_loop_worker_that_hangs_while_the_other_steps_is_a_hang() -> None:
    hangs = replace(still(1, 6), tells_steps=True)
    steps = [[reached(0, 7)], [hangs], [reached(0, 7)], [reached(0, 8)]]
    bench = Bench(Script(steps, last_words=[stopped(0), stopped(1)]), DONE)
    bench.plan = limited_plan
    assert bench.run().exit_code == ExitCode.DONE
    assert bench.told.ended[0][1] == Outcome("failed", HANG, 1)


def test_loop_hang_that_a_lost_node_explains_is_a_preemption() -> None:
    hung = Script([HUNG], lost_when_stopped=[lost_agent(node_alive=False)])
    bench = Bench(hung, DONE)
    bench.plan = limited_plan
    assert bench.run().exit_code == ExitCode.DONE
    assert bench.outcomes() == ["preempted", "done"]


def test_loop_worker_that_goes_on_is_no_hang() -> None:
    bench = Bench(Script([[still(0, 7)], [Stillness(0, "host")], [still(1, 7)], DONE.batches[0]]))
    bench.plan = limited_plan
    assert bench.run().exit_code == ExitCode.DONE
    assert ("gang 1", "stacks") not in bench.calls


NOTICE = PreemptionNotice("drain", "host", 40.0, host_index=0)
SIGTERM = PreemptionNotice("sigterm", "host", process_index=1)


def left(index: int) -> WorkerExit:
    return replace(ended(index), left=True)


def told(bench: Bench) -> list[Any]:
    """What the workers of attempt 1 were told."""
    return [call[3] for call in bench.calls if call[1] == "tell" and call[2] == 1]


def test_loop_notice_is_announced_settled_and_costs_a_preemption_on_other_hosts() -> None:
    noticed = Script(
        [
            [NOTICE],
            [StopPoint(0, 4), StopPoint(1, 5)],
            [Leaving(0, 6), Leaving(1, 6)],
            [left(0)],
            [left(1)],
        ]
    )
    bench = Bench(noticed, DONE)
    assert bench.run(failures=0).exit_code == ExitCode.DONE
    assert told(bench) == [{"hold_s": 20.0, "turn": 1}, {"stop_at": 6, "turn": 1}]
    words = "preemption notice for host: Ray drains its node, 40 s left"
    assert bench.told.lines == ["attempt 1", f"attempt 1: {words}", "attempt 2"]
    assert bench.told.ended[0][1] == Outcome("preempted", f"{words}; all 2 workers left", None)
    assert [call for call in bench.calls if call[1] in ("start", "close", "flush 40")] == [
        ("gang 1", "start", 1),
        ("gang 1", "flush 40"),
        ("gang 1", "close"),
        ("gang 2", "start", 2),
        ("gang 2", "close"),
    ]
    [first, second] = [(a.end or {})["preemption"] for a in bench.record.attempts()]
    assert [fact["left"] for fact in first] == [
        [{"process_index": i, "at_s": 0.0, "last_step": 6} for i in range(COUNT)]
    ]
    assert second == []


def test_loop_signal_to_one_worker_starts_the_next_attempt_in_the_same_gang() -> None:
    bench = Bench(Script([[SIGTERM], [left(0), left(1)]]), DONE)
    assert bench.run(failures=0).exit_code == ExitCode.DONE
    assert bench.placed == 1
    assert bench.outcomes() == ["preempted", "done"]


def test_loop_signal_to_an_agent_is_a_preemption_and_its_gang_is_placed_anew() -> None:
    to_agent = PreemptionNotice("sigterm", "host", host_index=0)
    bench = Bench(Script([[to_agent], [left(0), left(1)]]), DONE)
    assert bench.run(failures=0).exit_code == ExitCode.DONE
    assert bench.placed == 2
    assert bench.outcomes() == ["preempted", "done"]
    words = "preemption notice for host: SIGTERM to its agent"
    assert bench.told.ended[0][1] == Outcome("preempted", f"{words}; all 2 workers left", None)


def test_loop_agent_that_dies_of_its_signal_is_a_preemption() -> None:
    to_agent = PreemptionNotice("sigterm", "host", host_index=0)
    dies = Script([[to_agent], []], lost=[lost_agent(node_alive=True)])
    bench = Bench(dies, DONE)
    assert bench.run(failures=0).exit_code == ExitCode.DONE
    assert bench.outcomes() == ["preempted", "done"]


def test_loop_workers_that_ignore_a_notice_are_asked_to_stop_before_the_deadline() -> None:
    bench = Bench(Script([[NOTICE], [], []], last_words=[stopped(0), stopped(1)]), DONE)

    class Slow(FakeGang):
        def events(self) -> Iterator[tuple[int, Event]]:
            yield from super().events()
            bench.clock.now_s += 12.0

    bench._place = lambda attempt: Slow(bench.scripts, bench.calls, "gang", bench.clock)  # type: ignore[method-assign]
    assert bench.run(failures=0).exit_code == ExitCode.DONE
    assert ("gang", "stop", 3.0, True) in bench.calls
    reason = bench.told.ended[0][1].reason
    assert reason.endswith("; its workers had not left in time and were ended")
    [fact] = (bench.record.attempts()[0].end or {})["preemption"]
    assert fact["ended_by_launcher"] is True
    assert told(bench) == [
        {"hold_s": 20.0, "turn": 1},
        {"stop_at": None, "turn": 1},
        {"hold_s": 8.0, "turn": 2},
        {"stop_at": None, "turn": 2},
    ]


def test_loop_agreement_that_failed_is_tried_again_and_found() -> None:
    answers = [[StopPoint(0, 4)], [], [StopPoint(0, 9, 2), StopPoint(1, 5)], [StopPoint(1, 9, 2)]]
    bench = Bench(Script([[NOTICE], *answers, [left(0), left(1)]]), DONE)

    class Slow(FakeGang):
        def events(self) -> Iterator[tuple[int, Event]]:
            yield from super().events()
            bench.clock.now_s += 5.0

    bench._place = lambda attempt: Slow(bench.scripts, bench.calls, "gang", bench.clock)  # type: ignore[method-assign]
    assert bench.run(failures=0).exit_code == ExitCode.DONE
    assert told(bench) == [
        {"hold_s": 20.0, "turn": 1},
        {"stop_at": None, "turn": 1},
        {"hold_s": 12.5, "turn": 2},
        {"stop_at": 10, "turn": 2},
    ]


def test_loop_script_that_finishes_under_a_notice_is_done() -> None:
    bench = Bench(Script([[NOTICE], [ended(0), ended(1)]]))
    assert bench.run() == GiveUp(ExitCode.DONE, "all 2 workers exited with code 0")


def test_loop_host_with_a_notice_between_attempts_is_left_before_the_next() -> None:
    bench = Bench(KILLED, DONE)

    class Noticed(FakeGang):
        def events(self) -> Iterator[tuple[int, Event]]:
            if bench.clock.slept_s > 0.3 and self._name == "gang 1":
                self.leaving[0] = bench.clock() + 9.0
            yield from super().events()

    def noticed(attempt: int) -> FakeGang:
        bench.placed += 1
        return Noticed(bench.scripts, bench.calls, f"gang {bench.placed}")

    bench._place = noticed  # type: ignore[method-assign]
    assert bench.run(backoff_s=8.0).exit_code == ExitCode.DONE
    assert bench.placed == 2
    assert bench.outcomes() == ["failed", "done"]


@pytest.mark.parametrize(
    "begun",
    [
        [FirstStep(0), FirstStep(1)],
        [Reached(index, "host", "user_code", None, 0, 0) for index in (0, 1)],
    ],
    ids=["stepped", "never says a step"],
)
def test_loop_failures_are_forgotten_after_a_steady_stretch(begun: list[Event]) -> None:
    bench = Bench()
    steady_s = iter([10.0, 3600.0, 10.0, 10.0])

    class Steady(FakeGang):
        def events(self) -> Iterator[tuple[int, Event]]:
            for attempt, event in super().events():
                if isinstance(event, WorkerExit) and not event.stopped:
                    bench.clock.now_s += next(steady_s)
                yield attempt, event

    script = Script([begun, [ended(1, None, 9)]], [stopped(0)])
    bench.scripts = dict.fromkeys(range(1, 5), script)
    bench._place = lambda attempt: Steady(bench.scripts, bench.calls, "gang")  # type: ignore[method-assign]
    decision = bench.run(failures=1, refill_after_s=3600.0)
    assert decision.exit_code == ExitCode.BUDGET_SPENT
    assert bench.outcomes() == ["failed"] * 3  # without the refill the second were the last


def test_loop_places_anew_at_a_restart_where_the_gang_could_grow() -> None:
    bench = Bench(KILLED, DONE)
    gangs: list[FakeGang] = []
    place = bench._place

    def placed(attempt: int) -> FakeGang | None:
        gang = place(attempt)
        assert gang is not None
        gang.size = GangSize(COUNT, len(gangs) + 1, 1, 4)
        gang.grows = not gangs
        gangs.append(gang)
        return gang

    bench._place = placed  # type: ignore[method-assign]
    assert bench.run().exit_code == ExitCode.DONE
    assert [call for call in bench.calls if call[1] in ("start", "close")] == [
        ("gang 1", "start", 1),
        ("gang 1", "close"),
        ("gang 2", "start", 2),
        ("gang 2", "close"),
    ]
    starts = [attempt.start for attempt in bench.record.attempts()]
    assert [start["host_count"] for start in starts] == [1, 2]
    assert [start["workers"] for start in starts] == [{"min": 1, "max": 4}] * 2


STEPPED = [FirstStep(0, {}), FirstStep(1, {})]


def left_with(*codes: int) -> list[Event]:
    return [replace(ended(i, code), left=code == 0) for i, code in enumerate(codes)]


def saves(*codes: int) -> Script:
    """An attempt whose workers do a step, are asked to save, and leave with these exit codes."""
    return Script([STEPPED, [StopPoint(0, 3), StopPoint(1, 3)], left_with(*codes)])


@pytest.mark.parametrize("codes", [(0, 0), (0, 143)])
def test_warm_asks_for_a_checkpoint_and_starts_from_it_once_more(codes: tuple[int, int]) -> None:
    bench = Bench(saves(*codes), Script([STEPPED], last_words=[stopped(0), stopped(1)]))
    bench.has_checkpoint = lambda: ("gang 1", "finish") in bench.calls
    assert bench.run(warm=Warm(save_s=40.0)) == GiveUp(
        ExitCode.DONE, "warm for a fresh start and for one that restores a checkpoint"
    )
    assert bench.outcomes() == ["done", "done"]
    assert told(bench) == [{"hold_s": 20.0, "turn": 1}, {"stop_at": 4, "turn": 1}]
    assert bench.told.lines == [
        "attempt 1",
        "attempt 1: all workers have done a step; they are asked to save a checkpoint and leave, "
        "for a start that restores it to be warmed too: 40 s at most",
        "attempt 2",
    ]
    assert bench.record.attempts()[0].end["preemption"] == []  # type: ignore[index]


def test_warm_of_a_script_that_has_saved_by_its_first_step_asks_for_nothing() -> None:
    step = Script([STEPPED], last_words=[stopped(0), stopped(1)])
    bench = Bench(step, step)
    bench.has_checkpoint = lambda: True
    assert bench.run(warm=Warm()).reason.startswith("warm for a fresh start and for one that")
    assert told(bench) == []


def test_warm_of_a_script_that_does_not_listen_ends_in_time_and_says_so() -> None:
    outputs = [[Output(0, [f"step {number}"])] for number in range(40)]
    bench = Bench(Script([STEPPED, *outputs], last_words=[stopped(0), stopped(1)]))

    class Slow(Told):
        def output(self, output: Output) -> None:
            bench.clock.sleep(2.0)

    bench.told = Slow()
    assert bench.run(warm=Warm(save_s=40.0)).reason == (
        "warm for a fresh start alone: the script made no checkpoint in its run's checkpoint "
        "folder within 40 s of its first step, so what a restored start asks for is not known"
    )
    assert bench.clock.slept_s <= 40.0
    assert ("gang 1", "stop", 3.0, True) in bench.calls


def test_warm_for_fresh_starts_alone_is_one_attempt() -> None:
    bench = Bench(Script([STEPPED], last_words=[stopped(0), stopped(1)]))
    bench.has_checkpoint = lambda: True
    assert bench.run(warm=Warm(restored=False)) == GiveUp(
        ExitCode.DONE, "warm for a fresh start alone, as was asked for"
    )
    assert told(bench) == []


def test_warm_of_a_script_that_fails_to_save_is_a_failure() -> None:
    bench = Bench(replace(saves(0, 1), last_words=[]))
    assert bench.run(failures=0, warm=Warm()).exit_code == ExitCode.JOB_FAILED
    assert bench.outcomes() == ["failed"]
