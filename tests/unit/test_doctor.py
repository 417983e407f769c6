"""What the doctor says of each thing, and that no probe keeps it from the others."""

from __future__ import annotations

import importlib.metadata
import json
import resource
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hotstart.conf.load import load_job
from hotstart.launcher import doctor_host, doctor_places
from hotstart.launcher.doctor import Asked, Line, Probe, examine, render, would_launch
from tests.support.metadata_server import metadata_server

pytestmark = pytest.mark.unit

SECRET = "ab" * 32
_VARIABLES = (
    *("STORAGE_EMULATOR_HOST", "GOOGLE_APPLICATION_CREDENTIALS", "CLOUDSDK_CONFIG"),
    *("NO_GCE_CHECK", "GCE_METADATA_HOST", "GCE_METADATA_TIMEOUT", "GCE_METADATA_DETECT_RETRIES"),
    *("HOTSTART_SIGNING_KEYS", "HOTSTART_SIGNING_KEY_FILE", "RAY_ADDRESS", "HOTSTART_HOME"),
)


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in _VARIABLES:
        monkeypatch.setenv(name, "")  # so that what a probe sets is taken away again
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


def asked(folder: Path, *overrides: str, starts_ray: bool = True) -> Asked:
    (folder / "train.py").touch()
    (folder / "job.yaml").write_text("script: train.py\n")
    return Asked(load_job(folder / "job.yaml", overrides), True, None, starts_ray)


def test_examine_gives_the_lines_in_order_whoever_is_first(tmp_path: Path) -> None:
    second_done = threading.Event()

    def first(_: Asked) -> Iterator[Line]:
        assert second_done.wait(10)
        yield Line("a", "first")

    def second(_: Asked) -> Iterator[Line]:
        yield Line("b", "second")
        second_done.set()

    lines = examine(asked(tmp_path), [Probe("a", first, 20), Probe("b", second, 20)])
    assert [line.text for line in lines] == ["first", "second"]
    assert would_launch(lines)


def test_probe_that_fails_is_a_line_beside_the_others(tmp_path: Path) -> None:
    def broken(_: Asked) -> Iterator[Line]:
        yield Line("a", "found before")
        raise RuntimeError("out of order")

    lines = examine(
        asked(tmp_path),
        [Probe("a", broken, 20), Probe("b", lambda _: iter([Line("b", "fine")]), 20)],
    )
    assert [line.text for line in lines] == ["found before", "not known", "fine"]
    assert lines[1].problem == "could not be looked at: RuntimeError: out of order"
    assert would_launch(lines)


def test_probe_without_an_answer_is_given_up_at_its_bound(tmp_path: Path) -> None:
    forever = threading.Event()

    def stuck(_: Asked) -> Iterator[Line]:
        yield Line("a", "found before")
        forever.wait(60)

    try:
        lines = examine(asked(tmp_path), [Probe("a", stuck, 0.2)])
    finally:
        forever.set()
    assert [line.text for line in lines] == ["found before", "not known"]
    assert lines[1].problem == "no answer within 0.2 s; a launch would wait for it too"


def test_render_marks_what_stops_and_what_is_to_know() -> None:
    lines = [
        Line("ray", "2.60.0", "--address"),
        Line("store", "gs://b", problem="no such bucket", stops=True),
        Line("open files", "1024", problem="raise it"),
    ]
    assert list(render(lines)) == [
        "ok    ray         2.60.0  [--address]",
        "STOP  store       gs://b",
        "                  -> no such bucket",
        "note  open files  1024",
        "                  -> raise it",
        "1 would stop a launch, 1 to know",
    ]
    assert not would_launch(lines)
    assert list(render(lines[:1]))[-1] == "nothing would stop a launch"


def only(lines: Iterator[Line]) -> Line:
    (line,) = lines
    return line


