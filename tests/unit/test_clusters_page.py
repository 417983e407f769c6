"""The job files and commands of docs/clusters.md do what the page says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from hotstart.conf.load import load_job
from hotstart.launcher.cli import main

pytestmark = pytest.mark.unit

PAGE = (Path(__file__).parents[2] / "docs" / "clusters.md").read_text()
JOBS = re.findall(r"^```yaml\n(.+?)^```$", PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = [
    line
    for block in re.findall(r"^```bash\n(.+?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("train.py").touch()


@pytest.mark.parametrize("text", JOBS, ids=range(len(JOBS)))
def test_job_of_the_page_loads_and_shows_its_placement(text: str) -> None:
    Path("job.yaml").write_text(text)
    config = load_job("job.yaml", (), {}).config
    shown = CliRunner().invoke(main, ["launch", "job.yaml", "--dry-run"])
    assert shown.exit_code == 0, shown.output
    placement = f"# placement ({config.placement})"
    if config.workers_min is not None:
        placement += f", {config.workers_min} to {config.workers} workers: as many as there is "
        placement += "room for at each attempt; here the most"
    assert placement in shown.output.splitlines()
    for name, selector in config.labels.items():
        assert f"#   each host labeled {name}={selector}" in shown.output.splitlines()


def test_page_has_jobs_and_commands() -> None:
    assert len(JOBS) == 4
    assert len(COMMANDS) == 2


@pytest.mark.parametrize("command", COMMANDS)
def test_command_of_the_page_works(command: str) -> None:
    Path("job.yaml").write_text("script: train.py\n")
    program, *arguments = shlex.split(command)
    assert program == "hotstart"
    shown = CliRunner().invoke(main, arguments)
    assert shown.exit_code == 0, shown.output
    assert "<workers of the attempt, 2 to 8>" in shown.output
