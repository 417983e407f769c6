"""What the cluster's hosts have, and what of it is free, as Ray's GCS knows it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Sequence

from hotstart.launcher.errors import first_line
from hotstart.launcher.placement import Host

logger = logging.getLogger(__name__)

_CALL_S = 10
_GROUP = "bundle_group_"


def look_at_hosts() -> list[Host]:
    """The nodes that are alive and stay; a release or a death shows about a second later.

    A node that is drained takes nothing new.

    Ray has no other public call that tells per node what is free (it needs no autoscaler, and no
    dashboard). Where it does not answer as expected, all that a host has is taken to be free, and
    Ray's scheduler has the last word in any case. Blocks for milliseconds.
    """
    import ray

    free: dict[str, dict[str, float]] = {}
    groups: dict[str, frozenset[str]] = {}
    drained: set[str] = set()
    try:
        from ray.autoscaler.v2.sdk import get_cluster_status

        status = get_cluster_status(ray.get_runtime_context().gcs_address, timeout=_CALL_S)
        for node in (*status.active_nodes, *status.idle_nodes):
            if node.node_id:
                free[node.node_id] = node.available_resources()
                groups[node.node_id] = _groups_of(node.total_resources())
                if node.node_status == "DRAINING":
                    drained.add(node.node_id)
    except Exception as error:
        logger.info("what is free on each host is not known: %s", first_line(error))
    return [
        Host(
            node["NodeID"],
            dict(node.get("Labels") or {}),
            dict(node["Resources"]),
            free.get(node["NodeID"], dict(node["Resources"])),
            groups.get(node["NodeID"], frozenset()),
        )
        for node in ray.nodes()
        if node["Alive"] and node["NodeID"] not in drained
    ]


def _groups_of(resources: Iterable[str]) -> frozenset[str]:
    """The placement groups on a node: each has a resource `bundle_group_<id>` there."""
    return frozenset(name.removeprefix(_GROUP) for name in resources if name.startswith(_GROUP))


def is_node_alive(node_id: str) -> bool:
    """Whether Ray counts a node as alive; False also where it doesn't say."""
    import ray

    with contextlib.suppress(Exception):
        return any(node["NodeID"] == node_id and node["Alive"] for node in ray.nodes())
    return False


def gone_among(node_ids: Sequence[str]) -> list[int]:
    """The places in this list of the nodes that Ray has given up; none where it doesn't say."""
    import ray

    with contextlib.suppress(Exception):
        dead = {node["NodeID"] for node in ray.nodes() if not node["Alive"]}
        return [index for index, node_id in enumerate(node_ids) if node_id in dead]
    return []
