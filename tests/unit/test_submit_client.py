"""A submission's options, and following a job by a client that is told what to answer."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import threading
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests
from click.testing import CliRunner

from hotstart.conf.load import load_job
from hotstart.launcher import submit
from hotstart.launcher.arrival import arrival_check
from hotstart.launcher.cli import main
from hotstart.launcher.driver_place import DriverPlace, parse_place, place_from, waiting_for
from hotstart.launcher.errors import ClusterUnreachable, ContactLost, UsageError
from hotstart.launcher.jobs_address import jobs_address
from hotstart.launcher.requirements import read_requirements
from hotstart.launcher.shipment import Options, Submission, prepare
from hotstart.launcher.staging import stage_package
from hotstart.launcher.submit import Known, RayJobs
from hotstart.launcher.submitted import moved
from hotstart.launcher.submitting import _attach_or_send
from tests.unit.conftest import FakeClock

pytestmark = pytest.mark.unit


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "job"
    folder.mkdir()
    (folder / "train.py").write_text("")
    (folder / "job.yaml").write_text("script: train.py\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(folder)
    return folder / "job.yaml"


def test_driver_place_becomes_a_request_of_ray() -> None:
    place = parse_place(["CPU=1,memory=2GiB", "quiet=0.5"], ["pool=drivers"])
    assert place.as_request() == {
        "entrypoint_num_cpus": 1.0,
        "entrypoint_memory": 2 << 30,
        "entrypoint_resources": {"quiet": 0.5},
        "entrypoint_label_selector": {"pool": "drivers"},
    }
    assert DriverPlace().as_request() == {}
    assert place_from(
        json.loads(json.dumps({"resources": {"CPU": 1.0}, "labels": {"a": "b"}}))
    ) == (DriverPlace({"CPU": 1.0}, {"a": "b"}))
    assert place_from({"resources": 1}) == DriverPlace()


@pytest.mark.parametrize(
    ("resources", "labels", "problem"),
    [
        (
            ["GPU=1"],
            [],
            "--driver-resources: GPU: the driver needs no accelerator; it would keep one from the "
            "workers",
        ),
        (["CPU"], [], "--driver-resources: expected CPU=1,memory=2GiB, got 'CPU'"),
        (["CPU=-1"], [], "--driver-resources: CPU: expected a number above 0, got '-1'"),
        (["CPU=nan"], [], "--driver-resources: CPU: expected a number above 0, got 'nan'"),
        (["memory=big"], [], "--driver-resources: memory: expected a size like 2GiB, got 'big'"),
        ([], ["pool"], "--driver-label: expected KEY=VALUE, got 'pool'"),
    ],
)
def test_driver_place_that_can_not_be_is_refused(
    resources: list[str], labels: list[str], problem: str
) -> None:
    with pytest.raises(UsageError) as caught:
        parse_place(resources, labels)
    assert str(caught.value) == problem


def test_driver_place_waits_only_for_what_no_node_has() -> None:
    nodes = [
        {"resources": {"CPU": 4.0}, "labels": {}},
        {"resources": {"CPU": 1.0}, "labels": {"pool": "drivers"}},
    ]
    assert waiting_for(DriverPlace({"CPU": 1.0}, {"pool": "drivers"}), nodes) is None
    assert waiting_for(DriverPlace({"CPU": 2.0}, {"pool": "drivers"}), nodes) == (
        "the driver needs a node with {CPU: 2} and the label pool=drivers; the cluster has 2 "
        "nodes, of which none has more than {CPU: 4} each"
    )


def test_requirements_are_the_lines_that_pip_would_take(tmp_path: Path) -> None:
    path = tmp_path / "r.txt"
    path.write_text("# ours\neinops==0.8  # why\n\n--index-url https://x/simple\na>=1 \\\n  ,<2\n")
    assert read_requirements(str(path)) == (
        "einops==0.8",
        "--index-url https://x/simple",
        "a>=1    ,<2",
    )


@pytest.mark.parametrize(
    "line",
    [
        "pkg @ git+ssh://git@github.com/org/repo@v1",
        "pkg @ git+https://github.com/org/repo.git@v1",
        "--extra-index-url https://${TOKEN}@host/simple",
        "--extra-index-url https://${USER}:${TOKEN}@host/simple",
    ],
)
def test_requirements_without_a_secret_are_taken(tmp_path: Path, line: str) -> None:
    path = tmp_path / "r.txt"
    path.write_text(f"{line}\n")
    assert read_requirements(str(path)) == (line,)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("-r more.txt", ":1: -r more.txt: another file is not sent; put its lines in here"),
        (
            "./x.whl",
            ":1: ./x.whl: a path of this machine is none of the hosts'; keep the file in the "
            "working folder and write ${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}/x.whl",
        ),
        (
            "a\n--index-url https://me:s3cret@host/simple",
            ":2: a password in an address would show in Ray's dashboard; set PIP_INDEX_URL where "
            "Ray is started on each host, or ~/.netrc there",
        ),
        *(
            (
                line,
                ":1: a password in an address would show in Ray's dashboard; set PIP_INDEX_URL "
                "where Ray is started on each host, or ~/.netrc there",
            )
            for line in (
                "pkg @ git+https://ghp_token@github.com/org/private.git",
                "pkg @ git+https://user:token@github.com/org/private.git",
                "pkg @ git+ssh://git:token@github.com/org/private.git",
                "--extra-index-url https://token@host/simple",
            )
        ),
        ("-rmore.txt", ":1: -rmore.txt: another file is not sent; put its lines in here"),
        (
            "/abs/x.whl",
            ":1: /abs/x.whl: a path of this machine is none of the hosts'; keep the file in the "
            "working folder and write ${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}/NAME",
        ),
        ("# nothing", " names no packages"),
        (None, ": No such file or directory"),
    ],
)
def test_requirements_that_mean_nothing_there_are_refused(
    tmp_path: Path, text: str | None, problem: str
) -> None:
    path = tmp_path / "r.txt"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UsageError) as caught:
        read_requirements(str(path))
    assert str(caught.value) == f"--requirements: {path}{problem}"


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("ray://head:10001", "ray://head:10001 is of Ray Client, which takes no jobs"),
        ("gs://head:8265", "gs://head:8265 has gs:// in front, which is not a dashboard's"),
        ("local", "local names no cluster (`hotstart launch` can start Ray by itself)"),
        ("head", "head has no port"),
        ("head:port", "head:port is no address"),
    ],
)
@pytest.mark.parametrize("source", ["--address", "RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"])
def test_address_of_another_form_is_refused(source: str, address: str, problem: str) -> None:
    given = address if source == "--address" else None
    with pytest.raises(ClusterUnreachable) as caught:
        jobs_address(given, {} if given else {source: address})
    assert str(caught.value) == (
        f"{source}: {problem}; give the dashboard's URL, by default http://HEAD:8265"
    )


def _arrive(*needed: str, of_the_cluster: bool = False, version: str = "") -> tuple[int, str]:
    command = arrival_check(of_the_cluster, needed or ("json",))
    command[0] = sys.executable
    if version:
        command[3] = version
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30)
    return ended.returncode, ended.stderr


def test_arrival_on_a_cluster_that_has_all_says_nothing() -> None:
    assert _arrive(of_the_cluster=True) == (0, "")


def test_arrival_on_a_cluster_with_another_hotstart_ends_with_2() -> None:
    assert _arrive(version="9.9") == (
        2,
        "hotstart: the cluster has hotstart 0.1.0, and this job was submitted with 9.9; submit "
        "with --hotstart ship, or install the same version in both places\n",
    )


def test_arrival_on_a_cluster_that_lacks_a_dependency_ends_with_2() -> None:
    assert _arrive("json", "no_such", "nor_this") == (
        2,
        f"hotstart: {sys.executable} on the cluster lacks no_such, nor_this, which hotstart needs; "
        "install them on every host, or name them in a file for --requirements\n",
    )


def test_prepare_wheel_is_unpacked_and_its_metadata_left(job: Path, tmp_path: Path) -> None:
    wheel = tmp_path / "hotstart-9.9-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("hotstart/launcher/cli.py", "x = 1\n")
        archive.writestr("hotstart-9.9.dist-info/METADATA", "Name: hotstart\n")
    submission = prepare(str(job), [], "gs://b", Options(hotstart=str(wheel)))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    package = stage_package(scratch, submission.hotstart)
    files = {p.relative_to(scratch).as_posix() for p in scratch.rglob("*") if p.is_file()}
    assert package == scratch / "hotstart"
    assert files == {"hotstart/__init__.py", "hotstart/launcher/cli.py"}


@pytest.mark.parametrize(
    ("choice", "problem"),
    [
        ("latest", "--hotstart: expected ship, cluster or the path of a wheel, got latest"),
        (
            "none.whl",
            "--hotstart: none.whl: No such file or directory; give ship, cluster or a wheel",
        ),
        (
            "train.whl",
            "--hotstart: train.whl: File is not a zip file; give ship, cluster or a wheel",
        ),
        ("other.whl", "--hotstart: other.whl is not a wheel of hotstart; it has no launcher in it"),
    ],
)
def test_prepare_other_hotstart_is_refused(job: Path, choice: str, problem: str) -> None:
    Path("train.whl").write_text("")
    with zipfile.ZipFile("other.whl", "w") as archive:
        archive.writestr("other/__init__.py", "")
    with pytest.raises(UsageError) as caught:
        prepare(str(job), [], "gs://b", Options(hotstart=choice))
    assert str(caught.value) == problem


def test_prepare_script_that_is_kept_back_says_how_to_send_it(job: Path) -> None:
    (job.parent / ".gitignore").write_text("*.py\n")
    with pytest.raises(UsageError) as caught:
        prepare(str(job), [], "gs://b")
    assert str(caught.value) == (
        f"script: {job.parent}/train.py is kept from being sent by a line in a .gitignore, "
        f".rayignore or .hotstartignore of {job.parent}; bring it back by a line !/train.py in "
        f"{job.parent}/.hotstartignore"
    )
    (job.parent / ".hotstartignore").write_text("!/train.py\n")
    files = prepare(str(job), [], "gs://b").files
    assert files is not None
    assert "train.py" in [file.name for file in files.files]


def test_prepare_secret_in_the_folder_that_is_sent_is_refused(job: Path) -> None:
    secret = job.parent / "token"
    secret.write_text("s3cret")
    overrides = [f"secret_env.TOKEN=file:{secret}"]
    with pytest.raises(UsageError) as caught:
        prepare(str(job), overrides, "gs://b")
    assert str(caught.value) == (
        f"command line: secret_env.TOKEN: {secret} lies in {job.parent}, which is sent to the "
        "cluster; move it out, and bring it to the hosts by a way of its own (docs/trust.md)"
    )
    (job.parent / ".hotstartignore").write_text("token\n")
    assert prepare(str(job), overrides, "gs://b").run_dir == "gs://b/runs"


def test_prepare_run_of_a_bad_name_is_refused(job: Path) -> None:
    with pytest.raises(UsageError) as caught:
        prepare(str(job), [], "gs://b", Options(run="a/b"))
    assert str(caught.value) == (
        "--run: 'a/b' can't be a run's name; use letters, digits, . _ and -"
    )


def _invoke(*arguments: str) -> Any:
    return CliRunner().invoke(main, ["submit", *arguments], catch_exceptions=False)


def test_dry_run_shows_what_would_be_sent_and_asks_no_cluster(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    (job.parent / "data").mkdir()
    (job.parent / ".gitignore").write_text("data/\n")
    needed = tmp_path / "r.txt"
    needed.write_text("einops\n")
    arguments = ("job.yaml", "--bucket", "gs://b", "--run", "dry", "--dry-run", "--env", "A=b c")
    shown = _invoke(*arguments, "--requirements", str(needed))
    assert shown.exit_code == 0
    assert shown.stdout.splitlines()[:6] == [
        "run          dry in gs://b/runs",
        f"sends        {job.parent} (3 files, 23 bytes)",
        "   17 bytes  job.yaml",
        "    6 bytes  .gitignore",
        "    0 bytes  train.py",
        "keeps back   data/",
    ]
    plan = json.loads(_invoke(*arguments, "--requirements", str(needed), "--json").stdout)
    assert plan["files"] == {".gitignore": 6, "job.yaml": 17, "train.py": 0}
    assert plan["submission_id"] == "dry-s1"
    assert plan["runtime_env"] == {
        "working_dir": "<files>",
        "py_modules": ["<hotstart: ship>"],
        "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "13"},
        "pip": {"packages": ["einops"], "pip_check": False},
    }
    assert "'env.A=\"b c\"'" in plan["entrypoint"]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((), "JOB.yaml is missing; see hotstart submit --help"),
        (("job.yaml",), "--bucket gs://... is missing; see hotstart submit --help"),
        (
            ("job.yaml", "--bucket", "gs://b", "--run-dir", "gs://b/r"),
            "--run-dir is for --restart; else write run_dir=gs://...",
        ),
        (
            ("job.yaml", "--restart", "x", "--bucket", "gs://b"),
            "--restart takes the job from the run's record, and no JOB.yaml; leave it out, or "
            "submit the job anew",
        ),
        (("--restart", "x"), "--restart: give --bucket gs://... or --run-dir gs://..."),
        (
            ("--restart", "x", "--run-dir", "/tmp"),
            "--run-dir: /tmp is not a bucket; give gs://bucket or gs://bucket/prefix",
        ),
        (("job.yaml", "--bucket", "gs://b", "--env", "A"), "--env: expected NAME=VALUE, got 'A'"),
    ],
)
def test_submit_usage_that_can_not_be_ends_with_2_in_one_line(
    job: Path, arguments: tuple[str, ...], problem: str
) -> None:
    ended = _invoke(*arguments)
    assert (ended.exit_code, ended.stderr) == (2, f"hotstart: {problem}\n")


def test_submit_env_that_looks_like_a_secret_is_told(job: Path) -> None:
    shown = _invoke("job.yaml", "--bucket", "gs://b", "--dry-run", "--env", "WANDB_API_KEY=x")
    assert shown.exit_code == 0
    assert shown.stderr == (
        "hotstart command line: env.WANDB_API_KEY: it shows in Ray's dashboard and in the run's "
        "record; if it is a secret, write secret_env.WANDB_API_KEY=file:/path or env:VARIABLE of "
        "each host\n"
    )


def test_moved_job_has_its_paths_below_the_new_folder(job: Path) -> None:
    config = load_job(job, ["cache.node_dir=/tmp/node"], environ={}).config
    old = {"folder": str(job.parent), "job_file": f"{job.parent}/jobs/job.yaml", "host": "h"}
    new, there = moved(config, old, "/new")
    assert (new.script, new.cache.node_dir) == ("/new/train.py", "/tmp/node")
    assert there == {"folder": "/new", "job_file": "/new/jobs/job.yaml", "host": "h"}
    assert moved(config, {}, "/new")[0] == config
    assert moved(config, {"folder": "/elsewhere"}, "/new")[0] == config


class Status(str):
    """As Ray's `JobStatus`."""

    def is_terminal(self) -> bool:
        return self in ("SUCCEEDED", "FAILED", "STOPPED")