def test_versions_that_the_requirements_exclude_stop_a_launch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name == "gcsfs":
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.2.3" if name == "ray" else real(name)

    assert only(doctor_host.versions(asked(tmp_path))).problem == ""
    monkeypatch.setattr(importlib.metadata, "version", version)
    line = only(doctor_host.versions(asked(tmp_path)))
    assert line.stops
    assert line.problem == (
        "ray is 1.2.3, not <3,>=2.55; gcsfs is not installed: install hotstart's requirements"
    )
    assert "ray 1.2.3" in line.text and "gcsfs" not in line.text


def test_ray_that_is_not_installed_stops_a_launch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert only(doctor_places.ray(asked(tmp_path))) == Line(
        "ray", "not installed", problem="install it: pip install 'ray[default]'", stops=True
    )


def test_job_for_more_hosts_than_ray_here_has_stops_a_launch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "local")
    line = only(doctor_places.ray(asked(tmp_path, "workers=2", "workers_per_host=1")))
    assert (line.source, line.stops) == ("environment RAY_ADDRESS", True)
    assert "with one host; the job needs 2 hosts" in line.problem


def test_job_for_labeled_hosts_stops_where_ray_is_started_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "local")
    line = only(doctor_places.ray(asked(tmp_path, "labels={zone: a}")))
    assert line.stops and "the job needs zone=a: use --address" in line.problem


def test_ray_that_is_to_be_found_by_itself_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))  # where none has been started
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    line = only(doctor_places.ray(asked(tmp_path)))
    assert line.source == "environment RAY_ADDRESS is auto, and none runs on this machine"


def test_more_cpus_than_this_machine_has_are_to_know(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "local")
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    line = only(doctor_places.ray(asked(tmp_path, "workers=8")))
    assert (line.stops, line.problem) == (
        False,
        "the workers want 8 CPUs in all: Ray is told that it has them, they share 2",
    )
    assert only(doctor_places.ray(asked(tmp_path, "workers=2"))).problem == ""


def child_that_says(
    monkeypatch: pytest.MonkeyPatch, stdout: str = "", stderr: str = "", code: int = 0
) -> None:
    done = subprocess.CompletedProcess([], code, stdout, stderr)
    monkeypatch.setattr(subprocess, "run", lambda *arguments, **options: done)


def cluster_of(monkeypatch: pytest.MonkeyPatch, *free: float) -> None:
    """A cluster of hosts with 4 CPUs and a GPU each, of which so many CPUs are free."""
    total = {"CPU": 4.0, "GPU": 1.0}
    hosts = [
        {
            "node_id": str(n),
            "labels": {},
            "total": total,
            "free": {**total, "CPU": cpus},
            "groups": [],
        }
        for n, cpus in enumerate(free)
    ]
    child_that_says(monkeypatch, f"something of Ray's\n\n{json.dumps(hosts)}\n")
    monkeypatch.setattr(doctor_places, "check_address", lambda address: None)
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")


def test_cluster_with_room_for_the_job_is_told_with_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster_of(monkeypatch, 4, 4)
    line = only(doctor_places.ray(asked(tmp_path, "workers=4")))
    assert line.text.endswith(", head:6379: 2 hosts with {CPU: 8, GPU: 2}")
    assert (line.source, line.problem) == ("environment RAY_ADDRESS", "")


