"""`hotstart submit` and plain `ray job submit` against a real head."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hotstart.cache.store import open_store
from hotstart.launcher.record import RunRecord
from hotstart.launcher.runs import list_runs, resolve_run
from tests.support.gcs_emulator import GcsEmulator, free_port
from tests.support.ray_head import RayHead, ray_head

pytestmark = pytest.mark.e2e

_BIN = Path(sys.executable).parent
_SCRIPT = """\
import os, sys
import hotstart.cache
print("imported from", hotstart.cache.__file__, flush=True)
print("args", *sys.argv[1:], os.environ.get("GREETING"), flush=True)
if "--fail" in sys.argv:
    sys.exit(7)
if "--wait" in sys.argv:
    import time
    print("waiting", flush=True)
    time.sleep(300)
import jax, jax.numpy as jnp
print("result", jax.process_count(), float(jax.jit(lambda x: x @ x + 1)(jnp.ones((4, 4))).sum()))
"""
_JOB = "name: tiny\nscript: train.py\nrestarts: {failures: 0}\n"


@pytest.fixture(scope="module")
def head(emulator: GcsEmulator) -> Iterator[RayHead]:
    """One head for all tests here, with the emulator in its environment."""
    with ray_head({"STORAGE_EMULATOR_HOST": emulator.url}) as running:
        yield running


@pytest.fixture
def job(tmp_path: Path) -> Path:
    folder = tmp_path / "job"
    folder.mkdir()
    (folder / "train.py").write_text(_SCRIPT)
    (folder / "job.yaml").write_text(_JOB)
    return folder / "job.yaml"


@pytest.fixture
def bucket_url(emulator: GcsEmulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A bucket of this test's own, straight on the emulator that the head uses."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", emulator.url)
    return emulator.create_bucket(f"submit-{tmp_path.parent.name}-{tmp_path.name}"[:60].lower())


def _environ(**extra: str) -> dict[str, str]:
    drop = ("RAY_", "HOTSTART_", "JAX_", "STORAGE_")
    return {k: v for k, v in os.environ.items() if not k.startswith(drop)} | extra


def _submit(
    *arguments: object, cwd: Path | None = None, **environ: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [_BIN / "hotstart", "submit", *map(str, arguments)],
        env=_environ(**environ),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=180,
    )


def _only_run(bucket: str) -> RunRecord:
    return resolve_run(open_store(f"{bucket}/runs"), "latest")


def _wait_for(condition: Callable[[], bool], what: str, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"no {what} after {timeout_s} s"
        time.sleep(0.05)


def test_submit_two_workers_runs_shipped_hotstart_and_fills_the_bucket(
    head: RayHead, job: Path, bucket_url: str
) -> None:
    done = _submit(
        job,
        "workers=2",
        'args=["a b", "--x=$HOME"]',
        *("--bucket", f"{bucket_url}/team", "--address", head.url),
        HOTSTART_JOB__ENV__GREETING="hello there",
        **head.environ,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    for index in (0, 1):
        assert f"[{index}] args a b --x=$HOME hello there" in lines
        assert f"[{index}] result 2 80.0" in lines
        (origin,) = [line for line in lines if line.startswith(f"[{index}] imported from")]
        assert "/py_modules_files/" in origin
    (run,) = list_runs(open_store(f"{bucket_url}/team/runs"))
    assert (run.state, run.attempts) == ("done", 1)
    created = _only_run(f"{bucket_url}/team").read().created
    assert created["launched_from"]["submission"] == f"{run.name}-s1"
    assert done.stderr.splitlines() == [
        f"hotstart submitting {job.parent} as {run.name}-s1 to {head.url}",
        f"hotstart {run.name}-s1 SUCCEEDED: done",
        f"hotstart report: hotstart report {run.name} --run-dir {bucket_url}/team/runs",
    ]
    entries = [stat.name for stat in open_store(f"{bucket_url}/team/cache").list("")]
    assert any("lambda" in name for name in entries), entries


def test_submit_failing_job_ends_with_the_code_of_hotstart(
    head: RayHead, job: Path, bucket_url: str
) -> None:
    ended = _submit(
        job, "args=[--fail]", "--bucket", bucket_url, "--json", RAY_ADDRESS=head.url, **head.environ
    )
    assert ended.returncode == 1, ended.stdout + ended.stderr
    record = _only_run(bucket_url)
    assert json.loads(ended.stdout) == {
        "run": record.name,
        "submission_id": f"{record.name}-s1",
        "address": head.url,
        "run_dir": f"{bucket_url}/runs",
        "status": "FAILED",
        "exit_code": 1,
        "reason": "the launcher on the cluster ended with exit code 1",
    }
    assert "[0] args --fail None" in ended.stderr.splitlines()
    end = record.end()
    assert end is not None
    assert (end.state, end.exit_code) == ("failed", 1)


def test_submit_interrupted_while_following_leaves_the_job_until_it_is_stopped(
    head: RayHead, job: Path, bucket_url: str, tmp_path: Path
) -> None:
    log = tmp_path / "submit.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                *(_BIN / "hotstart", "submit", job, "args=[--wait]", "timeouts.stop_s=0.5"),
                *("--bucket", bucket_url, "--address", head.url),
            ],
            env=_environ(**head.environ),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        _wait_for(lambda: "[0] waiting\n" in log.read_text(), "worker output")
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
    finally:
        with contextlib.suppress(OSError):
            process.kill()
        process.wait()
    record = _only_run(bucket_url)
    job_id = f"--address {head.url} {record.name}-s1"
    last = log.read_text().splitlines()[-4:]
    assert last == [
        "hotstart stopped following; the job goes on",
        f"hotstart follow it with: ray job logs --follow {job_id}",
        f"hotstart stop it with: ray job stop {job_id}",
        f"hotstart report: hotstart report {record.name} --run-dir {bucket_url}/runs",
    ]
    assert record.end() is None

    stop = last[2].partition("with: ")[2].split()
    stopped = subprocess.run(
        [_BIN / stop[0], *stop[1:]],
        env=_environ(**head.environ),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    end = record.end()
    assert end is not None
    assert (end.state, end.exit_code) == ("interrupted", 130)


def test_ray_job_submit_of_hotstart_launch_runs_the_job(
    head: RayHead, job: Path, bucket_url: str
) -> None:
    done = subprocess.run(
        [
            *(_BIN / "ray", "job", "submit", "--address", head.url, "--working-dir", "."),
            *("--", "hotstart", "launch", "job.yaml"),
            *(f"cache.location={bucket_url}/c", f"run_dir={bucket_url}/runs"),
        ],
        env=_environ(**head.environ),
        cwd=job.parent,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[0] result 1 80.0" in done.stdout.splitlines()
    entries = [stat.name for stat in open_store(f"{bucket_url}/c").list("")]
    assert any("lambda" in name for name in entries), entries


def test_submit_without_the_token_is_refused_in_one_line(head: RayHead, job: Path) -> None:
    refused = _submit(
        *(job, "--bucket", "gs://b", "--address", head.url),
        RAY_AUTH_MODE="token",
        RAY_AUTH_TOKEN="another",
    )
    assert refused.returncode == 2
    assert refused.stdout == ""
    assert refused.stderr == (
        f"hotstart: Ray at {head.url} refuses this client: its token is missing or another; set "
        "RAY_AUTH_MODE=token and the cluster's token in RAY_AUTH_TOKEN, or in a file that "
        "RAY_AUTH_TOKEN_PATH names\n"
    )


def test_submit_to_nobody_ends_with_2_in_one_line(job: Path) -> None:
    address = f"http://127.0.0.1:{free_port()}"
    failed = _submit(job, "--bucket", "gs://b", RAY_API_SERVER_ADDRESS=address)
    assert failed.returncode == 2
    assert failed.stdout == ""
    assert failed.stderr == (
        f"hotstart: no Ray cluster answers at {address}: Connection refused; check --address, "
        "RAY_API_SERVER_ADDRESS and RAY_ADDRESS (the dashboard's URL, by default port 8265)\n"
    )


def test_submit_bad_job_ends_with_2_before_the_cluster_is_asked(job: Path) -> None:
    job.write_text("script: train.py\nworkes: 2\n")
    address = f"http://127.0.0.1:{free_port()}"
    failed = _submit(job, "--bucket", "gs://b", "--address", address)
    assert failed.returncode == 2
    assert failed.stdout == ""
    assert failed.stderr.startswith(f"hotstart: {job}:2: unknown key workes; did you mean workers?")
    assert failed.stderr.count("\n") == 1
