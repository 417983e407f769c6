"""A run that is sent again: what it remembers, and what may be changed on the way."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from hotstart.cache.signing import Keyring
from hotstart.conf.errors import ConfigError
from hotstart.launcher import resubmission
from hotstart.launcher.cli import main
from hotstart.launcher.driver_place import DriverPlace
from hotstart.launcher.record import RunRecord
from hotstart.launcher.recorded_job import read_job
from hotstart.launcher.resubmission import prepare_again
from hotstart.launcher.runs import open_runs
from hotstart.launcher.sent_files import find_files, write_archive
from hotstart.launcher.shipment import Options, Submission
from hotstart.launcher.submitted import NOTES_VARIABLE, keep_notes, moved

pytestmark = pytest.mark.unit

THEN = "/session/first/working_dir"
JOB = f"name: lm\nscript: {THEN}/src/train.py\nworking_dir: {THEN}/src\n"


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Of a run `steady` that was submitted with two requirements and a label for its driver."""
    for name in ("HOTSTART_SIGNING_KEY_FILE", "HOTSTART_SIGNING_KEYS", NOTES_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    record = RunRecord.create(
        open_runs(str(tmp_path / "runs"), Keyring()),
        "steady",
        JOB,
        {"folder": THEN, "job_file": f"{THEN}/job.yaml", "submission": "steady-s1"},
        5.0,
    )
    (tmp_path / "job" / "src").mkdir(parents=True)
    for name in ("job.yaml", "src/train.py", "src/other.py"):
        (tmp_path / "job" / name).write_text("")
    archive = tmp_path / "shipment.zip"
    place = {"resources": {}, "labels": {"pool": "drivers"}}
    notes = {"requirements": ["a==1", "b==1"], "driver": place, "hotstart": "cluster"}
    write_archive(find_files(tmp_path / "job", {}), notes, archive)
    record.store.create("steady/shipment", archive.read_bytes())
    return str(tmp_path / "runs")


def words(submission: Submission) -> list[str]:
    """What hotstart gets there."""
    said = shlex.split(submission.entrypoint)
    return said[said.index("restart") :]


def sent(submission: Submission, run_dir: str, epoch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the driver on the cluster does with it."""
    for name, value in submission.environ.items():
        monkeypatch.setenv(name, value)
    keep_notes(RunRecord(open_runs(run_dir, Keyring()), "steady"), epoch)
    for name in submission.environ:
        monkeypatch.delenv(name)


def options_of(submission: Submission) -> tuple[tuple[str, ...], dict[str, str], str]:
    return submission.requirements, submission.driver.labels, submission.hotstart


def test_run_sent_again_goes_by_the_options_of_its_submission(run_dir: str) -> None:
    again = prepare_again(run_dir, "steady", Options())
    assert options_of(again) == (("a==1", "b==1"), {"pool": "drivers"}, "cluster")
    assert again.environ == {}
    assert words(again) == ["restart", "steady", "--run-dir", run_dir]


def test_run_sent_a_third_time_goes_by_what_the_second_said_anew(
    run_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "r.txt").write_text("a==2\n")
    place = DriverPlace(labels={"pool": "spare"})
    options = Options(requirements=str(tmp_path / "r.txt"), hotstart="ship", driver=place)
    second = prepare_again(run_dir, "steady", options)
    assert options_of(second) == (("a==2",), {"pool": "spare"}, "ship")
    sent(second, run_dir, 2, monkeypatch)

    third = prepare_again(run_dir, "steady", Options())
    assert (options_of(third), third.environ) == (options_of(second), {})

    (tmp_path / "r.txt").write_text("a==3\n")
    fourth = prepare_again(run_dir, "steady", Options(requirements=str(tmp_path / "r.txt")))
    sent(fourth, run_dir, 11, monkeypatch)
    fifth = prepare_again(run_dir, "steady", Options())
    assert options_of(fifth) == options_of(fourth) == (("a==3",), {"pool": "spare"}, "ship")


def test_notes_that_are_damaged_are_passed_over(run_dir: str) -> None:
    record = RunRecord(open_runs(run_dir, Keyring()), "steady")
    record.create_fact("submitted/00000002", {"requirements": ["a==2"]})
    record.store.create("steady/submitted/00000003", b"{")
    assert prepare_again(run_dir, "steady", Options()).requirements == ("a==2",)


def test_run_sent_again_with_settings_takes_them_along_as_restart_does(run_dir: str) -> None:
    settings = ("timeouts.stop_s=30", "args=[--steps, 5]", 'env.NOTE="a b"', "env.API_TOKEN=x")
    again = prepare_again(run_dir, "steady", Options(), settings)
    assert words(again) == ["restart", "steady", *settings, "--run-dir", run_dir]
    assert again.stop_wait_s == 40
    assert again.exposed == (("command line", "API_TOKEN"),)


@pytest.mark.parametrize(
    ("setting", "carried"),
    [
        ("script=src/other.py", f'script="{THEN}/src/other.py"'),
        ("script=./src/../src/other.py", f'script="{THEN}/src/other.py"'),
        ("working_dir=.", f'working_dir="{THEN}"'),
        ("script=/opt/train.py", "script=/opt/train.py"),
        ("cache.node_dir=/tmp/node", "cache.node_dir=/tmp/node"),
    ],
)
def test_path_of_what_was_sent_is_found_wherever_it_is_unpacked(
    run_dir: str, setting: str, carried: str
) -> None:
    again = prepare_again(run_dir, "steady", Options(), (setting,))
    assert words(again)[2] == carried
    config = read_job(run_dir, "steady", (carried,)).config
    there, _ = moved(config, {"folder": THEN}, "/session/second")
    assert THEN not in f"{there.script} {there.working_dir}"


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("workes=2", "command line: unknown key workes; did you mean workers?"),
        ("workers=none", "command line: workers: expected"),
        ("name=x", "command line: name: it is in the run's name"),
        (
            "script=src/gone.py",
            "command line: script: src/gone.py is not among what the run was sent as; submit the "
            "job anew",
        ),
        (
            "cache.node_dir=tmp",
            "command line: cache.node_dir: give an absolute path of the cluster's hosts, or a "
            "bucket",
        ),
    ],
)
def test_setting_that_can_not_be_is_refused_before_anything_is_sent(
    run_dir: str, setting: str, problem: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        prepare_again(run_dir, "steady", Options(), (setting,))
    assert str(caught.value).startswith(problem)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the command line asks `prepare_again` for; it gets no further."""
    found: list[Any] = []

    def prepare(*arguments: Any) -> Any:
        found.append(arguments)
        raise ConfigError("enough")

    monkeypatch.setattr(resubmission, "prepare_again", prepare)
    return found


def test_submit_restart_takes_settings_and_variables(asked: list[Any]) -> None:
    ended = CliRunner().invoke(
        main,
        ["submit", "--restart", "steady", "a.b=c", "d=e", "--env", "K=V", "--bucket", "gs://b"],
    )
    assert (ended.exit_code, ended.stderr) == (2, "hotstart: enough\n")
    expected = ("gs://b/runs", "steady", Options(), ("a.b=c", "d=e", 'env.K="V"'))
    assert asked == [expected]
