"""The attempt loop over a gang that does as the test says, on a clock that only moves when told."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from hotstart.cache.config import CacheConfig
from hotstart.launcher.ahead import Answers
from hotstart.launcher.attempts import AttemptLoop, LoopSettings
from hotstart.launcher.errors import ExitCode, HostFailed
from hotstart.launcher.outcome import (
    AgentLost,
    Budgets,
    GiveUp,
    Outcome,
    Restart,
    WorkerExit,
)
from hotstart.launcher.placement import GangSize
from hotstart.launcher.plan import AttemptPlan, Program
from hotstart.launcher.preemption import Leaving, PreemptionNotice, StopPoint
from hotstart.launcher.preflight import WorkerFacts
from hotstart.launcher.record import RunRecord
from hotstart.launcher.watchdog import StillLimits, Stillness
from hotstart.launcher.workers import Event, FirstStep, Output, Reached
from tests.support.memory_store import MemoryStore

pytestmark = pytest.mark.unit

COUNT = 2


class FakeClock:
    """A monotonic clock that `sleep` moves."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.slept_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.slept_s += seconds
        self.now_s += seconds


@dataclass
class Script:
    """What a gang does in one attempt: batches of events, then what comes while it is stopped."""

    batches: Sequence[Sequence[Event]]
    last_words: Sequence[Event] = ()
    lost: Sequence[AgentLost] = ()
    lost_when_stopped: Sequence[AgentLost] = ()
    lost_when_looked_at: Sequence[AgentLost] = ()
    reports: dict[int, dict[str, Any]] = field(default_factory=dict)
    asked: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    stacks: dict[int, str] = field(default_factory=dict)


