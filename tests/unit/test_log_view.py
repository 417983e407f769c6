"""Logs on a screen: which attempt and workers, once or as they come."""

from __future__ import annotations

from pathlib import Path

import pytest

from hotstart.cache.store import open_store
from hotstart.launcher.beats import Ownership
from hotstart.launcher.errors import UsageError
from hotstart.launcher.identity import OwnerIdentity
from hotstart.launcher.log_view import LogView
from hotstart.launcher.outcome import Outcome
from hotstart.launcher.ownership import take_ownership
from hotstart.launcher.record import RunRecord
from hotstart.launcher.run_logs import open_logs
from hotstart.launcher.worker_log import WorkerLog

pytestmark = pytest.mark.unit

ELSEWHERE = OwnerIdentity("host-b", "bob", 42, 80, "boot-b", "pid:[1]")


class Scene:
    """A run in a directory and what a view of its logs has shown."""

    def __init__(self, folder: Path) -> None:
        store = open_store(str(folder))
        self.record = RunRecord.create(store, "lm-1", "name: lm\n", {}, 5.0)
        self.owner: Ownership = take_ownership(self.record, ELSEWHERE)
        self.shown: list[str] = []

    def log(self, attempt: int, worker: int, text: bytes) -> WorkerLog:
        folder = Path(self.record.log_location, f"attempt-{attempt:05d}")
        log = WorkerLog(folder / f"worker-{worker:05d}.log")
        log.write(text)
        return log

    def view(self, *workers: int, attempt: int | None = None, tail: int | None = None) -> LogView:
        logs = open_logs(self.record.log_location)
        return LogView(self.record, logs, workers, attempt, tail, self.shown.append)


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_log_view_shows_the_latest_attempt_with_process_indices(scene: Scene) -> None:
    scene.log(1, 0, b"old\n")
    scene.log(2, 0, b"one\n")
    scene.log(2, 10, b"two\n")

    scene.view().show()
    scene.view(10).show()

    assert sorted(scene.shown) == ["[0] one", "[10] two", "two"]


def test_log_view_follows_over_attempts_to_the_end_of_the_run(scene: Scene) -> None:
    scene.record.start_attempt(1, {})
    first = scene.log(1, 0, b"one\ntwo\n")
    steps = iter(
        (
            lambda: first.write(b"three"),
            lambda: (
                scene.record.start_attempt(2, {}),
                scene.record.start_attempt(3, {}),
                first.write(b" and a half\n"),
                scene.log(3, 0, b"four\n"),
            ),
            lambda: scene.record.finish("failed", 3, "spent", epoch=scene.owner.epoch),
        )
    )

    scene.view(tail=1).follow(1.0, lambda seconds: next(steps)())

    assert scene.shown == ["[0] two", "[0] three and a half", "--- attempt 3", "[0] four"]


def test_log_view_that_follows_waits_for_the_first_line(scene: Scene) -> None:
    steps = iter(
        (
            lambda: scene.log(1, 0, b"one"),
            lambda: scene.record.finish("done", 0, "done", epoch=scene.owner.epoch),
        )
    )

    scene.view().follow(1.0, lambda seconds: next(steps)())

    assert scene.shown == ["[0] one"]


def test_log_view_of_one_attempt_ends_with_it(scene: Scene) -> None:
    for attempt in (1, 2):
        scene.record.start_attempt(attempt, {})
        scene.log(attempt, 0, b"attempt %d\n" % attempt)
    scene.record.end_attempt(1, Outcome("failed", "why", 0), {})

    scene.view(attempt=1).follow(1.0, lambda seconds: pytest.fail("it is over"))

    assert scene.shown == ["[0] attempt 1"]


def test_log_view_of_a_run_that_ended_without_a_line_says_so(scene: Scene) -> None:
    scene.record.finish("failed", 1, "no room", epoch=scene.owner.epoch)

    for look in (scene.view().show, lambda: scene.view().follow(1.0, pytest.fail)):
        with pytest.raises(UsageError, match="has no logs; no worker of it has written anything"):
            look()
