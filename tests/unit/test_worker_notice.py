"""Real workers under a real agent, without Ray: how a notice reaches each kind of program."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hotstart.launcher.agent import Agent
from hotstart.launcher.agent_cache import Seat
from hotstart.launcher.outcome import WorkerExit
from hotstart.launcher.plan import AttemptPlan, Program
from hotstart.launcher.preemption import Leaving, PreemptionNotice, StopPoint
from hotstart.launcher.workers import Output

pytestmark = pytest.mark.unit

PATIENCE_S = 60.0


class Host:
    """One agent, the program of its workers, and what has happened so far."""

    def __init__(self, agent: Agent, folder: Path) -> None:
        self.agent = agent
        self._folder = folder
        self._cursor = 0
        self.seen: list[Any] = []

    def start(self, program: str, count: int = 1) -> None:
        script = self._folder / "train.py"
        script.write_text("import os, signal, sys, time\nfrom hotstart.launcher import context\n"
                          "print('pid', os.getpid(), flush=True)\n" + program)  # fmt: skip
        attempt = AttemptPlan(
            run="run-of-test-worker-notice",
            attempt=1,
            process_count=count,
            coordinator="127.0.0.1:1",
            initialize=False,
            distributed_timeout_s=5.0,
            program=Program(str(script), None, (), (), str(self._folder)),
            cache=None,
            environ={"JAX_PLATFORMS": "cpu"},
            log_location=str(self._folder / "logs"),
        )
        self.agent.start(attempt, tuple(range(count)), 0.0)

    def wait_for(self, condition: Callable[[list[Any]], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition(self.seen):
            assert time.monotonic() < deadline, self.seen
            batch = self.agent.events(self._cursor)
            self._cursor = batch.next_cursor
            self.seen += [event for _, event in batch.events]

    def lines(self) -> list[str]:
        return [line for event in self.seen if isinstance(event, Output) for line in event.lines]

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.seen if isinstance(event, kind)]

    def wait_for_line(self, line: str, count: int = 1) -> None:
        self.wait_for(lambda _: self.lines().count(line) >= count)

    def wait_for_end(self, count: int = 1) -> list[tuple[int | None, int | None, bool, bool]]:
        """Exit code, signal, whether it has left, whether it was stopped; by process index."""
        self.wait_for(lambda _: len(self.of(WorkerExit)) >= count)
        exits = sorted(self.of(WorkerExit), key=lambda e: e.process_index)
        return [(e.exit_code, e.signal, e.left, e.stopped) for e in exits]

    def pid(self) -> int:
        self.wait_for(lambda _: any(line.startswith("pid ") for line in self.lines()))
        return int(next(line for line in self.lines() if line.startswith("pid ")).split()[1])

    def announce(self, count: int = 1) -> list[StopPoint]:
        self.agent.tell(1, {"hold_s": 20.0, "turn": 1})
        self.wait_for(lambda _: len(self.of(StopPoint)) >= count)
        return sorted(self.of(StopPoint), key=lambda point: point.process_index)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    agent = Agent("127.0.0.1")
    agent.cache.open(None, Seat(0), ())
    yield Host(agent, tmp_path)
    agent.close()


ASKS = """
number = 0
while not context.preempted():
    number += 1
    context.step(number)
    if number == 5:
        print("ready", flush=True)
    time.sleep(0.02)