def test_cluster_whose_hosts_are_too_small_one_by_one_is_to_know(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster_of(monkeypatch, 4, 4)
    line = only(doctor_places.ray(asked(tmp_path, "workers=8")))
    assert line.problem == (
        "the job needs 1 x {CPU: 8} on one host; the cluster has 2 hosts with {CPU: 8}, of which "
        "{CPU: 8} are free; lacking: a host with {CPU: 8} free (none of them is that large, the "
        "largest have {CPU: 4}): a launch waits for that, up to 300 s (timeouts.placement_s)"
    )
    assert not line.stops


def test_cluster_that_is_busy_is_to_know(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster_of(monkeypatch, 1, 4)
    line = only(doctor_places.ray(asked(tmp_path, "workers=6", "workers_per_host=3")))
    assert "of which {CPU: 5} are free; lacking: " in line.problem


def test_secrets_that_are_not_here_stop_a_launch_that_starts_ray_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HERE", SECRET)
    assert list(doctor_places.secrets(asked(tmp_path))) == []
    here = "secret_env={TOKEN: 'env:HERE'}"
    assert only(doctor_places.secrets(asked(tmp_path, here))) == Line(
        "secrets", "TOKEN, looked up on each host", "command line"
    )
    lacking = "secret_env={TOKEN: 'env:HERE', OTHER: 'file:/no/such'}"
    line = only(doctor_places.secrets(asked(tmp_path, lacking)))
    assert (line.text, line.stops) == ("not all of OTHER, TOKEN", True)
    assert line.problem == (
        "secret_env.OTHER: file:/no/such: No such file or directory; bring the file to each host "
        "that runs workers"
    )
    line = only(doctor_places.secrets(asked(tmp_path, lacking, starts_ray=False)))
    assert line.problem.endswith("; workers run on the cluster, which may have it")
    assert not line.stops and SECRET not in repr(line)


def test_devices_whose_plugin_is_missing_say_more_than_an_assertion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child_that_says(monkeypatch, stderr="Traceback ...\nAssertionError\n", code=1)
    line = only(doctor_host.devices(asked(tmp_path, "platform=gpu")))
    assert (line.text, line.stops) == ("no gpu on this machine", True)
    assert line.problem == ("JAX's plugin for gpu is not installed, or finds none (AssertionError)")
    child_that_says(monkeypatch, stderr="RuntimeError: the TPU is in use by pid 7\n", code=1)
    line = only(doctor_host.devices(asked(tmp_path, "platform=tpu")))
    assert line.problem == "RuntimeError: the TPU is in use by pid 7"


def test_address_where_nobody_listens_stops_a_launch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    line = only(doctor_places.ray(asked(tmp_path)))
    assert line.stops and line.text.endswith(", 127.0.0.1:1")
    assert line.problem.startswith("cannot connect to Ray at 127.0.0.1:1: ")


SERVICE = {
    "type": "service_account",
    "client_email": "job@x.iam",
    "private_key": SECRET,
    "token_uri": "https://oauth2.googleapis.com/token",
}
USER = {"type": "authorized_user", "client_id": "i", "client_secret": "s", "refresh_token": SECRET}


def credentials() -> Line:
    return doctor_places._credentials(True)


def test_credentials_are_not_looked_for_where_no_bucket_is() -> None:
    assert doctor_places._credentials(False).text == "none needed: nothing is in a bucket"


def test_credentials_of_an_emulator_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:9")
    assert credentials() == Line(
        "credentials", "none: http://127.0.0.1:9", "environment STORAGE_EMULATOR_HOST"
    )


def test_credentials_in_a_file_are_named_and_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "key.json"
    path.write_text(json.dumps(SERVICE))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
    line = credentials()
    assert line.text == f"job@x.iam in {path}"
    assert (line.source, line.problem) == ("environment GOOGLE_APPLICATION_CREDENTIALS", "")
    assert SECRET not in repr(line)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (None, "cannot be read: No such file or directory"),
        (SECRET, "holds no Google credentials: download them again"),
        ('["a"]', "holds no Google credentials: download them again"),
        ("{}", "holds no Google credentials: download them again"),
        (json.dumps({**SERVICE, "private_key": "", "token_uri": None}),
         "lacks private_key, token_uri, which credentials of type service_account have: download "
         "them again"),
        (json.dumps({**USER, "refresh_token": ""}),
         "lacks refresh_token, which credentials of type authorized_user have: download them "
         "again"),
    ],
)  # fmt: skip
def test_credentials_file_that_is_none_stops_a_launch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, problem: str
) -> None:
    path = tmp_path / "key.json"
    if text is not None:
        path.write_text(text)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
    line = credentials()
    assert line.stops and line.problem == f"{path} {problem}"
    assert SECRET not in repr(line)


def test_credentials_of_gcloud_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / ".config/gcloud/application_default_credentials.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(USER))
    line = credentials()
    assert line.text == f"authorized user in {path}"
    assert line.source == "gcloud auth application-default login"
    assert SECRET not in repr(line)