class FakeGang:
    """The `Gang` protocol; each `events` gives the next batch of the attempt's script."""

    def __init__(
        self,
        scripts: dict[int, Script],
        calls: list[Any],
        name: str,
        clock: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.lost: list[AgentLost] = []
        self.leaving: dict[int, float] = {}
        self.size = GangSize(COUNT, 1, COUNT, COUNT)
        self.grows = False
        self._scripts = scripts
        self._calls = calls
        self._name = name
        self._clock = clock
        self._attempt = 0
        self._pending: list[list[tuple[int, Event]]] = []

    def read_ahead(self, attempt: int, manifest_json: bytes) -> None:
        raise AssertionError("only `Ahead` calls this")

    def latest_manifest(self, cache: CacheConfig, fingerprint: str) -> bytes | None:
        raise AssertionError("only `Ahead` calls this")

    def save_manifest(self, cache: CacheConfig, fingerprint: str, manifest_json: bytes) -> None:
        raise AssertionError("only `Ahead` calls this")

    def asked(self) -> Answers:
        asked = self._scripts[self._attempt].asked
        return lambda: asked

    def could_grow(self) -> bool:
        return self.grows

    def fresh_coordinator(self) -> str | None:
        return None if self.lost else "host:1234"

    def start(self, attempt: AttemptPlan, decided_at: float) -> None:
        self._calls.append((self._name, "start", attempt.attempt))
        self._attempt = attempt.attempt
        script = self._scripts[self._attempt]
        self._pending += [[(self._attempt, e) for e in batch] for batch in script.batches]

    def go_on(self, attempt: int) -> None:
        self._calls.append((self._name, "go_on", attempt))

    def tell(self, attempt: int, message: dict[str, Any]) -> None:
        self._calls.append((self._name, "tell", attempt, message))

    def events(self) -> Iterator[tuple[int, Event]]:
        if self._pending:
            for attempt, event in self._pending.pop(0):
                if isinstance(event, PreemptionNotice) and event.takes_the_host:
                    self.leaving[0] = self._clock() + (event.left_s or 30.0)
                yield attempt, event
        if not self._pending:
            self._lose(self._scripts[self._attempt].lost)

    def stacks(self) -> dict[int, str]:
        self._calls.append((self._name, "stacks"))
        return self._scripts[self._attempt].stacks

    def stop(self, grace_s: float, *, ask: bool) -> None:
        self._calls.append((self._name, "stop", grace_s, ask))
        script = self._scripts[self._attempt]
        self._pending.append([(self._attempt, event) for event in script.last_words])
        self._lose(script.lost_when_stopped)

    def finish(self) -> dict[int, dict[str, Any]]:
        self._calls.append((self._name, "finish"))
        return self._scripts[self._attempt].reports

    def drained(self) -> bool:
        return not self._pending

    def look_at_nodes(self) -> None:
        self._lose(self._scripts[self._attempt].lost_when_looked_at)

    def flush(self, timeout_s: float) -> bool:
        self._calls.append((self._name, f"flush {timeout_s:g}"))
        return True

    def take_stats(self) -> list[dict[str, Any]]:
        return [{"host": self._name, "reads": self._attempt}]

    def close(self) -> None:
        self._calls.append((self._name, "close"))

    def _lose(self, lost: Sequence[AgentLost]) -> None:
        self.lost += [agent for agent in lost if agent not in self.lost]


class Told:
    """A `Watcher` that keeps what it was told."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.reached_last: dict[int, Reached] = {}
        self.all_ready: list[tuple[int, float]] = []
        self.first_steps: list[tuple[int, float]] = []
        self.first_exits: list[WorkerExit | None] = []
        self.ended: list[tuple[int, Outcome, Restart | GiveUp]] = []

    def waiting(self, attempt: int, need: str, left_s: float) -> None:
        pass

    def attempt_started(self, attempt: int, size: GangSize) -> None:
        self.lines.append(f"attempt {attempt}")

    def differs(self, attempt: int, difference: str) -> None:
        self.lines.append(f"attempt {attempt} differs: {difference}")

    def output(self, output: Output) -> None:
        self.lines += output.lines

    def reached(self, reached: Reached) -> None:
        self.reached_last[reached.process_index] = reached

    def notice(self, attempt: int, notice: PreemptionNotice) -> None:
        self.lines.append(f"attempt {attempt}: {notice}")

    def ready(self, attempt: int, seconds: float) -> None:
        self.all_ready.append((attempt, seconds))

    def first_step(self, attempt: int, seconds: float) -> None:
        self.first_steps.append((attempt, seconds))

    def attempt_ended(
        self,
        attempt: int,
        outcome: Outcome,
        decision: Restart | GiveUp,
        first: WorkerExit | None = None,
    ) -> None:
        self.ended.append((attempt, outcome, decision))
        self.first_exits.append(first)


class FakeAhead:
    """Keeps what the loop has it send and learn."""

    def __init__(self, calls: list[Any]) -> None:
        self._calls = calls
        self.learned: list[tuple[int, dict[int, Any], bool, bool]] = []
        self.too_late: list[int] = []

    def send(self, attempt: int, gang: FakeGang) -> None:
        self._calls.append((gang._name, "ahead", attempt))

    def learn(
        self, attempt: int, gang: FakeGang, answers: Answers, *, stepped: bool, done: bool
    ) -> None:
        if (gang._name, "close") in self._calls:
            self.too_late.append(attempt)
        self.learned.append((attempt, dict(answers()), stepped, done))

    def close(self) -> None:
        self._calls.append("ahead closed")


class Bench:
    """A loop with everything around it; `run` goes through the scripts of attempts 1, 2, ..."""

    def __init__(self, *scripts: Script, first: int = 1) -> None:
        self.scripts = dict(enumerate(scripts, start=first))
        self.calls: list[Any] = []
        self.told = Told()
        self.ahead: FakeAhead | None = None
        self.clock = FakeClock()
        self.placed = 0
        self.plan = plan
        self.is_interrupted: Callable[[], bool] = lambda: False
        self.record = RunRecord.create(MemoryStore(), "run", "", {}, 0.0)

    def run(
        self,
        failures: int = 3,
        preemptions: int = 3,
        backoff_s: float = 0.0,
        refill_after_s: float | None = None,
    ) -> GiveUp:
        settings = LoopSettings(
            Budgets(failures, preemptions),
            backoff_s=backoff_s,
            stop_s=3.0,
            cache_facts={"a": 1},
            refill_after_s=refill_after_s,
        )
        loop = AttemptLoop(
            settings,
            self.record,
            self._place,
            self.plan,
            self.told,
            lambda: self.is_interrupted(),
            ahead=self.ahead,  # type: ignore[arg-type]
            clock=self.clock,
            sleep=self.clock.sleep,
            rng=random.Random(7),
        )
        return loop.run()

    def outcomes(self) -> list[str | None]:
        """Of all recorded attempts, in order."""
        return [(a.end or {}).get("outcome") for a in self.record.attempts()]

    def _place(self, attempt: int) -> FakeGang | None:
        self.placed += 1
        return FakeGang(self.scripts, self.calls, f"gang {self.placed}", self.clock)


def plan(attempt: int, coordinator: str, size: GangSize) -> AttemptPlan:
    program = Program("train.py", None, (), (), "/")
    return AttemptPlan("run", attempt, COUNT, coordinator, True, 300.0, program, None)


def ended(
    index: int, code: int | None = 0, signal: int | None = None, at_s: float = 1.0
) -> WorkerExit:
    return WorkerExit(index, code, signal, "host", at_s, stopped=False)


def stopped(index: int) -> WorkerExit:
    return WorkerExit(index, 143, None, "host", 9.0, stopped=True)


def lost_agent(*, node_alive: bool, at_s: float = 1.0) -> AgentLost:
    return AgentLost(0, "host", node_alive, (0, 1), at_s)


DONE = Script([[ended(0), ended(1)]])
KILLED = Script([[ended(1, None, 9)]], last_words=[stopped(0)])


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
    assert told(bench) == [{"hold_s": 20.0}, {"stop_at": 6}]
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
    assert told(bench)[-1] == {"stop_at": None}


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
