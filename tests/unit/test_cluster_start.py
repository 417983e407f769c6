"""What a launch says where Ray can't be started on its machine; Ray is a stand-in that raises."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from hotstart.launcher import cluster
from hotstart.launcher.errors import ClusterUnreachable

pytestmark = pytest.mark.unit


def test_connect_where_ray_does_not_start_says_so_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def init(**options: Any) -> None:
        raise Exception("The current node timed out during startup.\nIt may be overloaded.")

    ray = SimpleNamespace(init=init, is_initialized=lambda: False, shutdown=lambda: None)
    monkeypatch.setitem(sys.modules, "ray", ray)
    with (
        pytest.raises(ClusterUnreachable) as refused,
        cluster.connect("local", {"CPU": 1.0}, lambda: False),
    ):
        pass
    assert str(refused.value) == (
        "Ray could not be started on this machine: The current node timed out during startup; "
        "where it is only busy, try again, or start Ray beforehand (`ray start --head`)"
    )