print("told at", number, flush=True)
"""


def test_notice_makes_preempted_true_at_the_settled_call_and_zero_is_leaving(host: Host) -> None:
    host.start(ASKS + "context.leave()\n")
    host.wait_for_line("ready")
    [point] = host.announce()
    assert point.calls is not None and point.calls >= 5
    host.agent.tell(1, {"stop_at": point.calls + 3, "turn": 1})
    assert host.wait_for_end() == [(0, None, True, False)]
    assert f"told at {point.calls + 2}" in host.lines()
    assert host.of(Leaving) == [Leaving(0, point.calls + 2)]


def test_notice_a_program_that_returns_when_told_has_left(host: Host) -> None:
    host.start(ASKS)
    host.wait_for_line("ready")
    [point] = host.announce()
    host.agent.tell(1, {"stop_at": (point.calls or 0) + 1, "turn": 1})
    assert host.wait_for_end() == [(0, None, True, False)]


def test_notice_a_program_that_fails_when_told_has_failed(host: Host) -> None:
    host.start(ASKS + "sys.exit(7)\n")
    host.wait_for_line("ready")
    [point] = host.announce()
    host.agent.tell(1, {"stop_at": (point.calls or 0) + 1, "turn": 1})
    assert host.wait_for_end() == [(7, None, False, False)]


def test_notice_a_program_that_never_asks_and_finishes_is_done(host: Host) -> None:
    host.start("print('ready', flush=True)\ntime.sleep(1)\n")
    host.wait_for_line("ready")
    assert host.announce() == [StopPoint(0, 0, 1)]
    assert host.wait_for_end() == [(0, None, False, False)]


def test_notice_calls_back_once_and_at_once_where_it_came_before(host: Host) -> None:
    host.start("""
context.on_preemption(lambda: print("first", flush=True))
print("ready", flush=True)
while not os.path.exists("go"):
    time.sleep(0.02)
context.on_preemption(lambda: print("second", flush=True))
time.sleep(0.3)
""")
    host.wait_for_line("ready")
    host.announce()
    host.wait_for_line("first")
    (host._folder / "go").touch()
    host.wait_for_line("second")
    assert host.wait_for_end() == [(0, None, True, False)]
    assert host.lines().count("first") == 1


def test_notice_a_handler_of_the_programs_own_gets_sigterm_and_its_zero_is_leaving(
    host: Host,
) -> None:
    host.start("""
signal.signal(signal.SIGTERM, lambda *_: (print("saving", flush=True), sys.exit(0)))
print("ready", flush=True)
while True:
    time.sleep(0.02)
""")
    host.wait_for_line("ready")
    host.announce()
    assert host.wait_for_end() == [(0, None, True, False)]
    assert "saving" in host.lines()
    assert host.of(PreemptionNotice) == []  # its own signal is no notice


def test_notice_a_program_that_ignores_sigterm_and_finishes_is_done(host: Host) -> None:
    host.start("""
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(1)
""")
    host.wait_for_line("ready")
    host.announce()
    assert host.wait_for_end() == [(0, None, False, False)]


def test_notice_a_program_that_asks_is_not_signalled_too(host: Host) -> None:
    host.start("signal.signal(signal.SIGTERM, lambda *_: print('signal', flush=True))\n" + ASKS)
    host.wait_for_line("ready")
    [point] = host.announce()
    host.agent.tell(1, {"stop_at": (point.calls or 0) + 1, "turn": 1})
    assert host.wait_for_end() == [(0, None, True, False)]
    assert "signal" not in host.lines()


@pytest.mark.parametrize("is_imported", ["before", "after"])
def test_notice_a_program_that_returns_at_jaxs_sync_point_imported_by_name_has_left(
    host: Host, is_imported: str
) -> None:
    by_name = "from jax.experimental.multihost_utils import reached_preemption_sync_point\n"
    initialize = f"jax.distributed.initialize('127.0.0.1:{host.agent.free_port()}', 1, 0)\n"
    first, second = (by_name, initialize) if is_imported == "before" else (initialize, by_name)
    host.start(
        f"import jax\n{first}{second}"
        """
number = 0
while not reached_preemption_sync_point(number):
    number += 1
    context.step(number)
    if number == 5:
        print("ready", flush=True)
    time.sleep(0.02)
