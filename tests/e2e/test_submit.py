"""`hotstart submit` and plain `ray job submit` against a real head."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from hotstart.cache.store import open_store
from hotstart.launcher.runs import list_runs
from tests.support.gcs_emulator import free_port
from tests.support.gcs_proxy import Fault, GcsProxy
from tests.support.ray_head import RayHead
from tests.support.submits import (
    BIN,
    environ,
    following,
    only_run,
    processes_with,
    submit,
    wait_for,
)

pytestmark = pytest.mark.e2e

_SCRIPT = """\
import os, sys
import hotstart.cache
print("imported from", hotstart.cache.__file__, flush=True)
print("args", *sys.argv[1:], os.environ.get("GREETING"), flush=True)
if "--fail" in sys.argv:
    sys.exit(7)
import jax, jax.numpy as jnp
if "--wait" in sys.argv:
    import time
    jax.jit(lambda x: x + 1)(jnp.ones(4)).block_until_ready()
    print("waiting", flush=True)
    time.sleep(300)
print("result", jax.process_count(), float(jax.jit(lambda x: x @ x + 1)(jnp.ones((4, 4))).sum()))
"""
_JOB = "name: tiny\nscript: train.py\nrestarts: {failures: 0}\n"


@pytest.fixture
def job(tmp_path: Path) -> Path:
    folder = tmp_path / "job"
    folder.mkdir()
    (folder / "train.py").write_text(_SCRIPT)
    (folder / "job.yaml").write_text(_JOB)
    return folder / "job.yaml"


def test_submit_two_workers_runs_shipped_hotstart_and_fills_the_bucket(
    head: RayHead, job: Path, bucket_url: str
) -> None:
    done = submit(
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
    created = only_run(f"{bucket_url}/team").read().created
    assert created["launched_from"]["submission"] == f"{run.name}-s1"
    size = sum(path.stat().st_size for path in job.parent.iterdir())
    assert done.stderr.splitlines() == [
        f"hotstart submitting {job.parent} (2 files, {size} bytes) as {run.name}-s1 to {head.url}",
        f"hotstart {run.name}-s1 SUCCEEDED: done",
        f"hotstart report: hotstart report {run.name} --run-dir {bucket_url}/team/runs",
    ]
    entries = [stat.name for stat in open_store(f"{bucket_url}/team/cache").list("")]
    assert any("lambda" in name for name in entries), entries


def test_submit_failing_job_ends_with_the_code_of_hotstart(
    head: RayHead, job: Path, bucket_url: str
) -> None:
    ended = submit(
        job, "args=[--fail]", "--bucket", bucket_url, "--json", RAY_ADDRESS=head.url, **head.environ
    )
    assert ended.returncode == 1, ended.stdout + ended.stderr
    record = only_run(bucket_url)
    assert json.loads(ended.stdout) == {
        "run": record.name,
        "submission_id": f"{record.name}-s1",
        "address": head.url,
        "run_dir": f"{bucket_url}/runs",
        "status": "FAILED",
        "exit_code": 1,
        "reason": "the launcher on the cluster ended with exit code 1",
        "attached": False,
        "resume": (
            f"hotstart submit --restart {record.name} --run-dir {bucket_url}/runs --address "
            f"{head.url}"
        ),
    }
    assert "[0] args --fail None" in ended.stderr.splitlines()
    end = record.end()
    assert end is not None
    assert (end.state, end.exit_code) == ("failed", 1)


def test_submit_interrupted_leaves_the_job_until_it_is_stopped_which_flushes(
    head: RayHead, job: Path, bucket_url: str, proxy: GcsProxy, tmp_path: Path
) -> None:
    proxy.inject(Fault("status", method="POST", object_contains="entries/", times=4))
    arguments = (job, "args=[--wait]", "timeouts.stop_s=8", "--bucket", bucket_url)
    with following(tmp_path / "log", *arguments, "--address", head.url, **head.environ) as follower:
        follower.wait_for("[0] waiting\n")
        assert follower.interrupt() == 130
        last = follower.output.splitlines()[-4:]
    record = only_run(bucket_url)
    job_id = f"--address {head.url} {record.name}-s1"
    assert last == [
        "hotstart stopped following; the job goes on",
        f"hotstart follow it with: ray job logs --follow {job_id}",
        f"hotstart stop it with: ray job stop {job_id}",
        f"hotstart report: hotstart report {record.name} --run-dir {bucket_url}/runs",
    ]
    assert record.end() is None
    assert processes_with("HOTSTART_RUN", record.name) != []

    stop = last[2].partition("with: ")[2].split()
    stopped = subprocess.run(
        [BIN / stop[0], *stop[1:]],
        env=environ(**head.environ),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    end = record.end()
    assert end is not None
    assert (end.state, end.exit_code) == ("interrupted", 130)
    assert proxy.faults_left() == 0  # so that something was on its way
    entries = [stat.name for stat in open_store(f"{bucket_url}/cache").list("")]
    assert any("lambda" in name for name in entries), entries
    wait_for(lambda: processes_with("HOTSTART_RUN", record.name) == [], "end of all", 5)
    wait_for(lambda: processes_with("HOTSTART_SUBMISSION", f"{record.name}-s1") == [], "end", 5)


def test_ray_job_submit_of_hotstart_launch_runs_the_job(
    head: RayHead, job: Path, bucket_url: str
) -> None:
    done = subprocess.run(
        [
            *(BIN / "ray", "job", "submit", "--address", head.url, "--working-dir", "."),
            *("--", "hotstart", "launch", "job.yaml"),
            *(f"cache.location={bucket_url}/c", f"run_dir={bucket_url}/runs"),
        ],
        env=environ(**head.environ),
        cwd=job.parent,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[0] result 1 80.0" in done.stdout.splitlines()
    entries = [stat.name for stat in open_store(f"{bucket_url}/c").list("")]
    assert any("lambda" in name for name in entries), entries


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "Authentication required: Unauthorized: Missing authentication token"),
        (
            {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "another"},
            "Authentication failed: Forbidden: Invalid authentication token",
        ),
    ],
    ids=["none", "another"],
)
def test_submit_without_the_token_is_refused_in_one_line(
    head: RayHead, job: Path, settings: dict[str, str], said: str
) -> None:
    refused = submit(job, "--bucket", "gs://b", "--address", head.url, **settings)
    assert refused.returncode == 2
    assert refused.stdout == ""
    assert refused.stderr == (
        f"hotstart: Ray at {head.url} refuses this client ({said}): its token is missing or "
        "another; set RAY_AUTH_MODE=token and the cluster's token in RAY_AUTH_TOKEN, or in a file "
        "that RAY_AUTH_TOKEN_PATH names\n"
    )


def test_submit_to_nobody_ends_with_2_in_one_line(job: Path) -> None:
    address = f"http://127.0.0.1:{free_port()}"
    failed = submit(job, "--bucket", "gs://b", RAY_API_SERVER_ADDRESS=address)
    assert failed.returncode == 2
    assert failed.stdout == ""
    assert failed.stderr == (
        f"hotstart: no Ray cluster answers at {address}: Connection refused; check --address, "
        "RAY_API_SERVER_ADDRESS and RAY_ADDRESS (the dashboard's URL, by default port 8265)\n"
    )


def test_submit_bad_job_ends_with_2_before_the_cluster_is_asked(job: Path) -> None:
    job.write_text("script: train.py\nworkes: 2\n")
    address = f"http://127.0.0.1:{free_port()}"
    failed = submit(job, "--bucket", "gs://b", "--address", address)
    assert failed.returncode == 2
    assert failed.stdout == ""
    assert failed.stderr.startswith(f"hotstart: {job}:2: unknown key workes; did you mean workers?")
    assert failed.stderr.count("\n") == 1
