"""What docs/preemption.md shows is taken as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hotstart.conf.load import load_job
from hotstart.launcher import context

pytestmark = pytest.mark.unit

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "preemption.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_job_file_of_the_page_is_accepted(tmp_path: Path) -> None:
    (block,) = blocks("yaml")
    (tmp_path / "job.yaml").write_text(block)
    (tmp_path / "train.py").touch()
    restarts = load_job(tmp_path / "job.yaml", environ={}).config.restarts
    assert (restarts.exit_codes, restarts.refill_after_s) == ([75], 3600.0)


def test_program_of_the_page_leaves_when_told(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    monkeypatch.setattr(context, "_reporter", steps.append)
    monkeypatch.setattr(context, "preempted", lambda: len(steps) == 3)
    (block,) = blocks("python")
    with pytest.raises(SystemExit) as raised:
        exec(block, {})
    assert (raised.value.code, steps) == (0, [1, 2, 3])
