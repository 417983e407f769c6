"""An attempt loop over a gang that does as the test says, on a clock that only moves when told."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from hotstart.cache.config import CacheConfig
from hotstart.launcher.ahead import Answers
from hotstart.launcher.attempts import AttemptLoop, LoopSettings, Warm
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
from hotstart.launcher.preemption import PreemptionNotice
from hotstart.launcher.record import RunRecord
from hotstart.launcher.workers import Event, Output, Reached
from tests.support.memory_store import MemoryStore

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

    def latest_manifest_of(self, cache: CacheConfig, fingerprints: Sequence[str]) -> bytes | None:
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
                if isinstance(event, PreemptionNotice) and event.takes_the_agent:
                    self.leaving[0] = self._clock() + (event.left_s or 30.0)
                yield attempt, event
        if not self._pending and self._attempt:
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
        self.loop: AttemptLoop | None = None
        self.placed = 0
        self.plan = plan
        self.has_checkpoint: Callable[[], bool] = lambda: False
        self.is_interrupted: Callable[[], bool] = lambda: False
        self.doubt: Callable[[], str | None] = lambda: None
        self.record = RunRecord.create(MemoryStore(), "run", "", {}, 0.0)

    def run(
        self,
        failures: int = 3,
        preemptions: int = 3,
        backoff_s: float = 0.0,
        refill_after_s: float | None = None,
        warm: Warm | None = None,
    ) -> GiveUp:
        settings = LoopSettings(
            Budgets(failures, preemptions),
            backoff_s=backoff_s,
            stop_s=3.0,
            cache_facts={"a": 1},
            refill_after_s=refill_after_s,
            warm=warm,
            has_checkpoint=lambda: self.has_checkpoint(),
        )
        self.loop = AttemptLoop(
            settings,
            self.record,
            self._place,
            self.plan,
            self.told,
            lambda: self.is_interrupted(),
            ahead=self.ahead,  # type: ignore[arg-type]
            doubt=lambda: self.doubt(),
            clock=self.clock,
            sleep=self.clock.sleep,
            rng=random.Random(7),
        )
        return self.loop.run()

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
