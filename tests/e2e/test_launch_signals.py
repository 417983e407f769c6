"""SIGINT and SIGTERM before there is anything to stop: one line, exit code 130."""

from __future__ import annotations

import json
import signal
import socket
import time
from collections.abc import Iterator
from threading import Event

import pytest

from tests.support.launch import Launched, Site, site

pytestmark = pytest.mark.e2e

JOB = """
    script: train.py
    resources_per_worker: {CPU: 1}
"""


@pytest.fixture
def here() -> Iterator[Site]:
    with site() as made:
        made.write("train.py", "import time\ntime.sleep(600)\n")
        made.write("job.yaml", JOB)
        yield made


def send_at(launched: Launched, started: float, at_s: float, number: signal.Signals) -> None:
    Event().wait(max(0.0, started + at_s - time.monotonic()))
    launched.signal(number)


@pytest.mark.parametrize("at_s", [0.5, 1.0, 1.6, 2.4])
def test_sigterm_while_ray_starts_interrupts_the_run(here: Site, at_s: float) -> None:
    started = time.monotonic()
    launched = here.start_launch()
    send_at(launched, started, at_s, signal.SIGTERM)
    finished = launched.wait(timeout_s=20)
    assert finished.exit_code == 130, finished.shown
    assert "Traceback" not in finished.stderr, finished.shown
    here.assert_clean(within_s=3.0)
    if here.run_names():
        report = here.report()
        assert (report["state"], report["exit_code"]) == ("interrupted", 130)
    else:
        assert finished.stderr == "hotstart: interrupted\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_while_a_bucket_does_not_answer_ends_at_once(
    here: Site, number: signal.Signals
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        endpoint = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        launched = here.start_launch(
            "job.yaml",
            "cache.location=gs://bucket/cache",
            env={"STORAGE_EMULATOR_HOST": endpoint},
        )
        deaf.settimeout(30)
        connection, _ = deaf.accept()
        with connection:
            launched.signal(number)
            sent = time.monotonic()
            finished = launched.wait(timeout_s=20)
    assert finished.exit_code == 130, finished.shown
    assert time.monotonic() - sent < 5.0  # Ray, which was started here, has to end too
    report = here.report()
    assert (report["state"], report["exit_code"], report["attempts"]) == ("interrupted", 130, [])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_while_a_restart_watches_the_owner_ends_at_once(
    here: Site, number: signal.Signals
) -> None:
    launched = here.start_launch()
    launched.wait_for("attempt 1 started")
    launched.signal(signal.SIGKILL)
    launched.wait()
    [run] = here.run_names()
    claim = here.runs / run / "owner" / "00000001" / "00000000"
    owner = json.loads(claim.read_text())
    # An owner on another boot of the machine can't be looked up, so it is watched.
    claim.write_text(json.dumps({**owner, "boot_id": "another"}))
    started = time.monotonic()
    restarted = here.start("restart", run, "--address", "local", "--json")
    send_at(restarted, started, 2.0, number)
    finished = restarted.wait(timeout_s=20)
    assert finished.exit_code == 130, finished.shown
    assert finished.stderr == "hotstart: interrupted\n"
