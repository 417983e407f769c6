"""The stores that a contract suite runs over."""

from __future__ import annotations

from pathlib import Path

import pytest

from hotstart.cache.store import Store, open_store
from tests.support.memory_store import MemoryStore


@pytest.fixture(params=["memory", "directory", "gcs"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty store: in memory, in a directory, in a bucket of the emulator."""
    if request.param == "memory":
        return MemoryStore()
    if request.param == "directory":
        return open_store(str(tmp_path / "store"))
    return open_store(request.getfixturevalue("bucket") + "/some/prefix")
