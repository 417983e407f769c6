"""Events for machines: each as it is told by a driver, and by the record of a run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from hotstart.cache.errors import TransientError
from hotstart.launcher.cli import main
from hotstart.launcher.console import Console
from hotstart.launcher.errors import ExitCode
from hotstart.launcher.events import EVENTS, Events, EventWriter, emit_run_ended
from hotstart.launcher.facts import RunEnd
from hotstart.launcher.identity import OwnerIdentity
from hotstart.launcher.live import Live
from hotstart.launcher.outcome import Budgets, GiveUp, Outcome, Restart, WorkerExit
from hotstart.launcher.ownership import OWNER_TTL_S
from hotstart.launcher.placement import GangSize
from hotstart.launcher.preemption import PreemptionNotice
from hotstart.launcher.record import RunRecord
from hotstart.launcher.recorded_events import RecordedEvents
from hotstart.launcher.workers import Output, Reached
from tests.support.memory_store import MemoryStore

pytestmark = pytest.mark.unit

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "events.md").read_text()
AT = "1970-01-01T00:16:40.000+00:00"
NOTICE = PreemptionNotice("metadata", "host-b", left_s=30.0, detail="TERMINATE", host_index=1)
KILLED = WorkerExit(1, None, 9, "host-b", 4.0, stopped=False)
FAILED = Outcome("failed", "process 1 on host-b was killed by SIGKILL", 1)
ELSEWHERE = OwnerIdentity("host-b", "bob", 42, 80, "boot-b", "pid:[1]")
SIZE = GangSize(2, 2, 2, 4)
EXIT = {"host": "host-b", "exit_code": None, "signal": 9}
NEED = {"attempt": 2, "text": "needs 4 x {GPU: 8}", "left_s": 9.0}


class Told:
    """Events, as they are written and as a driver's watcher tells them."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.now_s = 0.0
        writer = EventWriter("lm-1", self.lines.append, now=lambda: 1000.0)
        self.writer = writer
        self.watcher = Live(Events(writer, Console("lm-1", 2), clock=lambda: self.now_s))

    def __iter__(self) -> Any:
        return iter([json.loads(line) for line in self.lines])

    @property
    def last(self) -> dict[str, Any]:
        """The last event without what all have."""
        event = json.loads(self.lines[-1])
        assert list(event)[:4] == ["schema", "event", "at", "run"]
        assert (event.pop("schema"), event.pop("run")) == (1, "lm-1")
        assert event.pop("at") == AT
        return event


@pytest.fixture
def told() -> Told:
    return Told()


def test_event_page_lists_each_event_with_its_very_fields() -> None:
    documented = {
        name: tuple(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE))
        for name, section in re.findall(
            r"^### `(\w+)`\n(.*?)(?=^#|\Z)", PAGE, re.MULTILINE | re.DOTALL
        )
    }
    assert documented == dict(EVENTS)


def test_event_example_of_the_page_is_a_stream() -> None:
    (example,) = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
    for line in example.splitlines():
        event = json.loads(line)
        assert tuple(event) == ("schema", "event", "at", "run", *EVENTS[event["event"]])


def test_event_with_other_fields_than_its_own_is_refused(told: Told) -> None:
    with pytest.raises(KeyError, match="first_step has the fields"):
        told.writer.emit("first_step", attempt=1)
    assert told.lines == []


def test_event_of_waiting_says_what_is_lacking(told: Told) -> None:
    told.watcher.waiting(2, "needs 4 x {GPU: 8}; lacking: 1 host", 299.96)
    assert told.last == {
        "event": "waiting_for_hosts",
        "attempt": 2,
        "text": "needs 4 x {GPU: 8}; lacking: 1 host",
        "left_s": 300.0,
    }


def test_events_of_an_attempt_that_starts(told: Told) -> None:
    told.watcher.attempt_started(1, SIZE)
    assert told.last == {
        "event": "attempt_started",
        "attempt": 1,
        "process_count": 2,
        "host_count": 2,
        "workers_wanted": {"min": 2, "max": 4},
    }
    told.watcher.differs(1, "jaxlib differs")
    assert told.last == {"event": "difference", "attempt": 1, "text": "jaxlib differs"}
    told.watcher.ready(1, 2.00049)
    assert told.last == {"event": "attempt_ready", "attempt": 1, "seconds": 2.0}
    told.watcher.first_step(1, 14.2)
    assert told.last == {"event": "first_step", "attempt": 1, "seconds": 14.2}


