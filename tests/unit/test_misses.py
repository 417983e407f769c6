from __future__ import annotations

import threading
import time

import pytest

from hotstart.launcher import misses
from hotstart.launcher.record import RunRecord

pytestmark = pytest.mark.unit


def test_report_of_a_run_that_has_just_ended_does_not_wait_for_its_cache(
    store, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = RunRecord.create(store, "lm-1", "name: lm\n", {}, 1.0)
    record.start_attempt(1, {"started_at_s": 1.0})
    may_end, has_ended = threading.Event(), threading.Event()

    def look(record: RunRecord, facts: object, report: dict[str, object]) -> dict[str, object]:
        may_end.wait(30)
        has_ended.set()
        return {"run": "late"}

    monkeypatch.setattr(misses, "_with_misses", look)
    started = time.monotonic()
    report = misses.report_soon(record, within_s=0.1)
    assert time.monotonic() - started < 10
    assert [attempt["misses"] for attempt in report["attempts"]] == [[]]
    assert misses.is_looking()
    may_end.set()
    assert has_ended.wait(10)
    assert misses.report_soon(record, within_s=10.0) == {"run": "late"}