class FakeClient:
    """A Jobs API that answers from scripts; None in `infos` is a connection that is refused."""

    def __init__(self, infos: list[tuple[str, int | None] | None], logs: list[list[str]]) -> None:
        self.infos = infos
        self.logs = logs

    def get_job_info(self, submission_id: str) -> Any:
        answer = self.infos.pop(0) if len(self.infos) > 1 else self.infos[0]
        if answer is None:
            raise ConnectionError("refused")
        return SimpleNamespace(status=Status(answer[0]), driver_exit_code=answer[1], message=None)

    async def tail_job_logs(self, submission_id: str) -> AsyncIterator[str]:
        for text in self.logs.pop(0):
            if text == "cut":
                raise RuntimeError("closed")
            yield text


def jobs_with(client: FakeClient) -> RayJobs:
    jobs = RayJobs.__new__(RayJobs)
    jobs._client = client
    jobs.address = "http://head:8265"
    return jobs


def test_follow_goes_on_after_cuts_without_doubling_a_line(clock: FakeClock) -> None:
    infos = [("RUNNING", None), ("RUNNING", None), None, ("RUNNING", None), ("SUCCEEDED", 0)]
    client = FakeClient(infos, [["one\n", "cut"], ["one\ntw", "cut"], ["one\ntwo\n"]])
    seen: list[str] = []
    ending = jobs_with(client).follow("r-s1", seen.append, clock=clock, sleep=clock.sleep)
    assert ("".join(seen), ending.status) == ("one\ntwo\n", "SUCCEEDED")


