"""The demo as `make demo` runs it: cold, killed, warm, done."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.compile_counter import read_counts

pytestmark = [pytest.mark.e2e, pytest.mark.internals]

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.timeout(280)
def test_demo_second_attempt_compiles_nothing(tmp_path: Path) -> None:
    counted = ROOT / "tests" / "support" / "counted_train.py"
    environ = os.environ | {"HOTSTART_HOME": str(tmp_path), "HOME": str(tmp_path)}
    ended = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "demo.py"), f"script={counted}"],
        env=environ,
        capture_output=True,
        text=True,
        timeout=270,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr

    before, _, after = ended.stdout.partition("attempt 2 started")
    assert "demo: kill -9" in before
    counts = read_counts(after)
    assert [len(count.compiled) for count in counts] == [0, 0]
    assert [len(count.requested) > 0 for count in counts] == [True, True]

    run = re.search(r"hotstart run (\S+) in", ended.stdout)
    assert run
    reported = subprocess.run(
        [str(Path(sys.executable).with_name("hotstart")), "report", "latest", "--json"],
        env=environ,
        capture_output=True,
        text=True,
        check=True,
    )
    report = json.loads(reported.stdout)
    assert report["run"] == run.group(1)
    assert [a["outcome"] for a in report["attempts"]] == ["failed", "done"]
    assert "process 1" in report["attempts"][0]["reason"]
    assert [w["cache"]["compiled"] for w in report["attempts"][1]["workers"]] == [0, 0]
    assert [w["cache"]["compiled_before_enable"] for w in report["attempts"][1]["workers"]] == [
        0,
        0,
    ]
    steps = re.findall(r"step (\d+) (loss \S+)", ended.stdout)
    repeated = dict(re.findall(r"step (\d+) (loss \S+)", after))
    first = dict(re.findall(r"step (\d+) (loss \S+)", before))
    assert {n: loss for n, loss in first.items() if n in repeated} == {
        n: loss for n, loss in repeated.items() if n in first
    }
    assert steps[-1][0] == "30"