def test_event_of_steps_comes_each_ten_seconds_and_only_where_something_moved(told: Told) -> None:
    told.watcher.attempt_started(1, SIZE)
    for now_s, index, step in ((9.9, 0, 5), (10.0, 1, 3), (12.0, 0, 7), (19.9, 1, 6), (25.0, 1, 6)):
        told.now_s = now_s
        told.watcher.reached(Reached(index, "a", "first_step", step, hits=3, compiled=1))
    told.now_s = 40.0
    told.watcher.reached(Reached(1, "a", "first_step", 6, hits=3, compiled=1))
    steps = [event for event in told if event["event"] == "steps"]
    assert [(e["min_step"], e["max_step"], e["slowest_worker"]) for e in steps] == [
        (3, 5, 1),
        (6, 7, 1),
    ]
    assert told.last == {
        "event": "steps",
        "attempt": 1,
        "process_count": 2,
        "stepping": 2,
        "min_step": 6,
        "max_step": 7,
        "slowest_worker": 1,
        "hits": 6,
        "compiled": 2,
    }


def test_event_of_steps_waits_for_the_first_step(told: Told) -> None:
    told.watcher.attempt_started(1, SIZE)
    told.now_s = 60.0
    told.watcher.reached(Reached(0, "a", "user_code", None))
    assert told.last["event"] == "attempt_started"


def test_event_of_a_preemption_notice_has_its_facts_and_its_line(told: Told) -> None:
    told.watcher.notice(1, NOTICE)
    assert told.last == {
        "event": "preemption_notice",
        "attempt": 1,
        "source": "metadata",
        "detail": "TERMINATE",
        "host": "host-b",
        "process_index": None,
        "left_s": 30.0,
        "text": "preemption notice for host-b: Google Cloud's metadata server (TERMINATE), "
        "30 s left",
    }


def test_events_of_an_attempt_that_ends_say_who_ended_it_and_what_is_next(told: Told) -> None:
    told.watcher.attempt_started(1, SIZE)
    told.watcher.reached(Reached(0, "a", "first_step", 7))
    told.watcher.attempt_ended(1, FAILED, Restart(1.5, Budgets(2, 100, 1, 0)), KILLED)
    *_, ended, _ = told
    assert {name: ended[name] for name in EVENTS["attempt_ended"]} == {
        "attempt": 1,
        "outcome": "failed",
        "reason": "process 1 on host-b was killed by SIGKILL",
        "first_worker": 1,
        "first_worker_host": "host-b",
        "exit_code": None,
        "signal": "SIGKILL",
        "min_step": 7,
        "max_step": 7,
    }
    assert told.last == {
        "event": "restarting",
        "attempt": 2,
        "delay_s": 1.5,
        "failures_left": 2,
        "preemptions_left": 100,
    }


def test_event_of_an_attempt_whose_host_went_knows_it_from_where_the_worker_was(
    told: Told,
) -> None:
    told.watcher.attempt_started(1, SIZE)
    told.watcher.reached(Reached(0, "host-a", "user_code", None))
    outcome = Outcome("preempted", "the node of host-a (process 0) went away", 0)
    told.watcher.attempt_ended(1, outcome, GiveUp(ExitCode.BUDGET_SPENT, "spent"))
    assert (told.last["event"], told.last["first_worker_host"]) == ("attempt_ended", "host-a")
    assert (told.last["exit_code"], told.last["signal"], told.last["min_step"]) == (None,) * 3


def test_events_at_the_end_of_a_run_are_its_report_and_main_numbers(told: Told) -> None:
    cache = {"requests": 3, "hits": 1, "compiled": 2, "errors": 0, "compile_s": 0.25, "saved_s": 1}
    attempt = {"attempt": 1, "outcome": "done", "seconds_to_first_step": 4.5}
    report = {"attempts": [{**attempt, "workers": [{"cache": cache}, {"cache": cache}]}]}
    end = RunEnd(1, "done", 0, "all 2 workers exited with code 0")
    emit_run_ended(told.writer, end, report, superseded=False)
    first, _ = told
    assert (first["event"], first["report"]) == ("report", report)
    assert told.last == {
        "event": "run_ended",
        "state": "done",
        "exit_code": 0,
        "reason": "all 2 workers exited with code 0",
        "may_restart": False,
        "superseded": False,
        "attempts": [
            {
                **attempt,
                **{"requests": 6, "hits": 2, "compiled": 4, "errors": 0},
                **{"compile_s": 0.5, "saved_s": 2},
            }
        ],
    }