"""
    )
    host.wait_for_line("ready")
    host.announce()
    assert host.wait_for_end() == [(0, None, True, False)]
    assert len(host.of(Leaving)) == 1


def test_notice_that_is_announced_again_is_answered_anew_and_calls_back_no_more(
    host: Host,
) -> None:
    host.start("context.on_preemption(lambda: print('called back', flush=True))\n" + ASKS)
    host.wait_for_line("ready")
    [first] = host.announce()
    host.agent.tell(1, {"stop_at": None, "turn": 1})
    host.wait_for_line("called back")
    host.agent.tell(1, {"hold_s": 20.0, "turn": 2})
    host.wait_for(lambda _: len(host.of(StopPoint)) == 2)
    again = host.of(StopPoint)[1]
    assert (first.turn, again.turn, again.calls >= first.calls) == (1, 2, True)
    host.agent.tell(1, {"stop_at": again.calls + 1, "turn": 1})  # of the one that failed
    host.agent.tell(1, {"stop_at": again.calls + 3, "turn": 2})
    assert host.wait_for_end() == [(0, None, True, False)]
    assert f"told at {again.calls + 2}" in host.lines()
    assert host.lines().count("called back") == 1


def test_sigterm_from_outside_is_told_though_the_main_thread_is_busy(host: Host) -> None:
    busy = "import hashlib; hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)"
    host.start(f"context.preempted()\nprint('ready', flush=True)\n{busy}\n", count=2)
    host.wait_for_line("ready", 2)
    pid = host.pid()
    os.kill(pid, signal.SIGTERM)
    host.wait_for(lambda _: bool(host.of(PreemptionNotice)))
    [notice] = host.of(PreemptionNotice)
    assert (notice.source, notice.left_s) == ("sigterm", None)
    assert notice.process_index in (0, 1)
    assert host.of(WorkerExit) == []


def test_sigterm_from_outside_ends_one_worker_that_listens_to_nothing(host: Host) -> None:
    host.start("print('ready', flush=True)\ntime.sleep(600)\n")
    host.wait_for_line("ready")
    os.kill(host.pid(), signal.SIGTERM)
    assert host.wait_for_end() == [(None, signal.SIGTERM, False, False)]


def test_sigterm_of_a_forked_child_is_the_childs_alone(host: Host) -> None:
    host.start("""
import warnings; warnings.simplefilter("ignore")
child = os.fork()
if child == 0:
    signal.alarm(30)
    signal.pause()
os.kill(child, signal.SIGTERM)
_, status = os.waitpid(child, 0)
time.sleep(0.5)
print("child", os.waitstatus_to_exitcode(status), flush=True)
""")
    assert host.wait_for_end() == [(0, None, False, False)]
    assert "child -15" in host.lines()
    assert host.of(PreemptionNotice) == []


@pytest.mark.parametrize("ask", [True, False])
def test_stop_by_the_launcher_is_no_notice(host: Host, ask: bool) -> None:
    host.start(ASKS)
    host.wait_for_line("ready")
    started = time.monotonic()
    host.agent.stop(3.0, ask)
    assert time.monotonic() - started < 2.5  # nobody to wait for
    assert host.wait_for_end() == [(143, None, False, True)]
    assert host.of(PreemptionNotice) == []


def test_leave_outside_of_a_job_ends_with_zero() -> None:
    from hotstart.launcher import context

    assert context.preempted() is False
    context.on_preemption(lambda: None)
    with pytest.raises(SystemExit) as raised:
        context.leave()
    assert raised.value.code == 0


@pytest.mark.parametrize("code", [0, 143])
def test_sigterm_whose_handler_ends_the_program_at_once_is_a_notice_first(
    host: Host, code: int
) -> None:
    host.start(
        f"signal.signal(signal.SIGTERM, lambda *_: sys.exit({code}))\n"
        "print('ready', flush=True)\nwhile True: time.sleep(0.05)\n"
    )
    host.wait_for_line("ready")
    os.kill(host.pid(), signal.SIGTERM)
    assert host.wait_for_end() == [(code, None, code == 0, False)]
    [notice] = host.of(PreemptionNotice)
    assert (notice.source, notice.process_index) == ("sigterm", 0)
    assert host.seen.index(notice) < host.seen.index(host.of(WorkerExit)[0])


def test_sigterm_of_the_agent_whose_handler_ends_at_once_is_no_notice(host: Host) -> None:
    host.start(
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n"
        "print('ready', flush=True)\nwhile True: time.sleep(0.05)\n"
    )
    host.wait_for_line("ready")
    host.agent.stop(5.0, ask=True)
    assert host.wait_for_end() == [(0, None, False, True)]
    assert host.of(PreemptionNotice) == host.of(Leaving) == []
