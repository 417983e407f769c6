"""Ways to reach a cluster, and where on it a submitted job's driver runs."""

from __future__ import annotations

import json
import os
import signal
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.support.gcs_proxy import GcsProxy
from tests.support.ray_head import RayHead, ray_node
from tests.support.submits import following, processes_with, submit, wait_for
from tests.support.tcp_proxy import own_authority, tcp_proxy

pytestmark = pytest.mark.e2e

SCRIPT = """
import sys, time
import hotstart.cache
print("imported from", hotstart.cache.__file__, flush=True)
for number in range(int(sys.argv[1])):
    print("line", number, flush=True)
    time.sleep(0.1)
"""


@pytest.fixture
def job(tmp_path: Path) -> Path:
    folder = tmp_path / "job"
    folder.mkdir()
    (folder / "train.py").write_text(SCRIPT)
    (folder / "job.yaml").write_text(
        "script: train.py\ncache: {mode: 'off'}\nrestarts: {failures: 0, standby: false}\n"
        "resources_per_worker: {CPU: 0.1}\n"
    )
    return folder / "job.yaml"


def _answer(head: RayHead, path: str) -> Any:
    request = urllib.request.Request(
        f"{head.url}/{path}",
        headers={"Authorization": f"Bearer {head.environ['RAY_AUTH_TOKEN']}"},
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.load(answer)


def test_submit_over_https_that_is_cut_tells_each_line_once(
    head: RayHead, job: Path, bucket_url: str, tmp_path: Path
) -> None:
    context, certificate = own_authority(tmp_path)
    token = tmp_path / "token"
    token.write_text(head.environ["RAY_AUTH_TOKEN"])
    known = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    trusts = {"REQUESTS_CA_BUNDLE": str(certificate), "SSL_CERT_FILE": str(certificate)}
    arguments = (job, "args=[60]", "--bucket", bucket_url, "--hotstart", "cluster", "--run", "cut")
    with tcp_proxy(head.url, context) as proxy:
        address = ("--address", proxy.url)
        stranger = submit(*arguments, *address, **known)
        assert (stranger.returncode, stranger.stdout) == (2, "")
        assert stranger.stderr.startswith(f"hotstart: no Ray Jobs API at {proxy.url}: ")
        assert stranger.stderr.endswith(
            "; for a certificate of your own authority set REQUESTS_CA_BUNDLE and SSL_CERT_FILE "
            "to its file\n"
        )
        with following(tmp_path / "log", *arguments, *address, **known, **trusts) as follower:
            for line in ("[0] line 10\n", "[0] line 30\n"):
                follower.wait_for(line)
                assert proxy.cut() > 0
            assert follower.process.wait(90) == 0, follower.output
    lines = follower.output.splitlines()
    shown = [line for line in lines if line.startswith("[0] line")]
    assert shown == [f"[0] line {number}" for number in range(60)]
    (origin,) = [line for line in lines if line.startswith("[0] imported from")]
    assert "py_modules" not in origin


def test_submit_driver_is_placed_by_label_and_its_death_says_how_to_go_on(
    head: RayHead, job: Path, bucket_url: str, proxy: GcsProxy, tmp_path: Path
) -> None:
    arguments = (job, "args=[3000]", "--bucket", bucket_url, "--run", "placed")
    arguments = (*arguments, "--address", head.url, "--driver-label", "pool=drivers")
    quiet = ("--num-cpus", "1", "--labels", "pool=drivers")
    with (
        ray_node(head, {"STORAGE_EMULATOR_HOST": proxy.url}, *quiet),
        following(tmp_path / "log", *arguments, **head.environ) as follower,
    ):
        follower.wait_for("[0] line 5\n")
        node = _answer(head, "api/jobs/placed-s1")["driver_node_id"]
        nodes = _answer(head, "api/v0/nodes?detail=1")["data"]["result"]["result"]
        labels = {n["node_id"]: n["labels"] for n in nodes}
        assert labels[node].get("pool") == "drivers"
        for driver in processes_with("HOTSTART_SUBMISSION", "placed-s1"):
            driver.send_signal(signal.SIGKILL)
        assert follower.process.wait(60) == 1
        wait_for(lambda: processes_with("HOTSTART_RUN", "placed") == [], "end of workers", 30)
    assert follower.output.splitlines()[-3:] == [
        "hotstart placed-s1 FAILED: the launcher on the cluster was killed by SIGKILL",
        "hotstart go on from its last checkpoint, on any cluster, with: hotstart submit --restart "
        f"placed --run-dir {bucket_url}/runs --address {head.url}",
        f"hotstart report: hotstart report placed --run-dir {bucket_url}/runs",
    ]

    taken = submit(*arguments, **head.environ)
    assert (taken.returncode, taken.stdout) == (2, "")
    assert taken.stderr == (
        "hotstart: run placed was submitted here already, and placed-s1 FAILED; choose another "
        f"name, or go on with: hotstart submit --restart placed --run-dir {bucket_url}/runs "
        f"--address {head.url}\n"
    )


def test_submit_driver_that_no_node_takes_ends_with_1_in_time(
    head: RayHead, job: Path, bucket_url: str
) -> None:
    ended = submit(
        *(job, "args=[1]", "timeouts.placement_s=6", "--bucket", bucket_url),
        *("--address", head.url, "--driver-resources", "CPU=1,quiet=1"),
        **head.environ,
    )
    assert ended.returncode == 1
    lacks = (
        "the driver needs a node with {CPU: 1, quiet: 1}; the cluster has 1 nodes, of which none "
        "has more than {CPU: 4, quiet: 0} each"
    )
    lines = ended.stderr.splitlines()
    assert lines[1] == f"hotstart {lacks}; waiting up to 6 s"
    assert lines[-1].startswith(f"hotstart: {lacks}; gave up after ")
    assert lines[-1].endswith("see --driver-resources and --driver-label")


def test_submit_secret_that_a_host_lacks_ends_with_1_and_names_the_reference(
    head: RayHead, job: Path, bucket_url: str
) -> None:
    ended = submit(
        *(job, "args=[1]", "secret_env.TOKEN=file:/no/such/token", "--bucket", bucket_url),
        *("--address", head.url),
        **head.environ,
    )
    assert ended.returncode == 1, ended.stdout + ended.stderr
    lines = [line for line in ended.stdout.splitlines() if "SecretUnavailable" in line]
    assert len(lines) == 1, ended.stdout
    assert lines[0].startswith("hotstart: ")
    assert lines[0].endswith(
        "SecretUnavailable: secret_env.TOKEN: file:/no/such/token: No such file or directory; "
        "bring the file to each host that runs workers"
    )


@pytest.mark.skipif(not os.environ.get("HOTSTART_LONG"), reason="copies a virtual environment")
def test_submit_requirements_are_installed_on_the_cluster_first(
    head: RayHead, job: Path, bucket_url: str, tmp_path: Path
) -> None:
    wheel = job.parent / "greeter-1.0-py3-none-any.whl"
    _write_wheel(wheel)
    needed = tmp_path / "requirements.txt"
    needed.write_text(
        f"--no-index\n${{RAY_RUNTIME_ENV_CREATE_WORKING_DIR}}/{wheel.name}  # a comment\n"
    )
    (job.parent / "train.py").write_text("import greeter, sys\nprint(greeter.HI, sys.prefix)\n")
    done = submit(
        *(job, "--bucket", bucket_url, "--address", head.url, "--requirements", needed),
        timeout_s=1500,
        **head.environ,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (line,) = [x for x in done.stdout.splitlines() if x.startswith("[0] hello")]
    assert "/runtime_resources/pip/" in line
    assert "each host installs 2 requirements first" in done.stderr


def _write_wheel(path: Path) -> None:
    import zipfile

    info = "greeter-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("greeter.py", "HI = 'hello'\n")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: greeter\nVersion: 1.0\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
