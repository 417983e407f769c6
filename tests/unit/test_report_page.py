from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hotstart.launcher.errors import UsageError
from hotstart.launcher.report_figures import STEPS, Bar, bars, timeline
from hotstart.launcher.report_page import render_page, slowest, write_page

pytestmark = pytest.mark.unit

_COUNTS = ("requests", "hits", "compiled", "waits", "errors", "unsigned", "bad_signature",
           "read_bytes", "written_bytes", "retries", "outages")  # fmt: skip


def worker(index: int, first_step: float | None, **cache: float) -> dict[str, Any]:
    phases = {
        "process_start": 0.5,
        "import_jax": 1.0,
        "cache_enabled": 1.0,
        "distributed": 2.0,
        "user_code": 2.5,
        "first_compile": 2.25,  # by an import, before user code's main
        "first_step": first_step,
    }
    return {
        "process_index": index,
        "host": "h",
        "phases": phases,
        "cache": {**dict.fromkeys(_COUNTS, 0), "retry_s": 0.0, "saved_s": 0.0, **cache},
        "programs": [
            {"module": "jit_f", "outcome": "compiled", "compile_s": 2.0 + index, "size_bytes": 10},
            {"module": "jit_g", "outcome": "hit", "compile_s": 9.0, "size_bytes": 20},
        ],
    }


def run_report(**more: Any) -> dict[str, Any]:
    attempts = [
        {
            "attempt": 1,
            "outcome": "failed",
            "reason": "process 1 on h was killed by SIGKILL",
            "first_worker": 1,
            "started_at": "2026-11-28T09:00:01.000+00:00",
            "waited_s": 0.0,
            "ended_at": "2026-11-28T09:00:11.000+00:00",
            "seconds_to_first_step": None,
            "workers": [worker(0, 5.0, compiled=2), worker(1, None, compiled=1)],
            "hosts": [],
        },
        {
            "attempt": 2,
            "outcome": None,
            "reason": None,
            "first_worker": None,
            "started_at": "2026-11-28T09:00:12.500+00:00",
            "waited_s": 0.5,
            "ended_at": None,
            "seconds_to_first_step": 3.0,
            "workers": [worker(0, 3.0, hits=2, retries=4, retry_s=1.5)],
            "hosts": [],
        },
    ]
    return {
        "schema": 1,
        "run": "lm-1",
        "state": "running",
        "exit_code": None,
        "reason": None,
        "launched_at": "2026-11-28T09:00:00.000+00:00",
        "cache": {"location": "gs://b/<cache>", "source": None, "mode": "read-write"},
        "cost": None,
        "attempts": attempts,
        **more,
    }


def test_bars_follow_each_other_and_end_with_the_attempt() -> None:
    mine = [bar for bar in bars(run_report()) if bar.process_index == 1]
    assert mine == [
        Bar("process_start", 1, 1, 1.0, 1.5),
        Bar("import_jax", 1, 1, 1.5, 2.0),
        Bar("cache_enabled", 1, 1, 2.0, 2.0),
        Bar("distributed", 1, 1, 2.0, 3.0),
        Bar("user_code", 1, 1, 3.0, 3.5),
        Bar("first_compile", 1, 1, 3.5, 11.0),
    ]


def test_bars_of_a_worker_that_has_stepped_go_on_as_steps() -> None:
    first = [bar for bar in bars(run_report()) if bar.attempt == 1 and bar.process_index == 0]
    assert first[-2:] == [Bar("first_step", 0, 1, 3.5, 6.0), Bar(STEPS, 0, 1, 6.0, 11.0)]
    second = [bar for bar in bars(run_report()) if bar.attempt == 2]
    assert second[-1] == Bar("first_step", 0, 2, 14.5, 15.0)


def test_timeline_marks_first_steps_and_who_failed_first() -> None:
    marks = {trace.name: trace for trace in timeline(run_report()).data if trace.type == "scatter"}
    assert list(marks["first step"].x) == [6.0, 15.0]
    assert list(marks["first to fail"].x) == [11.0]
    assert list(marks["first to fail"].y) == ["process 1"]


def test_slowest_programs_are_named_once_with_their_longest_time() -> None:
    assert [(p["module"], p["compile_s"]) for p in slowest(run_report())] == [
        ("jit_g", 9.0),
        ("jit_f", 3.0),
    ]


def test_page_needs_no_other_file_and_escapes_what_it_shows(tmp_path: Path) -> None:
    write_page(run_report(run="<lm>"), tmp_path / "run.html")
    page = (tmp_path / "run.html").read_text()
    assert "<title>hotstart: &lt;lm&gt;</title>" in page
    assert "gs://b/&lt;cache&gt;" in page
    assert not re.search(r"<(script|link|img)[^>]*(src|href)=", page)
    assert [path.name for path in tmp_path.iterdir()] == ["run.html"]


def test_page_of_a_run_without_attempts_says_what_it_is() -> None:
    page = render_page(run_report(attempts=[]))
    assert "<h1>lm-1</h1>" in page
    assert "Timeline" not in page


def test_page_shows_money_where_the_job_has_a_price() -> None:
    page = render_page(run_report(cost={"per_worker_hour": 3.0, "spent": 1234.5, "saved": 6.75}))
    assert "<b>6.75 / 1,234.50</b>" in page


def test_page_into_a_folder_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot write .*/no/run.html: No such file or directory"):
        write_page(run_report(attempts=[]), tmp_path / "no" / "run.html")


def test_page_without_plotly_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "plotly"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "plotly", None)
    with pytest.raises(UsageError, match=r"pip install 'hotstart\[report\]'"):
        write_page(run_report(), tmp_path / "run.html")


def test_report_module_does_not_import_plotly() -> None:
    code = "import sys, hotstart.launcher.report_page; sys.exit('plotly' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
