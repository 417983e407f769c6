from __future__ import annotations

import logging
import random

import pytest

from hotstart.launcher.errors import RecordDamaged, RunNotFound, RunOwned, UsageError
from hotstart.launcher.facts import RunEnd, RunSummary
from hotstart.launcher.identity import OwnerIdentity
from hotstart.launcher.outcome import Outcome
from hotstart.launcher.ownership import take_ownership
from hotstart.launcher.record import RunRecord
from hotstart.launcher.runs import list_runs, new_run_name, open_run, resolve_run

pytestmark = pytest.mark.unit

ELSEWHERE = OwnerIdentity("host-z", "ann", 7, 70, "boot-z", "pid:[1]")
FAILED = Outcome("failed", "process 1 on host-a was killed by SIGKILL", 1)


def create(store, name="lm-1", now_s=5.0):
    return RunRecord.create(store, name, "name: lm\n", {"cwd": "/home/ann"}, now_s)


def test_record_create_writes_one_object_a_fact(store):
    create(store)

    assert store.names() == ("index/lm-1", "lm-1/created", "lm-1/job.yaml")


def test_record_create_of_a_taken_name_is_refused(store):
    create(store)

    with pytest.raises(UsageError, match="a run lm-1 exists already in /runs"):
        create(store)


@pytest.mark.parametrize("name", ["", "index", "latest", "a/b", "../x", ".hidden", "a b"])
def test_record_create_with_an_impossible_name_is_refused(store, name):
    with pytest.raises(UsageError):
        create(store, name)
    assert store.names() == ()


def test_record_open_gives_the_job_back(store):
    create(store)

    assert open_run(store, "lm-1").job_yaml() == "name: lm\n"


def test_record_open_of_an_unknown_name_names_the_nearest_and_the_place(store):
    create(store, "bytelm-20261124-163001-3f2a")

    with pytest.raises(RunNotFound) as raised:
        open_run(store, "bytelm-20261124-163001-3f2b")

    assert str(raised.value) == (
        "no run 'bytelm-20261124-163001-3f2b' in /runs; the nearest are "
        "bytelm-20261124-163001-3f2a; see `hotstart runs`, or name another run directory"
    )


def test_record_job_yaml_that_is_gone_is_damage(store):
    record = create(store)
    store.delete("lm-1/job.yaml", store.stat("lm-1/job.yaml").generation)

    with pytest.raises(RecordDamaged, match="/runs/lm-1/job.yaml is missing"):
        record.job_yaml()


def test_record_job_yaml_that_is_no_text_is_damage(store):
    record = create(store)
    store.delete("lm-1/job.yaml", store.stat("lm-1/job.yaml").generation)
    store.create("lm-1/job.yaml", b"name: \xff")

    with pytest.raises(RecordDamaged, match="/runs/lm-1/job.yaml is damaged: .*; launch the job"):
        record.job_yaml()


def test_record_locations_lie_under_the_run(store):
    record = create(store)

    assert record.checkpoint_location == "/runs/lm-1/checkpoints"
    assert record.log_location == "/runs/lm-1/logs"


def test_record_attempts_fold_in_order(store):
    record = create(store)
    record.start_attempt(2, {"started_at_s": 9.0})
    record.start_attempt(1, {"started_at_s": 6.0})
    record.worker_report(1, 11, {"process_index": 11})
    record.worker_report(1, 2, {"process_index": 2})
    record.end_attempt(1, FAILED, {"wall_s": 2.5})

    first, second = record.attempts()

    assert (first.attempt, first.start) == (1, {"started_at_s": 6.0})
    assert first.workers == ({"process_index": 2}, {"process_index": 11})
    assert first.end == {
        "wall_s": 2.5,
        "outcome": "failed",
        "reason": "process 1 on host-a was killed by SIGKILL",
        "first_worker": 1,
    }
    assert (second.attempt, second.end, second.workers) == (2, None, ())
    assert record.next_attempt() == 3


def test_record_attempt_started_by_another_driver_is_refused(store):
    create(store).start_attempt(1, {})

    with pytest.raises(RunOwned, match="attempt 1 of run lm-1"):
        open_run(store, "lm-1").start_attempt(1, {})


def test_record_garbage_and_foreign_objects_are_skipped_with_one_warning_each(store, caplog):
    record = create(store)
    record.start_attempt(1, {"started_at_s": 6.0})
    store.create("lm-1/attempts/00001/workers/00000", b'{"process_ind')
    store.create("lm-1/attempts/00001/workers/00001", b"[1]")
    store.create("lm-1/attempts/00001/end", b"\xff\xfe")
    store.create("lm-1/attempts/.DS_Store", b"")
    store.create("lm-1/owner/notes.txt", b"hello")
    store.create("lm-1/owner/00000009/00000003", b"{}")
    store.create("lm-1/end/00000001", b'{"state": "great"}')
    store.create("lm-1/logs/attempts/00009/start", b"{}")

    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            (attempt,) = record.attempts()
            assert record.owner() is None
            assert record.end() is None

    assert (attempt.start, attempt.end, attempt.workers) == ({"started_at_s": 6.0}, None, ())
    assert sorted(r.getMessage() for r in caplog.records) == [
        "/runs/lm-1/attempts/.DS_Store is no fact of a run record; it is skipped",
        "/runs/lm-1/attempts/00001/end is not a JSON object; it is skipped",
        "/runs/lm-1/attempts/00001/workers/00000 is not a JSON object; it is skipped",
        "/runs/lm-1/attempts/00001/workers/00001 is not a JSON object; it is skipped",
        "/runs/lm-1/owner/notes.txt is no fact of a run record; it is skipped",
    ]