def test_follow_of_a_cluster_that_is_gone_ends_after_a_minute(clock: FakeClock) -> None:
    jobs = jobs_with(FakeClient([("RUNNING", None), None], [["one\n", "cut"]]))
    started = clock.now_s
    with pytest.raises(ContactLost) as caught:
        jobs.follow("r-s1", lambda text: None, clock=clock, sleep=clock.sleep)
    assert 60 < clock.now_s - started < 62
    assert str(caught.value) == (
        "lost contact with Ray at http://head:8265: refused; job r-s1 may still run, and its run "
        "record tells how it ended"
    )


def test_follow_that_is_cut_after_a_long_while_is_taken_up_again(clock: FakeClock) -> None:
    infos = [("RUNNING", None), None, ("RUNNING", None), ("SUCCEEDED", 0)]
    client = FakeClient(infos, [["one\n", "cut"], ["one\ntwo\n"]])
    seen: list[str] = []

    def write(text: str) -> None:
        seen.append(text)
        clock.now_s += 3600.0  # between this line and the next

    ending = jobs_with(client).follow("r-s1", write, clock=clock, sleep=clock.sleep)
    assert ("".join(seen), ending.status) == ("one\ntwo\n", "SUCCEEDED")


class HangingClient(FakeClient):
    """A head that takes connections and then says nothing: at once, or once it is followed."""

    def __init__(self, answers: int) -> None:
        super().__init__([("RUNNING", None)], [])
        self.answers = answers

    def get_job_info(self, submission_id: str) -> Any:
        self.answers -= 1
        if self.answers < 0:
            threading.Event().wait(30)
        return super().get_job_info(submission_id)

    async def tail_job_logs(self, submission_id: str) -> AsyncIterator[str]:
        yield "one\n"
        await asyncio.Event().wait()


