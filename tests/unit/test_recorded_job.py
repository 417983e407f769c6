"""The job of a recorded run: read with this host's keys, or with those that the job names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hotstart.cache.errors import SigningKeyError
from hotstart.cache.keyring import create_key_file, load_keyring, read_key_file
from hotstart.cache.signing import Keyring
from hotstart.launcher.errors import RecordDamaged
from hotstart.launcher.record import RunRecord
from hotstart.launcher.recorded_job import read_job
from hotstart.launcher.runs import open_runs

pytestmark = pytest.mark.unit

Make = Callable[..., Path]


@pytest.fixture
def key_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    for name in ("HOTSTART_SIGNING_KEY_FILE", "HOTSTART_SIGNING_KEYS"):
        monkeypatch.delenv(name, raising=False)
    path = str(tmp_path / "signing.key")
    create_key_file(path)
    return path


@pytest.fixture
def launched(tmp_path: Path) -> Callable[[Keyring, str], Path]:
    """Records a run `lm-1` as its driver would, signed with these keys; gives its folder."""

    def launch(keyring: Keyring, job: str) -> Path:
        store = open_runs(str(tmp_path / "runs"), keyring)
        RunRecord.create(store, "lm-1", f"name: lm\nscript: /t.py\n{job}", {"folder": "/job"}, 5.0)
        return tmp_path / "runs" / "lm-1"

    return launch


def test_read_job_with_the_hosts_key_takes_a_signed_job_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key_file: str, launched: Make
) -> None:
    monkeypatch.setenv("HOTSTART_SIGNING_KEY_FILE", key_file)
    run = launched(load_keyring(), "")
    job = read_job(str(tmp_path / "runs"), "latest")
    record, config, keyring = job.record, job.config, job.keyring
    assert (record.name, config.script, keyring) == ("lm-1", "/t.py", load_keyring())

    (run / "job.yaml").write_text("name: lm\nscript: /evil.py\n")
    with pytest.raises(RecordDamaged, match="job.yaml is not signed with a key of this host"):
        read_job(str(tmp_path / "runs"), "lm-1")


def test_read_job_without_a_key_takes_the_file_that_the_job_names_and_checks_with_it(
    tmp_path: Path, key_file: str, launched: Make
) -> None:
    setting = f"cache: {{signing_key_file: {key_file}}}\n"
    run = launched(read_key_file(key_file), setting)
    assert read_job(str(tmp_path / "runs"), "lm-1").keyring == read_key_file(key_file)

    (run / "job.yaml").write_text(f"name: lm\nscript: /evil.py\n{setting}")
    with pytest.raises(RecordDamaged, match="is not signed with a key of this host"):
        read_job(str(tmp_path / "runs"), "lm-1")


def test_read_job_whose_key_file_is_not_here_is_an_error(
    tmp_path: Path, key_file: str, launched: Make
) -> None:
    launched(Keyring(), "cache: {signing_key_file: /not/there}\n")

    with pytest.raises(SigningKeyError, match="/not/there cannot be read"):
        read_job(str(tmp_path / "runs"), "lm-1")


def test_read_job_whose_launch_is_not_signed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key_file: str, launched: Make
) -> None:
    """It names the folder that the program runs in."""
    run = launched(read_key_file(key_file), "")
    (run / "created").write_text('{"launched_from": {"folder": "/evil"}}')
    monkeypatch.setenv("HOTSTART_SIGNING_KEY_FILE", key_file)

    with pytest.raises(RecordDamaged, match="created can't be read, or is not signed"):
        read_job(str(tmp_path / "runs"), "lm-1")


def test_read_job_without_any_key_reads_what_is_unsigned(
    tmp_path: Path, key_file: str, launched: Make
) -> None:
    launched(Keyring(), "")
    assert read_job(str(tmp_path / "runs"), "lm-1").keyring == Keyring()
