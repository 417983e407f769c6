"""The commands of docs/submit.md, as far as they go without a cluster."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from hotstart.conf.load import load_job
from hotstart.launcher.cli import main

pytestmark = pytest.mark.emulator

PAGE = (Path(__file__).parents[2] / "docs/submit.md").read_text()
COMMANDS = re.findall(r"^hotstart submit .*$", PAGE, re.MULTILINE)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "job").mkdir()
    (tmp_path / "job/train.py").write_text("")
    (tmp_path / "job/job.yaml").write_text("script: train.py\n")
    (tmp_path / "job/requirements.txt").write_text("einops\n")
    monkeypatch.chdir(tmp_path / "job")
    return tmp_path / "job"


def test_submit_docs_have_commands() -> None:
    assert len(COMMANDS) == 11


@pytest.mark.parametrize("command", COMMANDS)
def test_submit_docs_command_does_what_it_says(bucket: str, folder: Path, command: str) -> None:
    words = shlex.split(command.replace("gs://BUCKET", bucket))[1:]
    ended = CliRunner().invoke(main, [*words, "--dry-run"])
    if "--restart" in words:  # of a run that was never submitted
        assert ended.exit_code == 2
        assert ended.stderr.startswith(f"hotstart: no run 'nightly-42' in {bucket}/runs; ")
        return
    assert ended.exit_code == 0, ended.output
    assert f"sends        {folder} (3 files, " in ended.stdout


def test_submit_docs_example_of_secrets_is_a_job(folder: Path) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    (folder / "job.yaml").write_text("script: train.py\n" + block)
    config = load_job(folder / "job.yaml", environ={}).config
    assert config.secret_env == {
        "WANDB_API_KEY": "file:/etc/secrets/wandb",
        "HF_TOKEN": "env:CLUSTER_HF_TOKEN",
    }


def test_submit_docs_example_of_ignoring_brings_back_one_file(folder: Path) -> None:
    (lines,) = re.findall(r"```\n(!data/.*?)```", PAGE, re.DOTALL)
    (folder / "data").mkdir()
    for name in ("vocab.txt", "train.bin"):
        (folder / "data" / name).write_text("x")
    (folder / ".gitignore").write_text("data/\n")
    (folder / ".hotstartignore").write_text(lines)
    shown = CliRunner().invoke(
        main, ["submit", "job.yaml", "--bucket", "gs://b", "--dry-run", "--json"]
    )
    assert '"data/vocab.txt": 1' in shown.stdout
    assert "data/train.bin" not in shown.stdout.partition("kept_back")[0]
