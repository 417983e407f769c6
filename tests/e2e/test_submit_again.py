"""A run that outlives its cluster, and secrets that are nowhere but where they belong."""

from __future__ import annotations

import hashlib
import json
import os
import urllib.request
from pathlib import Path

import pytest

from hotstart.cache.store import open_store
from tests.support.gcs_proxy import GcsProxy
from tests.support.ray_head import RayHead, ray_head
from tests.support.submits import following, only_run, processes_with, submit

pytestmark = pytest.mark.e2e

SCRIPT = """
import hashlib, os, pathlib, time
import jax, jax.numpy as jnp
from hotstart.launcher import context

kept = pathlib.Path(os.environ["KEPT"])
done = int(kept.read_text()) if kept.exists() else 0
token = os.environ["TOKEN"]
print("note", os.environ.get("NOTE"), flush=True)
print("resumed at", done, "with", hashlib.sha256(token.encode()).hexdigest(), flush=True)
print("reads", pathlib.Path("data/words.txt").read_text().strip(), "in", os.getcwd(), flush=True)
advance = jax.jit(lambda x: jnp.tanh(x) @ x)
for number in range(done + 1, 5):
    advance(jnp.ones((8, 8))).block_until_ready()
    kept.write_text(str(number))
    context.step(number)
    print("step", number, flush=True)
    while number == 2 and context.attempt() == 1:
        time.sleep(0.05)
print("finished", flush=True)
"""
JOB = """
script: src/train.py
workers: 1
working_dir: src
secret_env: {TOKEN: "file:%s"}
restarts: {standby: false}
"""


@pytest.fixture
def secret(tmp_path: Path) -> tuple[Path, str]:
    """A file with a secret, as a host would have it."""
    path, value = tmp_path / "host" / "token", f"tok-{os.urandom(16).hex()}"
    path.parent.mkdir()
    path.write_text(value + "\n")
    return path, value


@pytest.fixture
def job(tmp_path: Path, secret: tuple[Path, str]) -> Path:
    folder = tmp_path / "job"
    (folder / "src").mkdir(parents=True)
    (folder / "data").mkdir()
    (folder / "data/words.txt").write_text("some words\n")
    (folder / "data/huge.bin").write_bytes(bytes(1 << 20))
    (folder / ".gitignore").write_text("data/\n")
    (folder / ".hotstartignore").write_text("!data/\nhuge.bin\n")
    (folder / "src/train.py").write_text(SCRIPT)
    (folder / "job.yaml").write_text(JOB % secret[0])
    return folder / "job.yaml"


def _holders(value: str, head: RayHead, bucket: str) -> list[str]:
    """Where a secret is found: Ray's files, the bucket, command lines, the dashboard's answers."""
    data = value.encode()
    found = []
    for path in head.log.parent.rglob("*"):
        if path.is_file() and not path.is_symlink():
            try:
                if data in path.read_bytes():
                    found.append(str(path))
            except OSError:  # gone by now
                continue
    store = open_store(bucket)
    found += [s.name for s in store.list("") if data in (store.get(s.name) or b"")]
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if data in line.read_bytes():
                found.append(str(line))
        except OSError:
            continue
    for endpoint in ("api/jobs/", "api/v0/actors?detail=1", "api/v0/runtime_envs?detail=1"):
        request = urllib.request.Request(
            f"{head.url}/{endpoint}",
            headers={"Authorization": f"Bearer {head.environ['RAY_AUTH_TOKEN']}"},
        )
        with urllib.request.urlopen(request, timeout=20) as answer:
            if data in answer.read():
                found.append(endpoint)
    return found


def test_submit_restart_goes_on_warm_on_another_cluster_and_shows_no_secret(
    head: RayHead,
    proxy: GcsProxy,
    bucket_url: str,
    job: Path,
    secret: tuple[Path, str],
    tmp_path: Path,
) -> None:
    store = {"STORAGE_EMULATOR_HOST": proxy.url}
    arguments = (job, "--run", "steady", "--bucket", bucket_url)
    kept = f"KEPT={tmp_path / 'kept'}"
    digest = hashlib.sha256(secret[1].encode()).hexdigest()
    with ray_head(store, num_cpus=2) as first:
        to_first = ("--address", first.url)
        environ = {**store, **first.environ}
        log = tmp_path / "log"
        with following(log, *arguments, "--env", kept, *to_first, **environ) as follower:
            follower.wait_for("[0] step 2\n")
            assert f"[0] resumed at 0 with {digest}" in follower.output.splitlines()
            (there,) = [x for x in follower.output.splitlines() if x.startswith("[0] reads")]
            assert there.startswith("[0] reads some words in /")

            attached = submit(*arguments, "--no-wait", "--json", *to_first, **environ)
            assert attached.returncode == 0, attached.stderr
            answer = json.loads(attached.stdout)
            assert (answer["attached"], answer["submission_id"]) == (True, "steady-s1")

            environs = [p.environ() for p in processes_with("HOTSTART_RUN", "steady")]
            assert secret[1] in {e.get("TOKEN") for e in environs}  # so that this can fail
            assert _holders(secret[1], first, bucket_url) == []
            assert secret[1] not in follower.output
            assert follower.interrupt() == 130
    assert processes_with("HOTSTART_RUN", "steady") == []  # the cluster and all on it are gone

    to_second = ("--address", head.url)
    again = ("--restart", "steady", "--bucket", bucket_url)
    went_on = submit(*again, "env.NOTE=anew", *to_second, **store, **head.environ)

    assert went_on.returncode == 0, went_on.stdout + went_on.stderr
    lines = went_on.stdout.splitlines()
    assert f"[0] resumed at 2 with {digest}" in lines
    assert "[0] note anew" in lines
    assert [x for x in lines if x.startswith("[0] step")] == ["[0] step 3", "[0] step 4"]
    (here,) = [x for x in lines if x.startswith("[0] reads")]
    assert here.startswith("[0] reads some words in /")
    assert here != there  # it runs in the second cluster's folder
    assert "as steady-s2 to" in went_on.stderr
    facts = only_run(bucket_url).read()
    assert facts.state == "done"
    assert [a.attempt for a in facts.attempts] == [1, 2]
    counts = [w["cache"] for w in facts.attempts[1].workers]
    assert [(c["compiled"], c["hits"] > 0) for c in counts] == [(0, True)]

    done = submit(*again, *to_second, **store, **head.environ)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "hotstart: run steady is done; submit the job anew instead\n"


@pytest.mark.skipif(not os.environ.get("HOTSTART_LONG"), reason="waits a minute for a dead head")
def test_submit_followed_on_a_cluster_that_dies_says_how_to_go_on(
    proxy: GcsProxy, bucket_url: str, job: Path, tmp_path: Path
) -> None:
    store = {"STORAGE_EMULATOR_HOST": proxy.url}
    with ray_head(store, num_cpus=2) as doomed:
        arguments = (job, "--run", "doomed", "--bucket", bucket_url, "--address", doomed.url)
        kept = f"KEPT={tmp_path / 'kept'}"
        follower = following(tmp_path / "log", *arguments, "--env", kept, **store, **doomed.environ)
        followed = follower.__enter__()
        followed.wait_for("[0] step 2\n")
    with follower:
        assert followed.process.wait(120) == 1
    last = followed.output.splitlines()[-1]
    assert last.startswith(f"hotstart: lost contact with Ray at {doomed.url}: ")
    assert last.endswith(
        "its run record tells how it ended; if the cluster is gone, go on with: hotstart submit "
        f"--restart doomed --run-dir {bucket_url}/runs --address {doomed.url}"
    )
