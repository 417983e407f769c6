"""An agent's queue is bounded, and what it has started it can end."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from hotstart.cache import store as store_module
from hotstart.cache.config import CacheConfig
from hotstart.cache.errors import DeadlineExceeded
from hotstart.launcher import child as child_module
from hotstart.launcher.agent import Agent
from hotstart.launcher.agent_cache import Seat
from hotstart.launcher.event_queue import EventQueue
from hotstart.launcher.outcome import WorkerExit
from hotstart.launcher.plan import AttemptPlan, Program
from hotstart.launcher.preflight import WorkerFacts
from hotstart.launcher.store_check import check_readable
from hotstart.launcher.workers import LEFT_OUT, OnItsOwn, Output
from tests.support.launch import await_true, is_running

pytestmark = pytest.mark.unit

EXIT = WorkerExit(0, 1, None, "host", 1.0, stopped=False)
LINES = Output(0, ("x" * 99_936,))  # counts as 100 064 bytes


@pytest.fixture
def agent() -> Iterator[Agent]:
    made = Agent("127.0.0.1")
    made.cache.open(None, Seat(0), ())
    yield made
    made.close()


def plan(program: Program, log_location: str) -> AttemptPlan:
    return AttemptPlan(
        run="run-of-test-agent",
        attempt=1,
        process_count=2,
        coordinator="127.0.0.1:1",
        initialize=False,
        distributed_timeout_s=5.0,
        program=program,
        cache=None,
        environ={"JAX_PLATFORMS": "cpu"},
        log_location=log_location,
    )


def sleeper(tmp_path: Path) -> Program:
    script = tmp_path / "sleep.py"
    script.write_text("import time; time.sleep(600)")
    return Program(str(script), None, (), (), str(tmp_path))


def take_all(queue: EventQueue) -> list[object]:
    cursor, found = 0, []
    while cursor < queue.end:
        batch = queue.after(cursor, 0.0)
        cursor = batch.next_cursor
        found += [event for _, event in batch.events]
    queue.after(cursor, 0.0)
    return found


def test_event_queue_full_of_output_makes_the_worker_wait_and_lets_its_end_pass() -> None:
    queue = EventQueue(limit_bytes=1_000_000)
    put = []

    def fill() -> None:
        for number in range(30):
            queue.put(1, LINES)
            put.append(number)

    filler = threading.Thread(target=fill, daemon=True)
    filler.start()
    await_true(lambda: len(put) == 10, 5)
    filler.join(0.2)
    assert len(put) == 10
    queue.put(1, EXIT)
    assert queue.end == 11
    cursor, found = 0, []
    while len(found) < 31:
        batch = queue.after(cursor, 5.0)
        cursor = batch.next_cursor
        found += [event for _, event in batch.events]
    assert found[10] == EXIT
    assert found[:10] + found[11:] == [LINES] * 30


def test_event_queue_batch_is_about_one_megabyte() -> None:
    queue = EventQueue()
    for _ in range(30):
        queue.put(1, LINES)
    assert len(queue.after(0, 0.0).events) == 10
    assert len(queue.after(10, 0.0).events) == 10
    queue.put(1, Output(0, ("x" * 3_000_000,)))
    assert len(queue.after(30, 0.0).events) == 1


def test_event_queue_of_an_attempt_that_ends_leaves_out_what_finds_no_room() -> None:
    queue = EventQueue(limit_bytes=1_000_000)
    queue.open(1)
    for _ in range(100):
        queue.put(1, LINES)
    queue.put(1, EXIT)
    found = take_all(queue)
    assert found[-2:] == [Output(0, (LEFT_OUT,)), EXIT]
    assert found[:-2] == [LINES] * 21
    queue.put(1, LINES)
    queue.put(2, LINES)
    assert queue.after(queue.end - 1, 0.0).events == ((2, LINES),)


def test_agent_port_is_kept_for_a_server_that_shares_it_until_the_next(agent: Agent) -> None:
    port = agent.free_port()
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", port))
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        server.bind(("127.0.0.1", port))
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.2", port))
    assert agent.free_port() != port
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))


def test_agent_second_spawn_fails_the_first_worker_is_ended(
    agent: Agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    popen, pids = child_module.subprocess.Popen, []

    def one_only(*args: object, **options: object) -> object:
        if pids:
            raise OSError("no more processes")
        process = popen(*args, **options)  # type: ignore[call-overload]
        pids.append(process.pid)
        return process

    monkeypatch.setattr(child_module.subprocess, "Popen", one_only)
    with pytest.raises(OSError, match="no more processes"):
        agent.start(plan(sleeper(tmp_path), str(tmp_path)), (0, 1), 0.0)
    assert is_running(pids[0])
    agent.stop(0.0, False)
    await_true(lambda: not is_running(pids[0]), 5)


def test_agent_log_store_that_cannot_be_reached_is_one_warning(
    agent: Agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    script = tmp_path / "prints.py"
    script.write_text("print('one line', flush=True)\nimport time; time.sleep(600)\n")
    program = Program(str(script), None, (), (), str(tmp_path))
    deadlines = []

    class Unreachable:
        def create(self, name: str, data: bytes) -> bool:
            raise DeadlineExceeded("gs://bucket: no answer")

    def open_store(location: str, deadline_s: float) -> Unreachable:
        deadlines.append(deadline_s)
        return Unreachable()

    monkeypatch.setattr(store_module, "open_store", open_store)
    agent.start(plan(program, "gs://bucket/logs"), (0, 1), 0.0)
    cursor, outputs = 0, 0
    while outputs < 2:
        batch = agent.events(cursor)
        cursor = batch.next_cursor
        outputs += sum(isinstance(event, Output) for _, event in batch.events)
    agent.stop(0.0, False)
    agent.finish()
    assert agent.flush_logs(1.0) is False
    assert deadlines == [10.0]
    assert [record.message for record in caplog.records] == [
        "workers' logs are not in the run's store for now: gs://bucket: no answer"
    ]


def test_agent_worker_that_ends_takes_what_it_started_in_another_session(
    agent: Agent, tmp_path: Path
) -> None:
    script = tmp_path / "spawn.py"
    script.write_text(
        "import subprocess, sys, time\n"
        "code = 'import time; time.sleep(600)'\n"
        "child = subprocess.Popen([sys.executable, '-c', code], start_new_session=True)\n"
        "print('child', child.pid, flush=True)\n"
    )
    program = Program(str(script), None, (), (), str(tmp_path))
    agent.start(plan(program, str(tmp_path)), (0,), 0.0)
    cursor, seen = 0, []
    while not any(isinstance(event, WorkerExit) for event in seen):
        batch = agent.events(cursor)
        cursor = batch.next_cursor
        seen += [event for _, event in batch.events]
    lines = [line for event in seen if isinstance(event, Output) for line in event.lines]
    [child] = [int(line.split()[1]) for line in lines if line.startswith("child ")]
    await_true(lambda: not is_running(child), 2)


@pytest.mark.parametrize("readable", [True, False])
def test_agent_says_for_each_worker_whether_its_host_can_read_the_location(
    agent: Agent, tmp_path: Path, readable: bool
) -> None:
    location = tmp_path / "cache"
    problem = ""
    if not readable:
        location = tmp_path / "loop"
        location.symlink_to(location)
        problem = check_readable(CacheConfig(str(location))) or ""
        assert str(location) in problem
    attempt = replace(plan(sleeper(tmp_path), str(tmp_path)), cache=CacheConfig(str(location)))
    agent._look_at_store(attempt, (4, 5))
    says = {"cache.location": "can be read" if readable else f"can't be read: {problem}"}
    host = socket.gethostname()
    assert agent.events(0).events == tuple(
        (1, WorkerFacts(index, host, "store", says)) for index in (4, 5)
    )


@pytest.mark.parametrize(
    ("platform", "attempt", "events"),
    [("gpu", 1, [OnItsOwn(socket.gethostname())]), ("gpu", 0, []), ("cpu", 1, [])],
)
def test_agent_on_its_own_says_so_on_gpu_only(
    agent: Agent, tmp_path: Path, platform: str, attempt: int, events: list[object]
) -> None:
    started = replace(plan(sleeper(tmp_path), str(tmp_path)), platform=platform)
    agent.start(started, (), 0.0)
    agent._on_its_own(attempt)
    assert take_all(agent._queue) == events
