"""Which nodes Ray is about to lose: it drains them, by its autoscaler, `ray drain-node` or SIGTERM.

Ray puts nothing new on a node that it drains, and lets what runs there go on until the deadline.
Ray has no public call for this; what Ray Train uses lies in `ray._raylet`. Where that looks
unfamiliar, notices of Ray are not seen, one warning says so, and a lost node is still a preemption.
"""

from __future__ import annotations

import importlib
import logging
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

logger = logging.getLogger(__name__)

_POLL_S = 1.0
_AFTER_ERROR_S = 5.0
_EARLIER_MS = 1000
_PROBE_S = 2.0
_PROBES = 64
_PREEMPTION = 2  # autoscaler.proto, DrainNodeReason


class DrainWatch:
    """Polls Ray for the nodes of a gang, on a thread of its own, until `close`."""

    def __init__(
        self,
        node_ids: Sequence[str],
        draining: Callable[[], Mapping[str, int]] | None = None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """`node_ids` by host index. `draining` gives deadlines in milliseconds by node id, 0 for
        none."""
        self._node_ids = tuple(node_ids)
        self._draining = draining
        self._wall_clock = wall_clock
        self._known: dict[int, int] = {}
        self._fresh: dict[int, float | None] = {}
        self._lock = threading.Lock()
        self._over = threading.Event()
        threading.Thread(target=self._run, name="hotstart-drains", daemon=True).start()

    def take(self) -> dict[int, float | None]:
        """Host indices with a notice that is new, or whose time got shorter, and the seconds left.

        The deadline is a time of day by the clock of who set it; None where there is none.
        """
        with self._lock:
            fresh, self._fresh = self._fresh, {}
        return fresh

    def close(self) -> None:
        """Poll no more."""
        self._over.set()

    def look(self, draining: Mapping[str, int]) -> None:
        """Take what Ray says."""
        for index, node_id in enumerate(self._node_ids):
            deadline_ms = draining.get(node_id)
            if deadline_ms is None:
                continue
            known_ms = self._known.get(index)
            is_sooner = deadline_ms and (not known_ms or deadline_ms < known_ms - _EARLIER_MS)
            if known_ms is not None and not is_sooner:
                continue
            self._known[index] = deadline_ms
            left_s = deadline_ms / 1000 - self._wall_clock() if deadline_ms else None
            with self._lock:
                self._fresh[index] = None if left_s is None else max(0.0, left_s)

    def _run(self) -> None:
        try:
            draining = self._draining or _draining_of_ray()
        except Exception as error:
            logger.warning("Ray's notices of nodes that it drains are not seen: %s", error)
            return
        delay_s = 0.0
        while not self._over.wait(delay_s):
            delay_s = _POLL_S
            try:
                self.look(draining())
            except Exception as error:
                logger.info("Ray does not say which nodes it drains: %s", error)
                delay_s = _AFTER_ERROR_S


def _draining_of_ray() -> Callable[[], Mapping[str, int]]:
    import ray

    raylet: Any = importlib.import_module("ray._raylet")
    address = ray.get_runtime_context().gcs_address
    options = raylet.GcsClientOptions.create(
        address, None, allow_cluster_id_nil=True, fetch_cluster_id_if_nil=False
    )
    accessor = raylet.GlobalStateAccessor(options)
    accessor.connect()
    draining: Callable[[], Mapping[str, int]] = accessor.get_draining_nodes
    draining()
    return draining


def drain(node_id: str, left_s: float, why: str) -> None:
    """Have Ray drain a node that something else has said is about to go; may block for seconds.

    So nothing is put there any more, of this job or another.
    """
    import ray

    try:
        raylet: Any = importlib.import_module("ray._raylet")
        client = raylet.GcsClient(address=ray.get_runtime_context().gcs_address)
        deadline_ms = int((time.time() + left_s) * 1000)
        client.drain_node(node_id, _PREEMPTION, why, deadline_ms)
    except Exception as error:
        logger.warning("Ray can't be told that node %s is about to go: %s", node_id, error)


def dead_nodes(node_ids: Sequence[str]) -> list[str]:
    """Of these nodes, those that are gone: by Ray, or their raylets take no connections.

    Ray may take half a minute to miss a node. Blocks for at most 2 s, and for milliseconds where
    all are there.
    """
    import ray

    try:
        alive = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
    except Exception as error:
        logger.info("Ray does not say which nodes it has: %s", error)
        return []
    if not node_ids:
        return []
    with ThreadPoolExecutor(min(_PROBES, len(node_ids))) as pool:
        answers = list(pool.map(lambda node_id: _answers(alive.get(node_id)), node_ids))
    return [node_id for node_id, answer in zip(node_ids, answers, strict=True) if not answer]


def _answers(node: Mapping[str, Any] | None) -> bool:
    if node is None:
        return False
    address = node.get("NodeManagerAddress"), node.get("NodeManagerPort")
    try:
        with socket.create_connection(address, timeout=_PROBE_S):
            return True
    except (OSError, TypeError):
        return False
