"""What a user gets for a job that can't be run: one line, exit code 2, and nothing started."""

from __future__ import annotations

import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from tests.support.launch import Site, site

pytestmark = pytest.mark.e2e

SCRIPT = "def main():\n    pass\n"


@pytest.fixture
def here() -> Iterator[Site]:
    with site() as made:
        made.write("train.py", SCRIPT)
        yield made
        assert made.left_behind() == []


def message(here: Site, job: str, *more: str, env: dict[str, str] | None = None) -> str:
    """The one line that a launch of this job ends with; paths of the site become `~`."""
    here.write("job.yaml", job)
    finished = here.run("launch", "job.yaml", *more, env=env)
    assert finished.exit_code == 2, finished.shown
    assert finished.stdout == "", finished.shown
    assert here.run_names() == []
    [line] = finished.stderr.splitlines()
    return line.replace(str(here.folder), "~")


VALID = (
    "Valid keys: name, entrypoint, script, args, resume, workers, workers_per_host, "
    "resources_per_worker, labels, placement, platform, tpu, jax_distributed, working_dir, cache, "
    "require_warm, run_dir, restarts, env, secret_env, cost_per_worker_hour, timeouts"
)
CACHE_VALID = (
    "Valid keys of cache: location, mode, strict, min_compile_time_s, node_dir, max_size, "
    "flush_timeout_s, deadline_s, compile, signing_key_file, read_ahead, load_ahead, children"
)
SCRIPT_LINE = "script: train.py\n"


@pytest.mark.parametrize(
    ("job", "expected"),
    [
        pytest.param(
            SCRIPT_LINE + "wokers: 2\n",
            f"job.yaml:2: unknown key wokers; did you mean workers? {VALID}",
            id="unknown key",
        ),
        pytest.param(
            SCRIPT_LINE + "cache: {locaton: x}\n",
            "job.yaml:2: unknown key cache.locaton; did you mean cache.location? " + CACHE_VALID,
            id="unknown nested key",
        ),
        pytest.param(
            SCRIPT_LINE + "workers: two\n",
            "job.yaml:2: workers: expected a whole number, got 'two'",
            id="wrong type",
        ),
        pytest.param(
            SCRIPT_LINE + "workers: -1\n",
            "job.yaml:2: workers: expected a whole number of at least 1, got -1",
            id="negative count",
        ),
        pytest.param(
            SCRIPT_LINE + "restarts: {failures: -1}\n",
            "job.yaml:2: restarts.failures: expected a whole number of at least 0, got -1",
            id="negative budget",
        ),
        pytest.param(
            "script: tran.py\n",
            "job.yaml:1: script: ~/tran.py does not exist; did you mean train.py?",
            id="missing script",
        ),
        pytest.param(
            "entrypoint: trian:main\n",
            "job.yaml:1: entrypoint: module trian cannot be found in ~ or on Python's path; "
            "did you mean train?",
            id="missing module",
        ),
        pytest.param(
            "entrypoint: train:mian\n",
            "job.yaml:1: entrypoint: ~/train.py defines no mian; did you mean train:main?",
            id="missing function",
        ),
        pytest.param(
            "workers: 2\n",
            "job.yaml: nothing to run; give script (a path) or entrypoint (module:function)",
            id="no program",
        ),
        pytest.param(
            "script: [train.py\n",
            "job.yaml:2: not valid YAML: expected ',' or ']', but got '<stream end>'",
            id="broken YAML",
        ),
        pytest.param(
            SCRIPT_LINE + "cache: {location: train.py/cache}\n",
            "job.yaml:2: cache.location: ~/train.py is not a directory",
            id="cache below a file",
        ),
        pytest.param(
            SCRIPT_LINE + "cache: {location: /proc/none/cache}\n",
            "job.yaml:2: cache.location: cannot create /proc/none/cache/hotstart-probe: No such "
            "file or directory; is another program removing /proc/none/cache?",
            id="cache that cannot be made",
        ),
        pytest.param(
            SCRIPT_LINE + "cache: {location: 's3://bucket/x'}\n",
            "job.yaml:2: cache.location: s3://bucket/x: unknown scheme s3://; give a directory "
            "or gs://bucket/prefix",
            id="cache of another cloud",
        ),
        pytest.param(
            SCRIPT_LINE + "run_dir: train.py/runs\n",
            "job.yaml:2: run_dir: ~/train.py is not a directory",
            id="run_dir below a file",
        ),
    ],
)
def test_bad_job_is_refused_in_one_line(here: Site, job: str, expected: str) -> None:
    assert message(here, job) == f"hotstart: {expected}"


