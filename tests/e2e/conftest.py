"""One head with a dashboard for all tests of `hotstart submit`, and a bucket for each of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.gcs_emulator import create_bucket
from tests.support.gcs_proxy import GcsProxy
from tests.support.ray_head import RayHead, ray_head


@pytest.fixture(scope="session")
def head(_session_proxy: GcsProxy) -> Iterator[RayHead]:
    """A head whose hosts see the emulator through the proxy."""
    with ray_head({"STORAGE_EMULATOR_HOST": _session_proxy.url}) as running:
        yield running


@pytest.fixture
def bucket_url(proxy: GcsProxy, tmp_path: Path) -> str:
    """A bucket of this test's own, behind the same proxy."""
    name = f"submit-{tmp_path.parent.name}-{tmp_path.name}"[:60].lower().rstrip("-")
    create_bucket(proxy.url, name)
    proxy.reset()
    return f"gs://{name}"
