"""Fixtures that tests of several folders share."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from tests.support.gcs_emulator import GcsEmulator, create_bucket, gcs_emulator
from tests.support.gcs_proxy import GcsProxy, gcs_proxy
from tests.support.hosts import Hosts, hosts
from tests.support.launch import RayNodes, ray_nodes


@pytest.fixture(scope="session")
def emulator() -> Iterator[GcsEmulator]:
    """A GCS emulator of this session, without its proxy."""
    with gcs_emulator() as running:
        yield running


@pytest.fixture(scope="session")
def _session_proxy(emulator: GcsEmulator) -> Iterator[GcsProxy]:
    with gcs_proxy(emulator.url) as running:
        yield running


@pytest.fixture
def proxy(_session_proxy: GcsProxy, monkeypatch: pytest.MonkeyPatch) -> GcsProxy:
    """A proxy in front of the emulator, to which gs:// goes in this test; without old faults."""
    _session_proxy.reset()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", _session_proxy.url)
    return _session_proxy


@pytest.fixture
def bucket(proxy: GcsProxy) -> str:
    """The `gs://` URL of an empty bucket of this test's own."""
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    create_bucket(proxy.url, name)
    proxy.reset()
    return f"gs://{name}"


@pytest.fixture(scope="module")
def two(_session_proxy: GcsProxy) -> Iterator[Hosts]:
    """Two hosts whose bucket is behind the proxy."""
    with hosts(2, {"STORAGE_EMULATOR_HOST": _session_proxy.url}) as running:
        yield running


@pytest.fixture(scope="module")
def nodes() -> Iterator[RayNodes]:
    """A Ray cluster of one raylet with two CPUs."""
    with ray_nodes(1, cpus=2) as running:
        yield running