@pytest.mark.parametrize("answers", [0, 1, 3])
def test_follow_of_a_head_that_hangs_ends_after_a_minute(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch, answers: int
) -> None:
    monkeypatch.setattr(submit, "_ANSWER_S", 0.01)
    monkeypatch.setattr(submit, "_QUIET_S", 0.01)
    seen: list[str] = []
    with pytest.raises(ContactLost) as caught:
        jobs_with(HangingClient(answers)).follow(
            "r-s1", seen.append, clock=clock, sleep=clock.sleep
        )
    assert str(caught.value) == (
        "lost contact with Ray at http://head:8265: no answer within 0.01 s; job r-s1 may still "
        "run, and its run record tells how it ended"
    )
    assert seen == (["one\n"] if answers else [])


def test_follow_of_a_log_that_does_not_end_ends_with_its_job(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submit, "_QUIET_S", 0.01)
    client = HangingClient(99)
    client.infos = [("RUNNING", None), ("RUNNING", None), ("SUCCEEDED", 0)]
    ending = jobs_with(client).follow("r-s1", lambda text: None, clock=clock, sleep=clock.sleep)
    assert ending.status == "SUCCEEDED"


def test_jobs_of_a_head_that_accepts_and_never_answers_are_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(submit, "_ANSWER_S", 0.2)
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        address = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        with pytest.raises(ClusterUnreachable) as caught:
            RayJobs(address)
    assert str(caught.value) == (
        f"no Ray Jobs API at {address}: no answer within 0.2 s; check --address, it is the "
        "dashboard's URL"
    )
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS")  # which the client has set


