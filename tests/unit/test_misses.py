from __future__ import annotations

import threading
import time

import pytest

from hotstart.cache.errors import StoreOut
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


def test_report_is_there_where_what_was_asked_for_cannot_be_read(
    store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    record = RunRecord.create(store, "lm-1", "name: lm\n", {}, 1.0)
    record.start_attempt(1, {"started_at_s": 1.0})

    def asked() -> None:
        raise StoreOut("cannot read attempts/1/asked/7: 503")

    monkeypatch.setattr(record, "asked", asked)
    for report in (misses.report_of(record), misses.report_soon(record, within_s=10.0)):
        assert [attempt["misses"] for attempt in report["attempts"]] == [[]]
    said = "what was compiled is not explained: cannot read attempts/1/asked/7: 503"
    assert [logged.getMessage() for logged in caplog.records] == [said, said]