def test_bad_job_missing_file_names_the_nearest(here: Site) -> None:
    here.write("job.yaml", SCRIPT_LINE)
    finished = here.run("launch", "jbo.yaml")
    assert (finished.exit_code, finished.stdout) == (2, "")
    assert finished.stderr == "hotstart: jbo.yaml: no such file; did you mean job.yaml?\n"


def test_bad_job_from_the_command_line_says_so(here: Site) -> None:
    assert message(here, SCRIPT_LINE, "workers=-2") == (
        "hotstart: command line: workers: expected a whole number of at least 1, got -2"
    )


def test_bad_job_run_dir_that_cannot_be_made_is_refused(here: Site) -> None:
    line = message(here, SCRIPT_LINE + "run_dir: /proc/runs\n")
    assert re.sub(r"job-\d{8}-\d{6}-[0-9a-f]{4}", "RUN", line) == (
        "hotstart: job.yaml:2: run_dir: cannot create /proc/runs/RUN/created: No such file or "
        "directory; is another program removing /proc/runs?"
    )


def test_bad_job_home_below_a_file_names_the_variable(here: Site) -> None:
    env = {"HOTSTART_HOME": str(here.folder / "train.py" / "home")}
    assert message(here, SCRIPT_LINE, env=env) == (
        "hotstart: environment HOTSTART_HOME: run_dir: ~/train.py is not a directory"
    )


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("127.0.0.1:1", "[Errno 111] Connection refused"),
        ("nowhere.invalid:6379", "[Errno -2] Name or service not known"),
        ("head", "expected host:port"),
    ],
)
def test_bad_address_is_refused_in_one_line(here: Site, address: str, problem: str) -> None:
    assert message(here, SCRIPT_LINE, "--address", address) == (
        f"hotstart: cannot connect to Ray at {address}: {problem}; check --address and "
        "RAY_ADDRESS, or give --address local to start Ray here"
    )


def test_bad_address_of_a_web_server_is_refused(here: Site) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"127.0.0.1:{server.server_port}"
        line = message(here, SCRIPT_LINE, "--address", address)
        server.shutdown()
    assert line == (
        f"hotstart: cannot connect to Ray at {address}: what listens there is not Ray's GCS (its "
        "usual port is 6379); check --address and RAY_ADDRESS, or give --address local to start "
        "Ray here"
    )


def test_bad_address_in_the_environment_is_refused_in_one_line(here: Site) -> None:
    assert message(here, SCRIPT_LINE, env={"RAY_ADDRESS": "127.0.0.1:1"}) == (
        "hotstart: cannot connect to Ray at 127.0.0.1:1: [Errno 111] Connection refused; check "
        "--address and RAY_ADDRESS, or give --address local to start Ray here"
    )


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("http://head:8265", "that is the address of Ray's dashboard"),
        ("https://head", "that is the address of Ray's dashboard"),
        ("ray://head:10001", "that is of Ray Client, which is not supported"),
    ],
)
def test_bad_address_of_another_protocol_is_refused_in_one_line(
    here: Site, address: str, problem: str
) -> None:
    assert message(here, SCRIPT_LINE, env={"RAY_ADDRESS": address}) == (
        f"hotstart: cannot connect to Ray at {address}: {problem}; give host:6379 in --address or "
        "RAY_ADDRESS, or give --address local to start Ray here"
    )


def test_bad_spread_over_hosts_that_an_embedded_ray_lacks_is_refused(here: Site) -> None:
    job = SCRIPT_LINE + "workers: 2\nworkers_per_host: 1\n"
    assert message(here, job, "--address", "local") == (
        "hotstart: Ray is started here, with one host; the job needs 2 hosts: use "
        "workers_per_host=2, placement=pack, or --address"
    )


def test_bad_need_that_this_host_lacks_is_refused_at_once(here: Site) -> None:
    here.write("job.yaml", SCRIPT_LINE + "resources_per_worker: {TPU: 4}\n")
    finished = here.launch("job.yaml")
    assert finished.exit_code == 2, finished.shown
    assert finished.stderr.splitlines()[-1] == (
        "hotstart: Ray is started here, on a host with {TPU: 0}; the job needs {TPU: 4}: use "
        "another platform, less in resources_per_worker, or --address"
    )
    here.assert_clean(within_s=3.0)
