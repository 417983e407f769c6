from __future__ import annotations

import pytest

from hotstart.launcher.identity import OwnerIdentity
from hotstart.launcher.manifest import Manifest, ManifestEntry
from hotstart.launcher.outcome import Outcome
from hotstart.launcher.ownership import take_ownership
from hotstart.launcher.record import RunRecord
from hotstart.launcher.report import build_report

pytestmark = pytest.mark.unit

ELSEWHERE = OwnerIdentity("host-z", "ann", 7, 70, "boot-z", "pid:[1]")
CACHE = {"location": "/tmp/cache", "source": "JOB.yaml", "mode": "read-write"}


def worker(index: int, first_step: float | None) -> dict:
    return {
        "process_index": index,
        "host": "host-a",
        "standby": True,
        "phases": {
            "process_start": 0.1,
            "import_jax": 0.9,
            "cache_enabled": 1.0,
            "distributed": 1.5,
            "user_code": 1.6,
            "first_compile": 2.0,
            "first_step": first_step,
        },
        "cache": {
            "requests": 5,
            "hits": 2,
            "compiled": 3,
            "waits": 0,
            "errors": 1,
            "unsigned": 2,
            "bad_signature": 3,
            "read_bytes": 10,
            "written_bytes": 20,
            "compile_s": 4.5,
            "saved_s": 1.25,
            "retry_s": 2.5,
            "retries": 4,
            "outages": 1,
            "compiled_before_enable": 1,
            "compiled_before_enable_names": ["jit_init"],
        },
        "programs": [
            {"module": "jit_f", "outcome": "compiled", "compile_s": 4.5, "size_bytes": 20}
        ],
        "last_step": 12,
        "warnings": ["slow disk"],
    }


@pytest.fixture
def record(store):
    return RunRecord.create(store, "lm-1", "name: lm\n", {}, 1_795_537_801.25)


def test_report_of_a_finished_run_has_exactly_the_documented_fields(record, clock):
    owned = take_ownership(record, ELSEWHERE, clock=clock, sleep=clock.sleep)
    started = {"started_at_s": 1_795_537_802.5, "waited_s": 0.2, "cache": CACHE, "process_count": 1}
    record.start_attempt(1, {**started, "host_count": 1, "workers": {"min": 1, "max": 2}})
    record.worker_report(1, 0, worker(0, 14.2))
    host = {
        "host": "host-a",
        "reads": 5,
        "read_bytes": 500,
        "from_peers": 1,
        "from_peers_bytes": 100,
        "uploads": 2,
        "written_bytes": 200,
        "errors": 0,
        "unsigned": 0,
        "bad_signature": 0,
        "retries": 1,
        "retry_s": 0.5,
        "outages": 2,
        "warnings": ["the coordinator is lost; this host resolves on its own"],
    }
    done = Outcome("done", "all 1 workers exited with code 0", None)
    record.end_attempt(1, done, {"ended_at_s": 1_795_537_812.5, "hosts": [host]})
    record.finish("done", 0, "all 1 workers exited with code 0", epoch=owned.epoch)

    assert build_report(record.read(ELSEWHERE)) == {
        "schema": 1,
        "run": "lm-1",
        "state": "done",
        "exit_code": 0,
        "reason": "all 1 workers exited with code 0",
        "launched_at": "2026-11-24T16:30:01.250+00:00",
        "cache": CACHE,
        "manifest": None,
        "cost": None,
        "attempts": [
            {
                "attempt": 1,
                "outcome": "done",
                "reason": "all 1 workers exited with code 0",
                "first_worker": None,
                "started_at": "2026-11-24T16:30:02.500+00:00",
                "waited_s": 0.2,
                "ended_at": "2026-11-24T16:30:12.500+00:00",
                "process_count": 1,
                "host_count": 1,
                "workers_wanted": {"min": 1, "max": 2},
                "seconds_to_first_step": 14.2,
                "preemption": [],
                "differences": [],
                "workers": [worker(0, 14.2)],
                "hosts": [host],
            }
        ],
    }


