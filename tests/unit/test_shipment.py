"""What is sent to a cluster, and how the ends of jobs there are told."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from hotstart.conf.load import load_job
from hotstart.launcher.errors import ExitCode, UsageError
from hotstart.launcher.job_ending import ending_of
from hotstart.launcher.shipment import Submission, prepare
from hotstart.launcher.staging import stage_package
from hotstart.launcher.submit import _Log

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RUN_DIR", "CACHE__LOCATION", "SCRIPT", "WORKERS"):
        monkeypatch.delenv(f"HOTSTART_JOB__{name}", raising=False)
    return tmp_path


@pytest.fixture
def project(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose job file and script lie in folders beside each other."""
    (home / "project/jobs").mkdir(parents=True)
    (home / "project/src").mkdir()
    (home / "project/src/train.py").write_text("")
    (home / "project/jobs/job.yaml").write_text("script: ../src/train.py\n")
    monkeypatch.chdir(home / "project")
    return home / "project"


def _arguments(submission: Submission) -> list[str]:
    words = shlex.split(submission.entrypoint)
    return words[words.index("launch") + 1 :]


def test_prepare_script_beside_the_job_sends_the_job_folder(project: Path) -> None:
    (project / "src/job.yaml").write_text("name: tiny\nscript: train.py\n")
    submission = prepare("src/job.yaml", ["workers=2"], "gs://b/team/")
    assert submission.files is not None
    assert submission.files.folder == project / "src"
    assert [file.name for file in submission.files.files] == ["job.yaml", "train.py"]
    assert submission.run.startswith("tiny-")
    assert submission.submission_id == f"{submission.run}-s1"
    assert submission.run_dir == "gs://b/team/runs"
    assert _arguments(submission) == [
        "job.yaml",
        "workers=2",
        'script="train.py"',
        'run_dir="gs://b/team/runs"',
        'cache.location="gs://b/team/cache"',
    ]


def test_prepare_script_in_another_folder_sends_the_current_one_that_holds_both(
    project: Path,
) -> None:
    submission = prepare("jobs/job.yaml", [], "gs://b")
    assert submission.files is not None
    assert submission.files.folder == project
    assert _arguments(submission)[:2] == ["jobs/job.yaml", 'script="src/train.py"']


