"""Secrets by reference: what a job may say, what a worker gets, and what nobody sees."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from hotstart.conf.errors import ConfigError
from hotstart.conf.load import job_to_yaml, load_job
from hotstart.launcher.dry_run import plan_as_json
from hotstart.launcher.environ import compose_environ
from hotstart.launcher.errors import SecretUnavailable
from hotstart.launcher.plan import AttemptPlan, Program, WorkerPlan

pytestmark = pytest.mark.unit

PROGRAM = Program("train.py", None, (), (), "/")
PLAN = AttemptPlan("run", 1, 1, "host:1", True, 300.0, PROGRAM, None)


def worker_of(references: dict[str, str], host: dict[str, str]) -> dict[str, str]:
    plan = dataclasses.replace(PLAN, secret_environ=references)
    return compose_environ(WorkerPlan(0, 0, 0.0, plan), host)


@pytest.fixture
def job(tmp_path: Path) -> Path:
    (tmp_path / "train.py").write_text("")
    return tmp_path / "job.yaml"


def test_secret_of_a_file_and_of_the_host_reach_the_worker(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("one two\n\n")
    environ = worker_of(
        {"TOKEN": f"file:{tmp_path}/token", "OTHER": "env:HOST_TOKEN"}, {"HOST_TOKEN": "three"}
    )
    assert (environ["TOKEN"], environ["OTHER"]) == ("one two\n", "three")


def test_secret_in_a_plan_on_its_way_is_the_reference(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("s3cret")
    plan = dataclasses.replace(PLAN, secret_environ={"TOKEN": f"file:{tmp_path}/token"})
    sent = json.dumps(WorkerPlan(0, 0, 0.0, plan).to_json())
    assert "s3cret" not in sent
    assert WorkerPlan.from_json(json.loads(sent)).attempt == plan


@pytest.mark.parametrize(
    ("reference", "problem"),
    [
        (
            "file:{folder}/none",
            "No such file or directory; bring the file to each host that runs workers",
        ),
        ("file:{folder}", "Is a directory; bring the file to each host that runs workers"),
        ("file:{folder}/zero", "not text of at most 100000 bytes"),
        ("file:{folder}/long", "not text of at most 100000 bytes"),
        ("file:{folder}/latin", "not UTF-8 text"),
        ("env:NONE", "this host's environment lacks it; set it where Ray is started there"),
    ],
)
def test_secret_that_a_host_lacks_is_named_and_not_shown(
    tmp_path: Path, reference: str, problem: str
) -> None:
    (tmp_path / "zero").write_bytes(b"s3cret\0")
    (tmp_path / "long").write_bytes(b"s3cret" * 20_000)
    (tmp_path / "latin").write_bytes(b"s3cret\xff")
    reference = reference.format(folder=tmp_path)
    with pytest.raises(SecretUnavailable) as caught:
        worker_of({"TOKEN": reference}, {})
    assert str(caught.value) == f"secret_env.TOKEN: {reference}: {problem}"


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (
            "secret_env: {TOKEN: s3cret}",
            "2: secret_env.TOKEN: expected file:/absolute/path or env:VARIABLE, of each host; a "
            "secret itself would be kept in the record",
        ),
        (
            "secret_env: {TOKEN: file:relative}",
            "2: secret_env.TOKEN: expected file:/absolute/path or env:VARIABLE, of each host; a "
            "secret itself would be kept in the record",
        ),
        (
            "env: {TOKEN: x}\nsecret_env: {TOKEN: env:X}",
            "3: secret_env.TOKEN: env has TOKEN too; keep one of them",
        ),
        (
            "secret_env: {HOTSTART_SIGNING_KEYS: env:X}",
            "2: secret_env.HOTSTART_SIGNING_KEYS: a signing key is a host's own, and no job brings "
            "it; set the variable where Ray is started on each host, or cache.signing_key_file to "
            "a path there",
        ),
    ],
)
def test_secret_env_that_can_not_be_is_refused(job: Path, line: str, problem: str) -> None:
    job.write_text(f"script: train.py\n{line}\n")
    with pytest.raises(ConfigError) as caught:
        load_job(job, environ={})
    assert str(caught.value) == f"{job}:{problem}"
    assert "s3cret" not in str(caught.value)


def test_secret_env_stays_a_reference_in_record_and_dry_run(job: Path) -> None:
    job.write_text("script: train.py\nsecret_env: {TOKEN: env:HOME}\n")
    loaded = load_job(job, environ={})
    assert "TOKEN: env:HOME" in job_to_yaml(loaded.config)
    assert plan_as_json(loaded)["environ"]["TOKEN"] == "<env:HOME, of each host>"
