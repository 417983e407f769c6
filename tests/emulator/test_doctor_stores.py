"""What the doctor says of buckets: of the emulator behind a proxy, and of a stand-in."""

from __future__ import annotations

import re
import uuid
from pathlib import Path

import pytest

from hotstart.conf.load import load_job
from hotstart.launcher.doctor import Asked, Line
from hotstart.launcher.doctor_places import stores
from tests.support.gcs_emulator import GcsEmulator, create_bucket
from tests.support.gcs_json_api import gcs_json_api
from tests.support.gcs_proxy import Fault, GcsProxy

pytestmark = pytest.mark.emulator


def told(folder: Path, *overrides: str) -> list[Line]:
    (folder / "train.py").touch()
    (folder / "job.yaml").write_text("script: train.py\n")
    job = load_job(folder / "job.yaml", overrides)
    return list(stores(Asked(job, True, None, True)))


def test_bucket_is_read_written_and_timed(proxy: GcsProxy, bucket: str, tmp_path: Path) -> None:
    credentials, store, _ = told(tmp_path, f"cache.location={bucket}/cache")
    assert credentials.text == f"none: {proxy.url}"
    assert re.fullmatch(rf"{bucket}/cache: can be read and written, \d+ ms a request", store.text)
    assert (store.source, store.problem, store.stops) == ("command line", "", False)
    made = [request for request in proxy.requests() if request.method == "POST"]
    assert [(request.object_name, request.status) for request in made] == [
        ("cache/hotstart-probe", 200)
    ]


def test_bucket_that_may_only_be_read_stops_a_job_that_writes(
    proxy: GcsProxy, bucket: str, tmp_path: Path
) -> None:
    proxy.inject(Fault("status", method="POST", status=403, times=9))
    store = told(tmp_path, f"cache.location={bucket}/cache")[1]
    assert store.stops and store.text.startswith(f"{bucket}/cache: can be read, ")
    assert "HTTP 403" in store.problem and "roles/storage.objectCreator" in store.problem

    reader = told(tmp_path, f"cache.location={bucket}/cache", "cache.mode=read-only")[1]
    assert (reader.problem, reader.stops) == ("", False)
    assert reader.text.startswith(f"{bucket}/cache: can be read, ")


def test_bucket_that_is_not_there_stops_a_launch(
    proxy: GcsProxy, bucket: str, tmp_path: Path
) -> None:
    store = told(tmp_path, f"cache.location={bucket}-not/cache")[1]
    assert store.stops
    assert f"there is no bucket {bucket}-not; create it" in store.problem


def test_bucket_of_runs_is_asked_for_permissions_and_not_written(
    emulator: GcsEmulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    name = f"runs-{uuid.uuid4().hex[:12]}"
    create_bucket(emulator.url, name)
    with gcs_json_api(emulator.url) as api:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", api.url)
        api.add(name)
        arguments = ("cache.mode=off", f"run_dir=gs://{name}/runs")
        runs = told(tmp_path, *arguments)[2]
        assert (runs.subject, runs.problem, runs.stops) == ("runs", "", False)
        api.permissions = frozenset({"storage.objects.get", "storage.objects.list"})
        runs = told(tmp_path, *arguments)[2]
    assert runs.stops
    assert runs.problem.startswith(f"this identity is reader in gs://{name} (unless a managed")
