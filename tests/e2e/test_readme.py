"""Every command and snippet of README.md, as it stands there.

Only what a reader has to replace is replaced (BUCKET, HEAD, gs://bucket/...), and the example is
made small through the environment. `make demo` and `make test` are run by test_demo and by CI.
"""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hotstart.conf.load import load_job
from tests.support.gcs_emulator import GcsEmulator
from tests.support.launch import HOTSTART, Site, site
from tests.support.ray_head import ray_head

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
SMALL = {
    "RAY_ADDRESS": "local",
    "HOTSTART_JOB__ARGS": '[--steps, "60", --layers, "1", --width, "16", --checkpoint-every, "3"]',
}
RUN_ELSEWHERE = {"make demo", "make test", "pip install '.[examples]'"}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> list[str]:
    lines = "".join(blocks("bash")).splitlines()
    return [line.partition("#")[0].strip() for line in lines if line.strip()]


def arguments(command: str) -> list[str]:
    words = shlex.split(command)
    assert words[0] == "hotstart"
    return words[1:]


@pytest.fixture
def user() -> Iterator[Site]:
    with site() as made:
        yield made


def test_readme_commands_are_the_ones_that_run_here() -> None:
    assert set(commands()) == RUN_ELSEWHERE | {
        "hotstart launch examples/bytelm/job.yaml",
        "hotstart launch examples/bytelm/job.yaml workers=1 --dry-run",
        "hotstart runs",
        "hotstart restart latest",
        "hotstart report latest",
        "hotstart report latest --html run.html",
        "hotstart submit examples/bytelm/job.yaml --bucket gs://BUCKET --address http://HEAD:8265",
    }


def test_readme_launch_kill_restart_report(user: Site) -> None:
    dry, first, again = (
        arguments(c) for c in ("hotstart launch examples/bytelm/job.yaml workers=1 --dry-run",
                               "hotstart launch examples/bytelm/job.yaml",
                               "hotstart restart latest")
    )  # fmt: skip
    assert user.run(*dry, folder=ROOT, env=SMALL).exit_code == 0
    launched = user.start(*first, folder=ROOT, env=SMALL)
    launched.wait_for(r"\] step 7 loss", timeout_s=150)
    launched.signal(signal.SIGKILL)
    launched.wait()
    user.assert_clean(within_s=15)

    listed = user.run("runs", folder=ROOT)
    assert re.search(r"bytelm-\S+ +lost +1 ", listed.stdout), listed.shown
    restarted = user.run(*again, env={"RAY_ADDRESS": "local"})
    assert restarted.exit_code == 0, restarted.shown
    assert re.search(r"\] step 60 loss", restarted.stdout)
    assert not re.search(r"\] step 1 loss", restarted.stdout)
    written = user.run(*arguments("hotstart report latest --html run.html"))
    assert (user.folder / "run.html").exists(), written.shown
    reported = user.run("report", "latest")
    assert "attempt 1 cold" in reported.stdout and "attempt 2 warm" in reported.stdout


def test_readme_submit_runs_on_a_cluster(
    emulator: GcsEmulator, user: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", emulator.url)
    bucket = emulator.create_bucket("readme-submit")
    (command,) = (c for c in commands() if c.startswith("hotstart submit"))
    command = command.replace("gs://BUCKET", bucket)
    small = {"HOTSTART_JOB__ARGS": SMALL["HOTSTART_JOB__ARGS"].replace("60", "4")}
    # Checkpoints stay local: the emulator is enough for the cache and the record.
    with ray_head({"STORAGE_EMULATOR_HOST": emulator.url}) as head:
        command = command.replace("http://HEAD:8265", head.url)
        environ = {
            **small,
            **head.environ,
            "STORAGE_EMULATOR_HOST": emulator.url,
            "HOTSTART_JOB__ENV__HOTSTART_CHECKPOINT_DIR": str(user.root / "checkpoints"),
        }
        ended = user.run(*arguments(command), folder=ROOT, env=environ, timeout_s=150)
    assert ended.exit_code == 0, ended.shown
    assert "step 4 loss" in ended.stdout


def test_readme_job_file_is_accepted(tmp_path: Path) -> None:
    (block,) = blocks("yaml")
    (tmp_path / "job.yaml").write_text(block)
    (tmp_path / "train.py").touch()
    job = load_job(tmp_path / "job.yaml", environ={})
    assert job.config.workers == 4
    assert job.config.cache.location == "gs://bucket/cache"


def test_readme_snippets_run(tmp_path: Path) -> None:
    snippets = [b.replace("gs://bucket/prefix", str(tmp_path / "cache")) for b in blocks("python")]
    assert len(snippets) == 2
    ended = subprocess.run(
        [sys.executable, "-c", "n = 1\n" + "\n".join(snippets)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 0, ended.stderr


def test_help_of_every_command_has_examples(user: Site) -> None:
    for command in ("launch", "restart", "submit", "runs", "report", "status", "logs", "stop"):
        helped = user.run(command, "--help")
        assert helped.exit_code == 0
        assert f"hotstart {command}" in helped.stdout.partition("Examples:")[2], helped.shown
    assert HOTSTART.exists()