def test_event_at_the_end_of_a_run_whose_record_is_out_is_the_end_alone(told: Told) -> None:
    emit_run_ended(told.writer, RunEnd(1, "failed", 1, "no record", True), None, superseded=False)
    (event,) = told
    assert (event["event"], event["may_restart"], event["attempts"]) == ("run_ended", True, [])


def test_worker_output_is_no_event(told: Told) -> None:
    told.watcher.output(Output(0, ("a line",)))
    assert told.lines == []


PRINTS = """
import os, subprocess
from hotstart.launcher.console import Printer
from hotstart.launcher.events import EventWriter, take_stdout

printer = Printer(take_stdout(), left_out="")
print("python", flush=True)
os.write(1, b"native\\n")
subprocess.run(["echo", "child"])
EventWriter("lm-1", printer.put).emit("note", text="h\\u00e9")
printer.flush(5)
"""


def test_stdout_that_events_have_taken_has_nothing_else() -> None:
    done = subprocess.run([sys.executable, "-c", PRINTS], capture_output=True, text=True)
    assert json.loads(done.stdout)["text"] == "h\u00e9"
    assert sorted(done.stderr.splitlines()) == ["child", "native", "python"]


class Recorded:
    """A run in a store, its driver on another host, and the events that its record gives."""

    def __init__(self) -> None:
        self.record = RunRecord.create(MemoryStore(), "lm-1", "name: lm\n", {}, 5.0)
        self.beat(0, {**vars(ELSEWHERE)})
        self.told = Told()
        self.now_s = 0.0
        self.events = RecordedEvents(
            self.record,
            self.told.writer,
            OwnerIdentity.of_this_process(),
            clock=lambda: self.now_s,
        )

    def beat(self, number: int, says: dict[str, Any]) -> None:
        self.record.create_fact(f"owner/{1:08d}/{number:08d}", says)

    def start(self, attempt: int) -> None:
        info = {"process_count": 2, "host_count": 2, "workers": {"min": 2, "max": 4}}
        self.record.start_attempt(attempt, {**info, "started_at_s": 1000.0, "waited_s": 1.5})

    def follow(self, *between: Callable[[], object]) -> list[dict[str, Any]]:
        """What is told, one thing done each time that the follower waits."""
        steps = iter(between)

        def wait(seconds: float) -> None:
            self.now_s += seconds
            next(steps)()

        self.events.follow(1.0, wait)
        assert next(steps, None) is None
        return list(self.told)


def test_recorded_events_tell_a_run_from_its_start_to_its_end() -> None:
    scene = Recorded()
    record = scene.record
    workers = [[0, "a", "first_step", 4], [1, "b", "first_step", 2]]
    steps = [{"phases": {"first_step": 3.5}}, {"phases": {"first_step": 4.5}}]
    events = scene.follow(
        lambda: scene.start(1),
        lambda: record.first_step(1, steps),
        lambda: scene.beat(1, {"attempt": 1, "workers": workers, "programs": [5, 1]}),
        lambda: record.end_attempt(1, FAILED, {"ended_at_s": 1009.0, "first_exit": EXIT}),
        lambda: scene.beat(2, {"waiting": NEED}),
        lambda: scene.beat(3, {"waiting": {**NEED, "left_s": 5.0}}),
        lambda: scene.start(2),
        lambda: record.end_attempt(2, Outcome("done", "all", None), {"ended_at_s": 1020.0}),
        lambda: record.finish("done", 0, "all", epoch=1),
    )
    assert [(e["event"], e.get("attempt")) for e in events] == [
        ("run_started", None),
        ("attempt_started", 1),
        ("first_step", 1),
        ("steps", 1),
        ("attempt_ended", 1),
        ("waiting_for_hosts", 2),
        ("attempt_started", 2),
        ("attempt_ended", 2),
        ("report", None),
        ("run_ended", None),
    ]
    begun, started, first, stepped, ended, waiting, *_, last = events
    assert (begun["restart"], begun["host"], begun["pid"]) == (False, "host-b", 42)
    assert (started["at"], started["workers_wanted"]) == (AT, {"min": 2, "max": 4})
    assert (first["at"], first["seconds"]) == ("1970-01-01T00:16:43.000+00:00", 4.5)
    assert (stepped["min_step"], stepped["slowest_worker"], stepped["hits"]) == (2, 1, 5)
    assert (ended["outcome"], ended["first_worker_host"], ended["signal"]) == (
        *("failed", "host-b", "SIGKILL"),
    )
    assert {name: waiting[name] for name in NEED} == NEED
    assert (last["state"], [a["outcome"] for a in last["attempts"]]) == ("done", ["failed", "done"])
    for event in events:
        assert tuple(event) == ("schema", "event", "at", "run", *EVENTS[event["event"]])


