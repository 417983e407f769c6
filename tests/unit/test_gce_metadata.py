"""The metadata server is asked over real HTTP, and only where there is one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hotstart.launcher.gce_metadata import MetadataWatch
from tests.support.launch import await_true
from tests.support.metadata_server import MetadataServer, metadata_server

pytestmark = pytest.mark.unit


class Told:
    def __init__(self) -> None:
        self.notices: list[tuple[float | None, str]] = []
        self.came = threading.Event()

    def __call__(self, left_s: float | None, detail: str) -> None:
        self.notices.append((left_s, detail))
        self.came.set()


@pytest.fixture
def server() -> Iterator[MetadataServer]:
    with metadata_server() as running:
        yield running


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def watch(server: MetadataServer, told: Told, tmp_path: Path) -> Iterator[MetadataWatch]:
    made = MetadataWatch(told, {"GCE_METADATA_HOST": server.address}, tmp_path / "none")
    yield made
    made.close()


def waiting(server: MetadataServer, key: str) -> int:
    """Requests that wait for a change of this key from the value that is known."""
    asked = [r for r in server.requests if f"/{key}?" in r and "last_etag=0" not in r]
    return len(asked)


def test_preempted_is_told_at_once_and_costs_one_request_that_waits(
    server: MetadataServer, told: Told, watch: MetadataWatch
) -> None:
    await_true(lambda: waiting(server, "preempted") == 1, 5)
    assert not told.came.wait(0.3)
    assert waiting(server, "preempted") == 1
    server.set("instance/preempted", "TRUE")
    assert told.came.wait(5)
    assert told.notices == [(30.0, "preempted")]


def test_maintenance_that_terminates_is_told_and_one_that_migrates_is_not(
    server: MetadataServer, told: Told, watch: MetadataWatch
) -> None:
    await_true(lambda: waiting(server, "maintenance-event") == 1, 5)
    server.set("instance/maintenance-event", "MIGRATE_ON_HOST_MAINTENANCE")
    await_true(lambda: waiting(server, "maintenance-event") == 2, 5)
    assert told.notices == []
    server.set("instance/maintenance-event", "TERMINATE_ON_HOST_MAINTENANCE")
    assert told.came.wait(5)
    assert told.notices == [(60.0, "TERMINATE_ON_HOST_MAINTENANCE")]


def test_maintenance_of_a_host_with_gpus_gives_an_hour(
    server: MetadataServer, told: Told, tmp_path: Path
) -> None:
    (tmp_path / "version").touch()
    environ = {"GCE_METADATA_HOST": server.address}
    watch = MetadataWatch(told, environ, tmp_path / "none", tmp_path / "version")
    server.set("instance/maintenance-event", "TERMINATE_ON_HOST_MAINTENANCE")
    assert told.came.wait(5)
    watch.close()
    assert told.notices == [(3600.0, "TERMINATE_ON_HOST_MAINTENANCE")]


def test_notices_of_both_keys_are_told_once(
    server: MetadataServer, told: Told, watch: MetadataWatch
) -> None:
    await_true(lambda: waiting(server, "preempted") == 1, 5)
    server.set("instance/preempted", "TRUE")
    assert told.came.wait(5)
    server.set("instance/maintenance-event", "TERMINATE_ON_HOST_MAINTENANCE")
    assert not await_second(told)


def await_second(told: Told) -> bool:
    told.came.clear()
    return told.came.wait(0.3)


def test_server_that_fails_for_a_while_is_asked_again(server: MetadataServer, told: Told) -> None:
    server.fail(2)
    watch = MetadataWatch(told, {"GCE_METADATA_HOST": server.address})
    server.set("instance/preempted", "TRUE")
    assert told.came.wait(10)
    watch.close()
    assert told.notices == [(30.0, "preempted")]


def test_server_without_maintenance_events_still_tells_of_preemption(
    server: MetadataServer, told: Told
) -> None:
    del server.values["instance/maintenance-event"]
    watch = MetadataWatch(told, {"GCE_METADATA_HOST": server.address})
    server.set("instance/preempted", "TRUE")
    assert told.came.wait(5)
    watch.close()


def test_closed_watch_ends_its_threads(server: MetadataServer, told: Told) -> None:
    watch = MetadataWatch(told, {"GCE_METADATA_HOST": server.address})
    await_true(lambda: waiting(server, "preempted") == 1, 5)
    watch.close()
    names = {"hotstart-metadata", "hotstart-maintenance"}
    await_true(lambda: names.isdisjoint({t.name for t in threading.enumerate()}), 5)
    assert told.notices == []


@pytest.mark.parametrize(
    ("environ", "product", "is_on"),
    [
        ({}, None, False),
        ({}, "Standard PC (Q35)\n", False),
        ({}, "Google Compute Engine\n", True),
        ({"NO_GCE_CHECK": "true"}, "Google Compute Engine\n", False),
        ({"NO_GCE_CHECK": "true", "GCE_METADATA_HOST": "127.0.0.1:9"}, None, False),
        ({"GCE_METADATA_HOST": "127.0.0.1:9"}, None, True),
    ],
)
def test_server_is_asked_only_on_google_cloud(
    environ: dict[str, str],
    product: str | None,
    is_on: bool,
    told: Told,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = tmp_path / "product_name"
    if product is not None:
        file.write_text(product)
    monkeypatch.setattr(MetadataWatch, "_run", lambda self: None)
    watch = MetadataWatch(told, environ, file)
    assert watch.is_on is is_on
    watch.close()
