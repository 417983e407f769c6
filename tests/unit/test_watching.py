"""`restart --watch` with drivers that are small programs over a real record."""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path

import pytest

from hotstart.cache.store import open_store
from hotstart.launcher.identity import OwnerIdentity
from hotstart.launcher.ownership import take_ownership
from hotstart.launcher.record import RunRecord
from hotstart.launcher.stopping import stop_run
from hotstart.launcher.watchers import live_watchers
from hotstart.launcher.watching import Watch, Watcher, driver_command
from tests.support.launch import await_true

pytestmark = pytest.mark.unit

ELSEWHERE = OwnerIdentity("host-b", "bob", 42, 80, "boot-b", "pid:[1]")
# The nth start of a driver does what the nth word says; `args` keeps what each was given.
DRIVER = """
import os, signal, sys, time
from pathlib import Path
from hotstart.cache.store import open_store
from hotstart.launcher.identity import OwnerIdentity
from hotstart.launcher.ownership import take_ownership
from hotstart.launcher.record import RunRecord

folder, words, *given = sys.argv[1:]
count = Path(folder, "args")
before = count.read_text().splitlines() if count.exists() else []
count.write_text("\\n".join([*before, " ".join(given)]) + "\\n")
word = words.split(",")[len(before)]
if word == "refuses":
    sys.exit(2)
record = RunRecord(open_store(folder + "/runs"), "lm-1")
owner = take_ownership(record, OwnerIdentity.of_this_process())
if word == "dies":
    os.kill(os.getpid(), signal.SIGKILL)
if word.startswith("unrecorded-"):
    sys.exit(int(word.removeprefix("unrecorded-")))
if word == "waits":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
    print("waits", flush=True)
    time.sleep(60)
state, code = {"done": ("done", 0), "fails": ("failed", 3), "cluster": ("failed", 1)}[word]
record.finish(state, code, word, epoch=owner.epoch, may_restart=word == "cluster")
sys.exit(code)
"""


class Scene:
    """A recorded run, and a watcher whose drivers do what they are told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.record = RunRecord.create(
            open_store(str(folder / "runs")), "lm-1", "name: lm\nscript: /t.py\n", {}, 5.0
        )
        self.told: list[str] = []

    def watcher(
        self,
        words: str,
        *overrides: str,
        address: str | None = None,
        cluster_s: float | None = 0.0,
    ) -> Watcher:
        command = [sys.executable, "-c", DRIVER, str(self.folder), words]
        watch = Watch(command, overrides, address, cluster_s)
        return Watcher(self.record, watch, self.told.append, poll_s=0.05)

    @property
    def given(self) -> list[str]:
        """What each driver was given."""
        path = self.folder / "args"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_watch_restarts_after_a_kill_and_after_a_lost_cluster_until_the_run_is_done(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hotstart.launcher.watching._FIRST_WAIT_S", 0.05)
    code = scene.watcher("dies,cluster,done", "workers=4").run()

    assert code == 0
    assert scene.given == ["workers=4", "workers=4", ""]  # once recorded they are not given again
    assert [line for line in scene.told if line != "starting a driver"] == [
        "the driver was ended by signal 9; looking at the run again in 0 s",
        "the driver ended with code 1; looking at the run again in 0 s",
        "the run is done: done",
    ]


def test_watch_ends_with_a_run_that_is_given_up(scene: Scene) -> None:
    assert scene.watcher("fails").run() == 3
    assert scene.told == ["starting a driver", "the run is failed: fails"]


@pytest.mark.parametrize("code", [0, 3])
def test_watch_of_a_run_that_is_over_but_could_not_record_it_restarts_nothing(
    scene: Scene, code: int
) -> None:
    assert scene.watcher(f"unrecorded-{code}").run() == code
    assert scene.told == [
        "starting a driver",
        f"the run is over (exit code {code}), though its record has no end of it",
    ]


def test_watch_of_a_failed_run_restarts_it_once(scene: Scene) -> None:
    owner = take_ownership(scene.record, ELSEWHERE)
    scene.record.finish("failed", 3, "before", epoch=owner.epoch)

    assert scene.watcher("done").run() == 0
    assert len(scene.given) == 1


def test_watch_of_a_driver_that_refuses_ends_with_its_code(scene: Scene) -> None:
    assert scene.watcher("refuses").run() == 2
    assert len(scene.given) == 1


def test_watch_waits_while_another_owner_beats_and_ends_with_that_ones_end(scene: Scene) -> None:
    owner = take_ownership(scene.record, ELSEWHERE)
    owner.keep(lambda: None, interval_s=0.01)
    watcher, codes = scene.watcher("done"), []
    thread = threading.Thread(target=lambda: codes.append(watcher.run()))
    thread.start()
    scene_told = "another driver looks after the run; waiting for its end"
    try:
        while scene_told not in scene.told:
            thread.join(0.01)
    finally:
        owner.stop()
    scene.record.finish("interrupted", 130, "stopped", epoch=owner.epoch)
    thread.join(20)

    assert (codes, scene.given) == ([130], [])


def test_watch_gives_up_on_a_cluster_that_does_not_answer_in_time(scene: Scene) -> None:
    assert scene.watcher("done", address="127.0.0.1:1").run() == 2
    assert scene.told[-1].startswith("cannot connect to Ray at 127.0.0.1:1: ")
    assert scene.told[-1].endswith("gave up after 0 s (--wait-cluster)")
    assert scene.given == []


def test_watch_that_waits_for_a_cluster_is_reached_by_a_stop(scene: Scene) -> None:
    owner = take_ownership(scene.record, ELSEWHERE)
    scene.record.finish("failed", 1, "its cluster went", epoch=owner.epoch, may_restart=True)
    watcher, codes = scene.watcher("done", address="127.0.0.1:1", cluster_s=None), []
    thread = threading.Thread(target=lambda: codes.append(watcher.run()))
    thread.start()
    await_true(lambda: any("waiting for the cluster" in line for line in scene.told), 20.0)
    me = OwnerIdentity.of_this_process()
    await_true(lambda: len(live_watchers(scene.record, me)) == 1, 5.0)
    went = stop_run(scene.record, me, 20.0)
    thread.join(20)

    assert (went.how, went.owner, codes, scene.given) == ("unwatched", me, [130], [])
    assert scene.told[-1] == (
        f"stopped by {me.user} on {me.host} (hotstart stop); nobody looks after the run any more"
    )
    assert live_watchers(scene.record, me) == []
    assert stop_run(scene.record, me, 20.0).how == "over"


def test_watch_that_is_told_to_stop_ends_its_driver(
    scene: Scene, capfd: pytest.CaptureFixture[str]
) -> None:
    watcher, codes = scene.watcher("waits"), []
    thread = threading.Thread(target=lambda: codes.append(watcher.run()))
    thread.start()
    seen = ""
    while "waits" not in seen:
        thread.join(0.01)
        seen += capfd.readouterr().out
    watcher.stop(signal.SIGTERM)
    thread.join(20)

    assert codes == [130]


def test_watch_gives_its_driver_the_options_that_it_was_given() -> None:
    command = driver_command("lm-1", "gs://b/runs", "head:6379", as_json=True, verbose=2)

    assert command[1:] == [
        *("-P", "-m", "hotstart.launcher.cli", "-vv", "restart", "lm-1"),
        *("--run-dir", "gs://b/runs", "--address", "head:6379", "--json"),
    ]