def test_follow_tells_how_long_a_driver_is_waited_for(clock: FakeClock) -> None:
    client = FakeClient([*[("PENDING", None)] * 25, ("RUNNING", None), ("SUCCEEDED", 0)], [[]])
    waited: list[float] = []
    jobs_with(client).follow(
        "r-s1", lambda text: None, waited.append, clock=clock, sleep=clock.sleep
    )
    assert waited == [5.0, 10.0]


RUNS = "gs://b/runs"


class KnownJobs:
    """A cluster that knows of submissions, and takes any other."""

    address = "http://head:8265"

    def __init__(self, known: dict[str, Known]) -> None:
        self.known = known
        self.taken: list[str] = []

    def submissions_of(self, run: str) -> dict[str, Known]:
        return self.known

    def submit(self, submission: Submission, tell: Any) -> bool:
        assert f"HOTSTART_SUBMISSION={submission.submission_id} " in submission.entrypoint
        self.taken.append(submission.submission_id)
        return True


@pytest.mark.parametrize(
    ("known", "again", "sent"),
    [
        ({}, False, "r-s1"),
        ({"r-s1": Known("FAILED", 2, RUNS)}, False, "r-s2"),
        ({"r-s1": Known("FAILED", 127, RUNS)}, False, "r-s2"),
        ({"r-s1": Known("FAILED", 1, RUNS)}, True, "r-s2"),
        ({"r-s1": Known("RUNNING", None, "gs://others/runs")}, False, "r-s2"),
        ({"r-s1": Known("STOPPED", None, RUNS), "r-s2": Known("FAILED", 2, RUNS)}, True, "r-s3"),
    ],
    ids=[
        "first",
        "bad_usage",
        "no_python",
        "again",
        "anothers",
        "again_after_another",
    ],
)
def test_submission_gets_an_id_of_its_own(
    job: Path, known: dict[str, Known], again: bool, sent: str
) -> None:
    jobs, submission = KnownJobs(known), prepare(str(job), [], "gs://b", Options(run="r"))
    found = _attach_or_send(jobs, submission, again)  # type: ignore[arg-type]
    assert (jobs.taken, found.submission_id, found.attached) == ([sent], sent, False)