def test_prepare_resent_arguments_give_the_same_job_in_the_sent_folder(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = project / "src/my ${odd}: 'tr\u00e4in'.py"
    odd.write_text("")
    monkeypatch.setenv("HOTSTART_JOB__SCRIPT", "\"src/my \\\\${odd}: 'tr\u00e4in'.py\"")
    submission = prepare("jobs/job.yaml", ["cache.location=/mnt/shared"], "gs://b")
    job, *overrides = _arguments(submission)
    monkeypatch.delenv("HOTSTART_JOB__SCRIPT")
    config = load_job(job, overrides).config
    assert config.script == str(odd)
    assert config.cache.location == "/mnt/shared"
    assert config.run_dir == "gs://b/runs"


def test_prepare_environment_settings_and_run_name_go_to_the_driver(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOTSTART_JOB__WORKERS", "3")
    monkeypatch.setenv("HOTSTART_JOB__RUN_DIR", "gs://beaten/by-bucket")
    submission = prepare("jobs/job.yaml", [], "gs://b")
    words = shlex.split(submission.entrypoint)
    start = words.index("exec")
    assert words[start : words.index("python", start)] == [
        "exec",
        "env",
        "HOTSTART_JOB__RUN_DIR=gs://beaten/by-bucket",
        "HOTSTART_JOB__WORKERS=3",
        f"HOTSTART_RUN_NAME={submission.run}",
        f"HOTSTART_SUBMISSION={submission.submission_id}",
    ]
    assert submission.run_dir == "gs://b/runs"


@pytest.mark.parametrize("name", ["GOOGLE_APPLICATION_CREDENTIALS", "RAY_AUTH_TOKEN_PATH"])
def test_prepare_with_credentials_in_the_folder_that_is_sent_is_refused(
    project: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = project / "key.json"
    path.write_text("{}")
    monkeypatch.setenv(name, str(path))
    with pytest.raises(UsageError, match=f"^environment {name}: {path} lies in {project}, "):
        prepare("jobs/job.yaml", [], "gs://b")


@pytest.mark.parametrize("how", ["setting", "environment", "link"])
def test_prepare_with_a_signing_key_in_the_folder_that_is_sent_is_refused(
    project: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    overrides, path, source = [], project / "signing.key", "environment HOTSTART_SIGNING_KEY_FILE"
    if how != "link":
        path.write_text("")
    if how == "setting":
        overrides = ["cache.signing_key_file=signing.key"]
        source = "command line: cache.signing_key_file"
    else:
        if how == "link":
            (project / "secret").write_text("")
            path = project.parent / "link.key"
            path.symlink_to(project / "secret")
        monkeypatch.setenv("HOTSTART_SIGNING_KEY_FILE", str(path))
    with pytest.raises(UsageError) as caught:
        prepare("jobs/job.yaml", overrides, "gs://b")
    assert str(caught.value) == (
        f"{source}: {path} lies in {project}, which is sent to the cluster; move it out, and bring "
        "it to the hosts by a way of its own (docs/trust.md)"
    )


def test_prepare_tells_which_secrets_the_command_would_show(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOTSTART_JOB__ENV__HF_TOKEN", "s3cret")
    monkeypatch.setenv("HOTSTART_JOB__ENV__LEVEL", "3")
    submission = prepare("jobs/job.yaml", ["env.WANDB_API_KEY=s3cret", "env.A=b"], "gs://b")
    assert submission.exposed == (
        ("environment HOTSTART_JOB__ENV__HF_TOKEN", "HF_TOKEN"),
        ("command line", "WANDB_API_KEY"),
    )


def test_prepare_sends_no_signing_key_of_the_environment(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOTSTART_SIGNING_KEYS", "hotstart-key-1-secret")
    assert "secret" not in str(prepare("jobs/job.yaml", [], "gs://b"))


def test_prepare_script_outside_every_folder_is_refused(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project / "jobs")
    with pytest.raises(UsageError) as caught:
        prepare("job.yaml", [], "gs://b")
    assert str(caught.value) == (
        f"job.yaml:1: script: {project}/src/train.py lies outside {project}/jobs, the job file's "
        "folder, which is what is sent to the cluster; submit from a folder that holds both, "
        "or move one of them"
    )


def test_prepare_job_in_the_home_folder_is_refused(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "train.py").write_text("")
    (home / "job.yaml").write_text("script: train.py\n")
    monkeypatch.chdir(home)
    with pytest.raises(UsageError, match="put the job into a folder of its own"):
        prepare("job.yaml", [], "gs://b")


def test_prepare_bucket_that_is_a_directory_is_refused(project: Path) -> None:
    with pytest.raises(UsageError) as caught:
        prepare("jobs/job.yaml", [], "/mnt/shared")
    assert str(caught.value) == (
        "--bucket: /mnt/shared is not a bucket; give gs://bucket or gs://bucket/prefix"
    )


def test_stage_package_copies_sources_and_presets_only(home: Path) -> None:
    package = stage_package(home)
    files = {path.relative_to(package).as_posix() for path in package.rglob("*") if path.is_file()}
    assert {"__init__.py", "conf/local.yaml", "cache/py.typed", "launcher/cli.py"} <= files
    assert {Path(name).suffix for name in files} == {".py", ".yaml", ".typed"}
    assert (package / "launcher/cli.py").stat().st_size > 0


def test_log_read_again_from_its_start_is_handed_on_once() -> None:
    seen: list[str] = []
    log = _Log(seen.append)
    log.feed("one\n")
    log.feed("two\n")
    log.rewind()
    log.feed("one\ntw")
    log.feed("o\nthree\n")
    assert seen == ["one\n", "two\n", "three\n"]


_LAUNCHER = "the launcher on the cluster"


@pytest.mark.parametrize(
    ("status", "code", "message", "exit_code", "reason"),
    [
        ("SUCCEEDED", 0, None, ExitCode.DONE, "done"),
        ("STOPPED", None, None, ExitCode.INTERRUPTED, "the job was stopped"),
        ("FAILED", 3, "x", ExitCode.BUDGET_SPENT, f"{_LAUNCHER} ended with exit code 3"),
        ("FAILED", -9, "x", ExitCode.JOB_FAILED, f"{_LAUNCHER} was killed by SIGKILL"),
        ("FAILED", None, "runtime env\nlong", ExitCode.JOB_FAILED, "runtime env"),
        ("FAILED", None, None, ExitCode.JOB_FAILED, "Ray gives no reason"),
        (
            "FAILED",
            127,
            "x",
            ExitCode.JOB_FAILED,
            f"{_LAUNCHER} ended with exit code 127; the head's PATH has no `python` that runs",
        ),
    ],
)
def test_ending_of_a_job_has_an_exit_code_and_a_reason(
    status: str, code: int | None, message: str | None, exit_code: ExitCode, reason: str
) -> None:
    ending = ending_of(status, code, message)
    assert (ending.status, ending.exit_code, ending.reason) == (status, exit_code, reason)
