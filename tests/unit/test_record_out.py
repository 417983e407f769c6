"""A record that is out: what of a run waits for it, how long, and what the user is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from hotstart.cache.errors import AccessDenied, StoreError, TransientError
from hotstart.launcher.errors import ExitCode, RunOwned
from hotstart.launcher.outcome import GiveUp
from hotstart.launcher.record import RunRecord
from hotstart.launcher.record_patience import END_PATIENCE_S, Patience
from hotstart.launcher.run_end import record_end
from hotstart.launcher.workers import FirstStep
from tests.support.attempt_loop import (
    DONE,
    KILLED,
    Bench,
    FakeClock,
    FakeGang,
    lost_agent,
)
from tests.support.memory_store import MemoryStore

pytestmark = pytest.mark.unit

OUT = TransientError("503 from the store")


class OutStore(MemoryStore):
    """Fails creates of names with `word` in them, `failures` times, before or after the deed."""

    def __init__(self, word: str, failures: int, error: StoreError = OUT) -> None:
        super().__init__()
        self.word, self.failures, self.error = word, failures, error
        self.arrives = False
        self.on_failure: Callable[[], None] = lambda: None

    def create(self, name: str, data: bytes) -> bool:
        if self.failures and self.word in name:
            self.failures -= 1
            if self.arrives:
                super().create(name, data)
            self.on_failure()
            raise self.error
        return super().create(name, data)


def bench_on(store: MemoryStore, *scripts) -> Bench:
    bench = Bench(*scripts)
    bench.record = RunRecord.create(store, "run", "", {}, 0.0)
    return bench


@pytest.mark.parametrize("arrives", [False, True], ids=["lost", "answer lost"])
def test_record_that_goes_out_as_an_attempt_is_started_costs_time_alone(arrives: bool) -> None:
    store = OutStore("/start", 4)
    store.arrives = arrives
    bench = bench_on(store, KILLED, DONE)

    assert bench.run().exit_code == ExitCode.DONE
    assert store.failures == 0
    assert [call for call in bench.calls if call[1] == "start"] == [
        ("gang 1", "start", 1),
        ("gang 1", "start", 2),
    ]
    assert bench.outcomes() == ["failed", "done"]


def test_record_that_goes_out_when_attempts_are_counted_costs_time_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench, fails, count = Bench(DONE), [OUT, OUT], RunRecord.next_attempt

    def next_attempt(record: RunRecord) -> int:
        if fails:
            raise fails.pop()
        return count(record)

    monkeypatch.setattr(RunRecord, "next_attempt", next_attempt)

    assert bench.run().exit_code == ExitCode.DONE
    assert bench.clock.slept_s == pytest.approx(4.0)


def test_record_that_refuses_an_attempts_start_ends_the_run() -> None:
    bench = bench_on(OutStore("/start", 1, AccessDenied("403: no right to create")), DONE)

    with pytest.raises(AccessDenied):
        bench.run()
    assert bench.calls == [("gang 1", "close")]


def test_attempt_that_another_driver_has_started_is_not_started_after_an_outage() -> None:
    store = OutStore("/start", 1)
    bench = bench_on(store, DONE)
    other = RunRecord(store, "run")
    store.on_failure = lambda: other.start_attempt(1, {}, starter="another")

    with pytest.raises(RunOwned, match="attempt 1 of run run"):
        bench.run()
    assert bench.calls == [("gang 1", "close")]


def test_interruption_while_the_record_is_out_ends_an_attempt_that_has_arrived() -> None:
    store = OutStore("/start", 99)
    store.arrives = True
    bench = bench_on(store, DONE)
    bench.is_interrupted = lambda: bench.clock.slept_s > 5.0

    assert bench.run() == GiveUp(ExitCode.INTERRUPTED, "the launcher was told to stop")
    assert ("gang 1", "start", 1) not in bench.calls
    assert bench.outcomes() == ["interrupted"]


def test_hosts_that_are_lost_while_the_driver_is_in_doubt_are_replaced_and_cost_no_attempt() -> (
    None
):
    bench = Bench(DONE)
    bench.doubt = lambda: None if bench.clock.slept_s > 30.0 or not bench.placed else "no beat"

    class Dying(FakeGang):
        def events(self):
            if bench.clock.slept_s > 10.0 and self._name == "gang 1":
                self._lose([lost_agent(node_alive=False)])
            yield from super().events()

    def dying(attempt: int) -> FakeGang:
        bench.placed += 1
        return Dying(bench.scripts, bench.calls, f"gang {bench.placed}")

    bench._place = dying  # type: ignore[method-assign]

    assert bench.run(failures=0, preemptions=0).exit_code == ExitCode.DONE
    assert [call for call in bench.calls if call[1] in ("start", "close")] == [
        ("gang 1", "close"),
        ("gang 2", "start", 1),
        ("gang 2", "close"),
    ]
    assert bench.outcomes() == ["done"]


@pytest.mark.parametrize("fact", ["/end", "/workers/", "/first_step"])
def test_record_that_is_out_as_an_attempt_ends_has_all_of_it_later(fact: str) -> None:
    store = OutStore(fact, 20)
    killed = replace(
        KILLED,
        batches=[[FirstStep(0), FirstStep(1)], *KILLED.batches],
        reports={0: {"process_index": 0}},
    )
    bench = bench_on(store, killed, DONE)

    assert bench.run().exit_code == ExitCode.DONE
    assert bench.outcomes() == ["failed", "done"]
    first, _ = bench.record.attempts()
    assert [worker["process_index"] for worker in first.workers] == [0]


def test_run_is_decided_before_its_record_is_waited_for() -> None:
    store = OutStore("/end", 10_000)
    bench = bench_on(store, DONE)
    decided: list[GiveUp | None] = []

    def ctrl_c() -> bool:
        over = bench.loop is not None and bench.loop.decided is not None
        if over:
            decided.append(bench.loop.decided)
        return over

    bench.is_interrupted = ctrl_c

    assert bench.run().exit_code == ExitCode.DONE
    assert decided[0] == GiveUp(ExitCode.DONE, "all 2 workers exited with code 0")


class End:
    """What records an end, with a clock of its own."""

    def __init__(self, failures: int, error: StoreError = OUT) -> None:
        self.store = OutStore("/end/", failures, error)
        self.record = RunRecord.create(self.store, "run", "", {}, 0.0)
        self.clock = FakeClock()
        self.told: list[str] = []
        self.gives_up: Callable[[], bool] = lambda: False

    def write(self, decision: GiveUp, *, may_restart: bool = False) -> bool:
        return record_end(
            self.record,
            1,
            decision,
            may_restart=may_restart,
            patience=Patience(tell=self.told.append, clock=self.clock, sleep=self.clock.sleep),
            gives_up=lambda: self.gives_up(),
            tell=self.told.append,
        )


def test_end_of_a_run_that_is_done_is_tried_until_the_record_is_back() -> None:
    end = End(100)

    assert end.write(GiveUp(ExitCode.DONE, "all exited")) is True
    assert end.clock.slept_s == pytest.approx(200.0)
    found = end.record.end()
    assert found is not None and (found.state, found.exit_code) == ("done", 0)
    assert end.told[0] == (
        "the run is over (done, exit code 0), but its record is out: 503 from the store; trying "
        "for 600 s more (Ctrl-C ends it now)"
    )
    assert len(end.told) == 4  # once a minute


def test_end_that_the_record_never_takes_is_given_up_and_told_with_what_to_do() -> None:
    end = End(10_000)

    assert end.write(GiveUp(ExitCode.DONE, "all exited")) is False
    assert end.clock.slept_s == pytest.approx(END_PATIENCE_S, abs=2.0)
    assert end.told[-1] == (
        "the end of run run (done, exit code 0) is not in its record: 503 from the store; so "
        "`hotstart status` will call it lost: do not restart it, it would go on from its last "
        "checkpoint"
    )


@pytest.mark.parametrize(
    ("code", "may_restart"), [(ExitCode.INTERRUPTED, False), (ExitCode.JOB_FAILED, True)]
)
def test_end_that_is_not_final_is_tried_once(code: ExitCode, may_restart: bool) -> None:
    end = End(10_000)

    assert end.write(GiveUp(code, "why"), may_restart=may_restart) is False
    assert end.clock.slept_s == 0.0


def test_end_is_given_up_with_ctrl_c() -> None:
    end = End(10_000)
    end.gives_up = lambda: end.clock.slept_s > 7.0

    assert end.write(GiveUp(ExitCode.BUDGET_SPENT, "spent")) is False
    assert end.clock.slept_s == pytest.approx(7.2)


def test_end_that_the_record_refuses_is_not_tried_again() -> None:
    end = End(10_000, AccessDenied("403"))

    assert end.write(GiveUp(ExitCode.DONE, "all exited")) is False
    assert end.clock.slept_s == 0.0
