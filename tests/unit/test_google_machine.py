"""What a machine says of itself, and how soon it is known that it is none of Google Cloud."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from hotstart.cache.google_machine import GoogleMachine, this_machine
from tests.support.metadata_server import metadata_server

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def _as_it_is_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_GCE_CHECK", raising=False)


@pytest.fixture
def silent() -> Iterator[str]:
    """Takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_machine_of_google_tells_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    with metadata_server() as server:
        monkeypatch.setenv("GCE_METADATA_HOST", server.address)
        machine = this_machine(10)
    assert machine == GoogleMachine(
        "jobs", "1001", "us-central1-b", "job@jobs.iam.gserviceaccount.com"
    )
    assert machine.region == "us-central1"


def test_machine_is_not_asked_where_the_user_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with metadata_server() as server:
        monkeypatch.setenv("GCE_METADATA_HOST", server.address)
        monkeypatch.setenv("NO_GCE_CHECK", "true")
        assert this_machine(10) is None


def test_silent_server_is_given_up_within_the_bound(
    silent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GCE_METADATA_HOST", silent)
    started = time.monotonic()
    assert this_machine(0.2) is None
    assert time.monotonic() - started < 3


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.0 200 OK\r\n\r\n1001", b"SSH-2.0-x\r\n"])
def test_what_is_no_metadata_server_is_not_believed(
    answer: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            end, _ = server.accept()
            with end:
                end.recv(4096)
                end.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        monkeypatch.setenv("GCE_METADATA_HOST", f"127.0.0.1:{server.getsockname()[1]}")
        assert this_machine(5) is None
        thread.join(10)