@pytest.mark.parametrize("again", [False, True])
def test_submission_of_a_run_that_lives_is_attached_to_it(job: Path, again: bool) -> None:
    jobs = KnownJobs({"r-s1": Known("FAILED", 1, RUNS), "r-s2": Known("RUNNING", None, RUNS)})
    submission = prepare(str(job), [], "gs://b", Options(run="r"))
    found = _attach_or_send(jobs, submission, again)  # type: ignore[arg-type]
    assert (jobs.taken, found.submission_id, found.attached) == ([], "r-s2", True)


class RefusingClient:
    """A head that takes a job at the third time of asking, or never."""

    def __init__(self, takes_at: int, error: Exception) -> None:
        self.takes_at, self.error, self.asked = takes_at, error, 0

    def list_jobs(self) -> list[Any]:
        return []

    def submit_job(self, **arguments: Any) -> None:
        self.asked += 1
        if self.asked != self.takes_at:
            raise self.error


def test_submit_to_a_head_that_is_still_starting_is_tried_again(
    job: Path, clock: FakeClock
) -> None:
    client, told = RefusingClient(3, RuntimeError("no agent yet")), []  # type: ignore[var-annotated]
    jobs = jobs_with(client)  # type: ignore[arg-type]
    submission = prepare(str(job), [], "gs://b")
    assert jobs.submit(submission, told.append, clock=clock, sleep=clock.sleep)
    assert told == [
        "Ray at http://head:8265 does not take the job: no agent yet; asking again for up to 30 s"
    ]


