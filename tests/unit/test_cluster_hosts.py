"""Which of Ray's nodes count as hosts, against answers made up as Ray gives them."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from hotstart.launcher.cluster_hosts import look_at_hosts

pytestmark = pytest.mark.unit


def node(node_id: str, *, alive: bool = True) -> dict[str, Any]:
    return {"NodeID": node_id, "Alive": alive, "Labels": {"zone": "a"}, "Resources": {"CPU": 4.0}}


def state(node_id: str, status: str, free: float, *groups: str) -> SimpleNamespace:
    available = {"CPU": free}
    total = {"CPU": 4.0} | {f"bundle_group_{group}": 1000.0 for group in groups}
    return SimpleNamespace(
        node_id=node_id,
        node_status=status,
        available_resources=lambda: available,
        total_resources=lambda: total,
    )


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Stands for Ray; its `status` is what the GCS says."""
    made = SimpleNamespace(
        nodes=lambda: [node("busy"), node("idle"), node("leaving"), node("gone", alive=False)],
        get_runtime_context=lambda: SimpleNamespace(gcs_address="127.0.0.1:1"),
        status=SimpleNamespace(
            active_nodes=[state("busy", "RUNNING", 1.0, "f4"), state("leaving", "DRAINING", 4.0)],
            idle_nodes=[state("idle", "IDLE", 4.0)],
        ),
    )
    sdk = SimpleNamespace(get_cluster_status=lambda address, timeout: made.status)
    monkeypatch.setitem(sys.modules, "ray", made)
    monkeypatch.setitem(sys.modules, "ray.autoscaler.v2.sdk", sdk)
    return made


def test_hosts_are_what_lives_and_is_not_drained_with_what_is_free(ray: SimpleNamespace) -> None:
    found = {host.node_id: host.free["CPU"] for host in look_at_hosts()}
    assert found == {"busy": 1.0, "idle": 4.0}
    assert [host.groups for host in look_at_hosts()] == [{"f4"}, frozenset()]


def test_hosts_where_ray_does_not_say_what_is_free_are_all_free(ray: SimpleNamespace) -> None:
    ray.status = None
    found = {host.node_id: host.free["CPU"] for host in look_at_hosts()}
    assert found == {"busy": 4.0, "idle": 4.0, "leaving": 4.0}