def test_credentials_of_a_google_machine_are_its_service_account(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with metadata_server() as server:
        monkeypatch.setenv("GCE_METADATA_HOST", server.address)
        line = credentials()
    assert line == Line(
        "credentials", "job@jobs.iam.gserviceaccount.com", "this machine's metadata server"
    )


def test_no_credentials_are_to_know_and_not_looked_for_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import os

    monkeypatch.setenv("NO_GCE_CHECK", "true")
    line = credentials()
    assert line.text == "none: only what is public can be read"
    assert "gcloud auth application-default login" in line.problem and not line.stops
    assert os.environ["GCE_METADATA_DETECT_RETRIES"] == "1"


def test_signing_keys_are_shown_by_id_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert only(doctor_places.signing_keys(asked(tmp_path))).text.startswith("none")
    monkeypatch.setenv("HOTSTART_SIGNING_KEYS", f"hotstart-key-1-{SECRET}")
    line = only(doctor_places.signing_keys(asked(tmp_path)))
    assert (line.source, line.stops) == ("environment HOTSTART_SIGNING_KEYS", False)
    assert " signs, 1 verify: " in line.text
    assert SECRET not in repr(line)


def test_signing_key_that_cannot_be_used_stops_a_launch(tmp_path: Path) -> None:
    line = only(doctor_places.signing_keys(asked(tmp_path, "cache.signing_key_file=/no/key")))
    assert (line.source, line.stops) == ("command line", True)
    assert "/no/key cannot be read" in line.problem


def test_directories_are_told_with_their_sources(tmp_path: Path) -> None:
    cache, runs = tmp_path / "c", tmp_path / "r"
    runs.mkdir()
    this = asked(tmp_path, f"cache.location={cache}", f"run_dir={runs}")
    told = list(doctor_places.stores(this))
    assert [line.subject for line in told] == ["credentials", "store", "runs"]
    assert told[1].text.startswith(f"{cache} (to be made), ")
    assert told[2].text.startswith(f"{runs}, ")
    assert [line.source for line in told[1:]] == ["command line", "command line"]
    assert not cache.exists()
    assert would_launch(told)


def test_folder_below_a_file_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert doctor_host.folder_problem(tmp_path / "file" / "below") == (
        f"{tmp_path / 'file'} is not a directory: give another place"
    )
    assert doctor_host.folder_problem(tmp_path / "new" / "one") == ""


def test_cache_that_is_off_needs_no_store(tmp_path: Path) -> None:
    told = list(doctor_places.stores(asked(tmp_path, "cache.mode=off")))
    assert told[1] == Line("store", "none: the cache is off", "command line")


def test_node_directory_is_told_for_a_bucket(tmp_path: Path) -> None:
    assert only(doctor_host.node_directory(asked(tmp_path))).text.startswith("none")
    where = tmp_path / "n"
    this = asked(tmp_path, "cache.location=gs://b/c", f"cache.node_dir={where}")
    line = only(doctor_host.node_directory(this))
    assert line.text.startswith(f"{where} (to be made)")
    assert line.source == "command line"


def test_ports_are_taken_and_reached(tmp_path: Path) -> None:
    line = only(doctor_host.ports(asked(tmp_path)))
    assert not line.stops
    assert line.text.startswith(f"free ports of {doctor_host.own_ip()} (")


def test_address_that_this_host_does_not_have_stops_a_launch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_host, "own_ip", lambda: "203.0.113.1")
    line = only(doctor_host.ports(asked(tmp_path)))
    assert line.stops and line.text == "any free port of 203.0.113.1"


def test_few_open_files_are_to_know(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 1024))
    line = next(doctor_host.limits(asked(tmp_path)))
    assert (line.text, line.stops) == ("256, at most 1024", False)
    assert "ulimit -n 4096 or above" in line.problem


def test_shared_memory_matters_where_ray_is_started_here(tmp_path: Path) -> None:
    subjects = [line.subject for line in doctor_host.limits(asked(tmp_path, starts_ray=False))]
    assert subjects == ["open files"]
