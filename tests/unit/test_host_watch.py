"""What a real agent tells of real workers that are still, without Ray."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hotstart.launcher.agent import Agent
from hotstart.launcher.agent_cache import Seat
from hotstart.launcher.plan import AttemptPlan, Program
from hotstart.launcher.watchdog import StillLimits, Stillness

pytestmark = pytest.mark.unit

PATIENCE_S = 60.0
STEPS = """
import threading
from hotstart.launcher import context

for number in range(1, 4):
    context.step(number)
"""
HANGS = STEPS + "threading.Event().wait()\n"
ENDS = STEPS + "threading.Thread(target=threading.Event().wait).start()\n"  # and is waited for


@pytest.fixture
def agent() -> Iterator[Agent]:
    made = Agent("127.0.0.1")
    made.cache.open(None, Seat(0), ())
    yield made
    made.close()


def first_still(agent: Agent, folder: Path, program: str) -> Stillness:
    """The first word of a worker with this program, which may be still for half a second."""
    script = folder / "train.py"
    script.write_text(program)
    attempt = AttemptPlan(
        run="run-of-test-host-watch",
        attempt=1,
        process_count=1,
        coordinator="127.0.0.1:1",
        initialize=False,
        distributed_timeout_s=5.0,
        program=Program(str(script), None, (), (), str(folder)),
        cache=None,
        environ={"JAX_PLATFORMS": "cpu"},
        log_location=str(folder / "logs"),
        limits=StillLimits(step_s=0.5),
    )
    agent.start(attempt, (0,), 0.0)
    cursor, deadline = 0, time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        batch = agent.events(cursor)
        cursor = batch.next_cursor
        for _, event in batch.events:
            if isinstance(event, Stillness) and event.last_step == 3:
                return event
    raise AssertionError(f"nothing still within {PATIENCE_S} s")


@pytest.mark.parametrize(
    ("program", "tells_steps"),
    [(HANGS, True), (ENDS, False)],
    ids=["its program hangs", "its program has ended"],
)
def test_worker_that_is_still_tells_steps_as_long_as_its_program_runs(
    agent: Agent, tmp_path: Path, program: str, tells_steps: bool
) -> None:
    said = first_still(agent, tmp_path, program)
    assert (said.still_s is not None, said.tells_steps) == (True, tells_steps)