def test_record_state_without_an_owner_is_created(store):
    assert create(store).state() == "created"


def test_record_state_of_a_live_owner_here_is_running(store, clock):
    record = create(store)
    take_ownership(record, OwnerIdentity.of_this_process(), clock=clock, sleep=clock.sleep)

    assert record.state() == "running"


def test_record_state_of_an_owner_elsewhere_is_unknown(store, clock):
    record = create(store)
    take_ownership(record, ELSEWHERE, clock=clock, sleep=clock.sleep)

    assert record.state() == "unknown"


def test_record_state_of_an_unreadable_claim_is_unknown(store):
    record = create(store)
    store.create("lm-1/owner/00000001/00000000", b"torn")

    assert record.state() == "unknown"


def test_record_state_after_the_end_is_the_end(store, clock):
    record = create(store)
    owned = take_ownership(record, ELSEWHERE, clock=clock, sleep=clock.sleep)
    record.finish("failed", 3, "budget spent", epoch=owned.epoch)

    assert record.state() == "failed"
    assert record.end() == RunEnd(1, "failed", 3, "budget spent")


def test_record_state_of_a_restarted_run_is_not_the_old_end(store, clock):
    record = create(store)
    record.finish("failed", 1, "why", epoch=1)
    take_ownership(record, OwnerIdentity.of_this_process(), clock=clock, sleep=clock.sleep)
    second = take_ownership(
        create(store, "lm-2"), OwnerIdentity.of_this_process(), clock=clock, sleep=clock.sleep
    )
    assert second.epoch == 1

    take_ownership(record, OwnerIdentity.of_this_process(), clock=clock, sleep=clock.sleep)

    assert record.owner().epoch == 2
    assert record.state() == "running"


def test_record_end_of_a_superseded_owner_does_not_count(store, clock):
    record = create(store)
    old = take_ownership(record, ELSEWHERE, clock=clock, sleep=clock.sleep)
    new = take_ownership(record, ELSEWHERE, clock=clock, sleep=clock.sleep)
    record.finish("done", 0, "finished", epoch=new.epoch)
    record.finish("interrupted", 130, "superseded", epoch=old.epoch)

    assert record.state() == "done"


def test_list_runs_gives_a_line_a_run_in_order_of_launch(store, clock):
    finished = create(store, "b-run", now_s=5.0)
    owned = take_ownership(finished, ELSEWHERE, clock=clock, sleep=clock.sleep)
    finished.start_attempt(1, {})
    finished.finish("done", 0, "all 2 workers exited with code 0", epoch=owned.epoch)
    born_s = store.now_s
    store.now_s += 10
    create(store, "a-run", now_s=3.0)
    store.create("index/.tmp", b"")

    assert list_runs(store, ELSEWHERE) == [
        RunSummary(
            "b-run", "done", 5.0, 1, "host-z", born_s, 0, "all 2 workers exited with code 0"
        ),
        RunSummary("a-run", "created", 3.0, 0, None, None, None, None),
    ]


def test_list_runs_never_lists_a_runs_own_files(store, monkeypatch):
    create(store)
    prefixes = []
    inner = store.list
    monkeypatch.setattr(store, "list", lambda prefix: prefixes.append(prefix) or inner(prefix))

    list_runs(store)

    assert sorted(prefixes) == ["index/", "lm-1/attempts/", "lm-1/end/", "lm-1/owner/"]


def test_resolve_run_latest_is_the_last_by_the_stores_clock(store):
    create(store, "z-run", now_s=900.0)
    store.now_s += 1
    create(store, "a-run", now_s=100.0)  # a launching host whose clock is behind

    assert resolve_run(store, "latest").name == "a-run"
    assert resolve_run(store, "z-run").name == "z-run"


def test_resolve_run_latest_without_runs_says_where_it_looked(store):
    with pytest.raises(RunNotFound, match="no runs in /runs; launch one with"):
        resolve_run(store, "latest")


@pytest.mark.parametrize(
    ("job_name", "expected"),
    [
        ("bytelm", "bytelm-20261124-163001-d82c"),
        ("my job/ü", "my-job--20261124-163001-d82c"),
        ("...", "job-20261124-163001-d82c"),
    ],
)
def test_new_run_name_is_job_date_and_random_bits(job_name, expected):
    assert new_run_name(job_name, 1_795_537_801.0, random.Random(0)) == expected


def test_record_driver_killed_after_first_step_keeps_the_early_reports(store) -> None:
    record = create(store, "lm-1")
    record.start_attempt(1, {"process_count": 2})
    record.first_step(1, [{"process_index": 0}, {"process_index": 1}])
    assert record.attempts()[0].workers == ({"process_index": 0}, {"process_index": 1})


def test_record_final_reports_replace_the_early_ones(store) -> None:
    record = create(store, "lm-1")
    record.start_attempt(1, {"process_count": 1})
    record.first_step(1, [{"process_index": 0, "last_step": 1}])
    record.worker_report(1, 0, {"process_index": 0, "last_step": 9})
    assert record.attempts()[0].workers == ({"process_index": 0, "last_step": 9},)