def test_recorded_events_of_a_run_that_is_over_tell_it_at_once() -> None:
    scene = Recorded()
    scene.start(1)
    scene.start(2)  # the first one's driver died
    scene.record.end_attempt(2, FAILED, {})
    scene.record.finish("failed", 1, "no", epoch=1)
    assert [(e["event"], e.get("attempt")) for e in scene.follow()][1:4] == [
        ("attempt_started", 1),
        ("attempt_started", 2),
        ("attempt_ended", 2),
    ]


def test_recorded_events_wait_for_an_end_that_is_recorded_beside_the_next_start() -> None:
    scene = Recorded()
    scene.start(1)
    events = scene.follow(
        lambda: scene.start(2),
        lambda: scene.record.end_attempt(1, FAILED, {}),
        lambda: scene.record.finish("failed", 1, "no", epoch=1),
    )
    assert [(e["event"], e.get("attempt")) for e in events][1:4] == [
        ("attempt_started", 1),
        ("attempt_ended", 1),
        ("attempt_started", 2),
    ]


def test_recorded_events_of_an_attempt_whose_driver_died_go_on_with_the_next() -> None:
    scene = Recorded()
    scene.start(1)
    scene.start(2)
    quiet = [lambda: None] * 9
    events = scene.follow(
        *quiet, lambda: None, lambda: scene.record.finish("failed", 1, "no", epoch=1)
    )
    assert [(e["event"], e.get("attempt")) for e in events][1:3] == [
        ("attempt_started", 1),
        ("attempt_started", 2),
    ]


def test_recorded_events_outlive_an_outage_of_the_store(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    scene = Recorded()
    scene.start(1)
    get, outages = scene.record.store.get, iter([True, True, False, True])

    def out(name: str) -> bytes | None:
        if name.endswith("/start") and next(outages, False):
            raise TransientError("the store is out\nand more")
        return get(name)

    monkeypatch.setattr(scene.record.store, "get", out)
    events = scene.follow(
        *[lambda: None] * 2, lambda: scene.record.finish("failed", 1, "no", epoch=1), lambda: None
    )
    assert [e["event"] for e in events] == [
        *("run_started", "attempt_started", "report", "run_ended")
    ]
    assert caplog.messages[0] == "the record of run lm-1: the store is out"


def test_recorded_events_end_where_no_beat_comes_for_as_long_as_a_takeover_waits() -> None:
    scene = Recorded()
    quiet = [lambda: None] * (int(OWNER_TTL_S) - 1)
    events = scene.follow(*quiet, lambda: scene.beat(1, {}), *quiet, lambda: None)
    assert [e["event"] for e in events] == ["run_started", "run_lost"]
    assert (events[1]["epoch"], events[1]["host"], events[1]["pid"]) == (1, "host-b", 42)


def test_status_follow_without_json_is_refused() -> None:
    done = CliRunner().invoke(main, ["status", "latest", "--follow"])
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == (
        "hotstart: --follow is for --json; `hotstart logs -f` follows a run for people\n"
    )


@pytest.mark.parametrize("closed", [1, 2])
def test_events_with_a_stream_that_is_closed_go_on(closed: int) -> None:
    shell = f'exec "$0" -c "$1" {closed}>&-'
    done = subprocess.run(
        ["sh", "-c", shell, sys.executable, PRINTS.replace("subprocess.run", "# ")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["event"] for line in done.stdout.splitlines()] == (
        [] if closed == 1 else ["note"]
    )


def test_events_whose_reader_has_gone_do_not_end_the_run() -> None:
    program = PRINTS.replace("printer.flush(5)", "printer.flush(5); print('went on', flush=True)")
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as gone:
        done = subprocess.run(
            [sys.executable, "-c", program], stdout=gone, stderr=subprocess.PIPE, text=True
        )
    assert (done.returncode, done.stderr.splitlines()[-1]) == (0, "went on")