@pytest.mark.parametrize(
    ("first_steps", "process_count", "expected"),
    [
        ([3.0, 4.5], 2, 4.5),
        ([3.0, None], 2, None),
        ([3.0], 2, None),
        ([], 2, None),
    ],
    ids=["all_stepped", "one_did_not", "one_is_unheard", "none_is_heard"],
)
def test_report_seconds_to_first_step_is_the_slowest_or_null(
    record, first_steps, process_count, expected
):
    record.start_attempt(1, {"process_count": process_count})
    for index, first_step in enumerate(first_steps):
        record.worker_report(1, index, worker(index, first_step))

    (attempt,) = build_report(record.read(ELSEWHERE))["attempts"]

    assert attempt["seconds_to_first_step"] == expected


def test_report_of_a_killed_driver_leaves_the_attempt_without_an_end(record, clock):
    take_ownership(record, ELSEWHERE, clock=clock, sleep=clock.sleep)
    record.start_attempt(1, {})

    report = build_report(record.read(OwnerIdentity.of_this_process()))

    assert (report["state"], report["exit_code"], report["reason"]) == ("unknown", None, None)
    assert report["cache"] is None
    assert report["attempts"][0]["outcome"] is None


def test_report_of_a_restarted_run_does_not_show_the_old_end(record, clock):
    record.finish("failed", 1, "why", epoch=1)
    for _ in range(2):
        take_ownership(record, ELSEWHERE, clock=clock, sleep=clock.sleep)

    assert build_report(record.read(ELSEWHERE))["exit_code"] is None


def test_report_cache_is_the_latest_attempts(record):
    record.start_attempt(1, {"cache": CACHE})
    record.start_attempt(2, {"cache": {**CACHE, "mode": "off"}})

    assert build_report(record.read(ELSEWHERE))["cache"] == {**CACHE, "mode": "off"}


def test_report_manifest_is_the_latest_that_an_attempt_left(record):
    def manifest(*sizes: int) -> Manifest:
        entries = (
            ManifestEntry(f"jit_{i}", size, None, ((0, 0),), None, None, False)
            for i, size in enumerate(sizes)
        )
        return Manifest(tuple(entries), "0.10.2", "0.10.2", "cpu", 1)

    for n in (1, 2, 3):
        record.start_attempt(n, {})
    record.keep_manifest(1, manifest(100, 200, 300))
    record.keep_manifest(2, manifest(10))
    record.keep_manifest(2, manifest(10, 5))

    assert build_report(record.read(ELSEWHERE))["manifest"] == {"keys": 2, "size_bytes": 15}


def test_report_of_a_worker_with_strange_fields_fills_nulls_and_zeros(record):
    record.start_attempt(1, {})
    record.worker_report(1, 0, {"phases": [], "cache": {"hits": "many"}, "warnings": 3})

    (shown,) = build_report(record.read(ELSEWHERE))["attempts"][0]["workers"]

    assert shown["phases"] == dict.fromkeys(worker(0, None)["phases"])
    assert shown["cache"] == {
        "requests": 0,
        "hits": 0,
        "compiled": 0,
        "waits": 0,
        "errors": 0,
        "unsigned": 0,
        "bad_signature": 0,
        "read_bytes": 0,
        "written_bytes": 0,
        "retries": 0,
        "outages": 0,
        "compiled_before_enable": 0,
        "compile_s": 0.0,
        "saved_s": 0.0,
        "retry_s": 0.0,
        "compiled_before_enable_names": [],
    }
    assert (shown["process_index"], shown["last_step"], shown["warnings"]) == (0, None, [])


def test_report_of_a_job_with_a_price_counts_worker_time_spent_and_saved(record):
    start = {"started_at_s": 1000.0, "process_count": 2, "cost_per_worker_hour": 36.0}
    for attempt, price in ((1, 36.0), (2, 72.0)):
        record.start_attempt(attempt, {**start, "cost_per_worker_hour": price})
        for index in (0, 1):
            record.worker_report(attempt, index, worker(index, 1.0))
    failed = Outcome("failed", "process 0 exited with code 1", 0)
    record.end_attempt(1, failed, {"ended_at_s": 1050.0})

    # 2 workers for 50 s at 0.01 a second; each saved 1.25 s, in attempt 2 at 0.02.
    assert build_report(record.read(ELSEWHERE))["cost"] == {
        "per_worker_hour": 72.0,
        "spent": 1.0,
        "saved": 0.075,
    }