@pytest.mark.parametrize(("error", "asked"), [(RuntimeError("no"), 32), (ValueError("no"), 1)])
def test_submit_that_ray_refuses_for_good_ends_in_usage(
    job: Path, clock: FakeClock, error: Exception, asked: int
) -> None:
    client = RefusingClient(0, error)
    with pytest.raises(UsageError) as caught:
        jobs_with(client).submit(  # type: ignore[arg-type]
            prepare(str(job), [], "gs://b"), clock=clock, sleep=clock.sleep
        )
    assert str(caught.value) == "Ray at http://head:8265 does not take the job: no"
    assert client.asked == asked


class ForgetfulClient:
    """A head whose answers to the first `lost` submissions are lost; `takes` says which it takes.

    `unseen` listings fail before it can be looked at again.
    """

    def __init__(self, lost: int, takes: set[int], unseen: int = 0) -> None:
        self.lost, self.takes, self.unseen = lost, takes, unseen
        self.asked: list[str] = []
        self.taken: list[Any] = []

    def list_jobs(self) -> list[Any]:
        if self.unseen:
            self.unseen -= 1
            raise ConnectionError("refused")
        return self.taken

    def submit_job(self, *, submission_id: str, metadata: Any, **arguments: Any) -> None:
        self.asked.append(submission_id)
        if any(job.submission_id == submission_id for job in self.taken):
            raise RuntimeError("already exists")
        number = len(self.asked)
        if number in self.takes:
            self.taken.append(
                SimpleNamespace(
                    submission_id=submission_id,
                    status="RUNNING",
                    driver_exit_code=None,
                    metadata=metadata,
                )
            )
        if number <= self.lost:
            raise requests.ConnectionError("cut")


@pytest.mark.parametrize(
    ("client", "asked"),
    [
        (ForgetfulClient(1, {1}), 1),
        (ForgetfulClient(1, {1}, unseen=3), 1),
        (ForgetfulClient(1, {2}), 2),
        (ForgetfulClient(2, {2}), 2),
    ],
    ids=["taken", "taken, head away for a while", "not taken", "taken the second time"],
)
def test_submit_whose_answer_is_lost_is_looked_for_and_never_started_twice(
    job: Path, clock: FakeClock, client: ForgetfulClient, asked: int
) -> None:
    submission, told = prepare(str(job), [], "gs://b", Options(run="r")), []  # type: ignore[var-annotated]
    jobs = jobs_with(client)  # type: ignore[arg-type]
    assert jobs.submit(submission, told.append, clock=clock, sleep=clock.sleep)
    assert client.asked == ["r-s1"] * asked
    assert len(client.taken) == 1
    assert told[0] == (
        "the answer of Ray at http://head:8265 to r-s1 is lost (cut); looking whether it has "
        "taken the job"
    )


def test_submit_whose_answer_is_lost_with_the_cluster_says_that_it_may_run(
    job: Path, clock: FakeClock
) -> None:
    client = ForgetfulClient(1, {1}, unseen=1000)
    submission, started = prepare(str(job), [], "gs://b", Options(run="r")), clock.now_s
    with pytest.raises(ContactLost) as caught:
        jobs_with(client).submit(submission, clock=clock, sleep=clock.sleep)  # type: ignore[arg-type]
    assert 60 < clock.now_s - started < 63
    assert str(caught.value) == (
        "the answer of Ray at http://head:8265 to r-s1 is lost, and so is the cluster (Ray at "
        "http://head:8265 does not list its jobs: refused): the job may run there; submit it again "
        "with --run r, which is attached to where it lives"
    )


def test_submit_whose_answers_are_all_lost_and_that_is_not_there_may_still_come(
    job: Path, clock: FakeClock
) -> None:
    client, started = ForgetfulClient(1000, set()), clock.now_s
    with pytest.raises(ContactLost) as caught:
        jobs_with(client).submit(  # type: ignore[arg-type]
            prepare(str(job), [], "gs://b", Options(run="r")), clock=clock, sleep=clock.sleep
        )
    assert str(caught.value) == (
        "Ray at http://head:8265 does not answer r-s1 (cut), and did not have it so far; submit it "
        "again with --run r, which is attached to where it lives"
    )
    assert 60 < clock.now_s - started < 63
