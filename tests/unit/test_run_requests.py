"""Stopping a run, its status, and a restart with other settings: over a store in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from hotstart.conf.errors import ConfigError
from hotstart.conf.load import job_from_yaml, job_with
from hotstart.launcher.console import Console
from hotstart.launcher.identity import OwnerIdentity
from hotstart.launcher.live import Live
from hotstart.launcher.outcome import Outcome
from hotstart.launcher.ownership import take_ownership
from hotstart.launcher.placement import GangSize
from hotstart.launcher.record import RunRecord
from hotstart.launcher.run_status import run_status, status_lines
from hotstart.launcher.stopping import stop_reason, stop_run, stopped_line
from hotstart.launcher.watchers import WatcherFacts

pytestmark = pytest.mark.unit

ANN = OwnerIdentity("host-a", "ann", 41, 70, "boot-a", "pid:[1]")
BOB = OwnerIdentity("host-b", "bob", 42, 80, "boot-b", "pid:[1]")
HERE = OwnerIdentity.of_this_process()
DEAD = replace(HERE, pid=2**22 - 1, pid_started=1)


@pytest.fixture
def record(store):
    return RunRecord.create(store, "lm-1", "name: lm\nscript: /t.py\n", {}, 5.0)


@pytest.fixture
def stop(record, clock):
    def stop(timeout_s: float = 60.0, during: Callable[[], object] = lambda: None):
        clock.on_sleep = during
        return stop_run(record, BOB, timeout_s, clock=clock, sleep=clock.sleep)

    return stop


def test_stop_asks_the_owner_and_waits_for_the_end(record, stop, clock):
    owner = take_ownership(record, ANN, clock=clock, sleep=clock.sleep)

    def end():
        if len(clock.slept) == 3:
            asked = []
            assert owner.beat(on_stop=lambda: asked.append(1)) is True
            assert asked == [1]
            reason = stop_reason(record.stop_request(1) or {})
            record.finish("interrupted", 130, reason, epoch=1)

    went = stop(during=end)

    assert (went.how, went.end.state) == ("ended", "interrupted")
    assert went.end.reason == "stopped by bob on host-b (hotstart stop)"
    assert stopped_line("lm-1", went, 60.0, "") == (
        "lm-1 has ended: interrupted, stopped by bob on host-b (hotstart stop); restart it with: "
        "hotstart restart lm-1"
    )


def test_stop_of_a_run_that_has_ended_changes_nothing(record, store, stop, clock):
    owner = take_ownership(record, ANN, clock=clock, sleep=clock.sleep)
    record.finish("failed", 1, "process 0 exited with code 1", epoch=owner.epoch)
    before = store.names()

    went = stop()

    assert (went.how, store.names(), clock.slept) == ("over", before, [])


def test_stop_of_a_run_whose_driver_is_dead_says_that_nobody_is_there(record, clock):
    take_ownership(record, DEAD, clock=clock, sleep=clock.sleep)

    went = stop_run(record, HERE, 60.0, clock=clock, sleep=clock.sleep)

    assert went.how == "nobody"
    assert stopped_line("lm-1", went, 60.0, " --run-dir /r") == (
        "lm-1 has no driver that lives: there is nobody to stop; go on with: hotstart restart "
        "lm-1 --run-dir /r"
    )


def test_stop_of_a_driver_without_a_beat_gives_up_after_the_time_to_live(record, stop, clock):
    take_ownership(record, ANN, clock=clock, sleep=clock.sleep)

    went = stop(timeout_s=300.0)

    assert went.how == "silent"
    assert sum(clock.slept) == 30.0
    assert record.stop_request(1) is not None  # it stops should it come back


def test_stop_of_a_driver_that_beats_on_gives_up_at_the_timeout(record, stop, clock):
    owner = take_ownership(record, ANN, clock=clock, sleep=clock.sleep)

    went = stop(timeout_s=10.0, during=owner.beat)

    assert (went.how, sum(clock.slept)) == ("waiting", 10.0)


def test_stop_of_a_run_without_a_driver_waits_for_who_watches_over_it(record, stop, clock):
    watcher = WatcherFacts(record, ANN)
    watcher.come()

    def look():
        if len(clock.slept) == 4 and watcher.stop_request():
            watcher.go()

    went = stop(during=look)

    assert (went.how, went.owner, sum(clock.slept)) == ("unwatched", ANN, 2.0)
    assert watcher.stop_request()["user"] == "bob"
    assert stopped_line("lm-1", went, 60.0, "") == (
        "pid 41 on host-a watches over lm-1 no more; it has no driver; go on with: "
        "hotstart restart lm-1"
    )


def test_stop_of_a_watcher_that_starts_a_driver_in_that_moment_stops_the_driver(
    record, stop, clock
):
    watcher = WatcherFacts(record, ANN)
    watcher.come()

    def drive():
        if len(clock.slept) == 2:
            record.create_fact("owner/00000001/00000000", asdict(ANN))
        if record.stop_request(1) is not None:
            record.finish("interrupted", 130, "stopped", epoch=1)

    assert stop(during=drive).how == "ended"


def test_stop_of_a_watcher_that_does_not_answer_says_so_and_waits_for_it_once(record, stop, clock):
    WatcherFacts(record, ANN).come()

    went = stop()
    assert (went.how, sum(clock.slept)) == ("deaf", 20.0)
    assert stopped_line("lm-1", went, 60.0, "") == (
        "pid 41 on host-a watched over lm-1 and has not ended: it is out of reach, or was killed; "
        "the request stays, should it come back"
    )
    assert stop().how == "nobody"
    assert sum(clock.slept) == 20.0


def test_stop_ignores_a_watcher_that_was_killed_on_this_machine(record, clock):
    WatcherFacts(record, DEAD).come()

    assert stop_run(record, HERE, 60.0, clock=clock, sleep=clock.sleep).how == "nobody"


def test_stop_request_is_for_one_epoch(record, stop, clock):
    take_ownership(record, ANN, clock=clock, sleep=clock.sleep)
    stop(timeout_s=1.0)
    later = take_ownership(record, BOB, clock=clock, sleep=clock.sleep)
    asked: list[int] = []

    assert later.beat(on_stop=lambda: asked.append(1)) is True
    assert asked == []


def test_stop_request_does_not_look_like_a_beat(record, stop, clock):
    take_ownership(record, ANN, clock=clock, sleep=clock.sleep)
    before = record.owner()
    record.ask_to_stop(1, {})

    assert record.owner().beats == before.beats
    assert record.owner().stop_asked is True


@pytest.fixture
def look(record, clock):
    def look(observer=BOB, watch_s: float = 8.0, during: Callable[[], object] = lambda: None):
        clock.on_sleep = during
        return run_status(record, observer, watch_s, clock=clock, sleep=clock.sleep)

    return look


def test_status_of_an_owner_elsewhere_that_beats_is_running(record, look, clock):
    owner = take_ownership(record, ANN, clock=clock, sleep=clock.sleep)
    record.start_attempt(1, {"started_at_s": 5.0, "process_count": 2})
    workers = [[0, "host-a", "first_step", 7], [1, "host-c", "user_code", None]]

    found = look(during=lambda: owner.beat({"attempt": 1, "workers": workers}))

    assert (found["state"], found["owner"]["beat_moved"], found["owner"]["watched_s"]) == (
        "running",
        True,
        0.5,
    )
    assert list(status_lines(found)) == [
        "run lm-1 in /runs",
        "state: running",
        "owner: pid 41 on host-a (user ann), epoch 1, lives: its beat moved within 0 s; last beat "
        "2027-01-15T08:00:00+00:00 by the store's clock",
        "attempt 1: 2 workers on 2 hosts, started 1970-01-01T00:00:05+00:00",
        "  [0] host-a: first_step, step 7",
        "  [1] host-c: user_code, no step yet",
        "next: hotstart logs lm-1 -f",
        "next: hotstart stop lm-1",
    ]


@pytest.mark.parametrize(("watch_s", "state"), [(8.0, "unknown"), (30.0, "lost"), (0.0, "unknown")])
def test_status_of_an_owner_elsewhere_without_a_beat_is_lost_after_the_time_to_live(
    record, look, clock, watch_s, state
):
    take_ownership(record, ANN, clock=clock, sleep=clock.sleep)
    clock.slept.clear()

    found = look(watch_s=watch_s)

    assert (found["state"], sum(clock.slept)) == (state, watch_s)
    assert found["next"][0] == "hotstart restart lm-1"


def test_status_of_a_run_that_waits_for_hosts_says_what_is_lacking(record, look, clock):
    owner = take_ownership(record, ANN, clock=clock, sleep=clock.sleep)
    says = Live(Console("lm-1", 4))
    says.waiting(1, "needs 4 x {GPU: 8}; lacking: 1 host", 299.96)

    found = look(during=lambda: owner.beat(says.says()))

    assert found["waiting"] == {"attempt": 1, "text": "needs 4 x {GPU: 8}; lacking: 1 host"}
    line = "attempt 1 waits for hosts: needs 4 x {GPU: 8}; lacking: 1 host"
    assert line in list(status_lines(found))
    says.attempt_started(1, GangSize(4, 4, 4, 4))
    assert "waiting" not in says.says()


def test_status_of_an_owner_here_needs_no_watching(record, look, clock):
    take_ownership(record, HERE, clock=clock, sleep=clock.sleep)

    found = look(observer=HERE)

    assert (found["state"], found["owner"]["process_alive"]) == ("running", True)
    assert clock.slept == []


def test_status_of_a_failed_run_has_its_last_reasons_and_the_command(record, look, clock):
    owner = take_ownership(record, ANN, clock=clock, sleep=clock.sleep)
    for n in range(1, 6):
        record.start_attempt(n, {"process_count": 1})
        record.end_attempt(n, Outcome("failed", f"reason {n}", 0), {})
    record.finish("failed", 3, "restart budget spent", epoch=owner.epoch)

    lines = list(status_lines(look()))

    assert lines[1] == "state: failed (exit code 3): restart budget spent"
    assert [line for line in lines if line.startswith("attempt") and "ended" in line] == [
        f"attempt {n} ended: failed: reason {n}" for n in (3, 4, 5)
    ]
    assert lines[-2:] == ["next: hotstart restart lm-1", "next: hotstart logs lm-1 --tail 50"]


TEXT = "name: lm\nscript: /nowhere/t.py\nrun_dir: gs://b/runs\ncache: {location: 'gs://b/c'}\n"


def test_job_with_settings_keeps_the_rest_and_looks_at_no_recorded_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    changed = job_with(TEXT, "job.yaml", ["workers=4", "script=other.py", "env.A='1'"])

    assert changed == replace(
        job_from_yaml(TEXT), workers=4, script=str(tmp_path / "other.py"), env={"A": "1"}
    )


def test_job_with_a_checkpoint_to_resume_from_takes_it_from_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    changed = job_with(TEXT, "job.yaml", ["resume.if_exists=ckpt", "resume.args=[--resume]"])

    assert changed.resume.if_exists == str(tmp_path / "ckpt")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("name=b", "command line: name: it is in the run's name, and a restart is of the same run; "
                   "launch the job anew instead"),
        ("platform=gpu", "command line: platform: it has presets of its own, and a restart is of "
                         "the same run; launch the job anew instead"),
        ("cache.location=s3://b", "command line: cache.location: s3://b: unknown scheme s3://; "
                                  "give a directory or gs://bucket/prefix"),
        ("cache.location=null", "command line: cache.location: give a directory or "
                                "gs://bucket/prefix"),
        ("workers=0", "command line: workers: expected a whole number of at least 1, got 0"),
        ("workers", "command line: expected key=value, got 'workers'"),
        ("cache.signing_key_file=gs://b/c", "command line: cache.signing_key_file: expected a file "
                                            "of each host, got 'gs://b/c'"),
        ("resume.if_exists=gs://b/c", "command line: resume.if_exists: expected a path of each "
                                      "host, got 'gs://b/c'"),
    ],
)  # fmt: skip
def test_job_with_a_setting_that_cannot_be_used_says_why(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        job_with(TEXT, "job.yaml", [override])

    assert str(raised.value) == message


def test_record_gives_the_job_of_the_latest_revision(record):
    record.revise_job(2, "name: lm\nscript: /second.py\n")
    record.revise_job(10, "name: lm\nscript: /tenth.py\n")

    assert record.job_yaml() == "name: lm\nscript: /tenth.py\n"
