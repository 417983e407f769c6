"""What Ray has granted, or is asked for: the bundles of a gang's hosts, in a placement group."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import Any

from hotstart.conf.schema import JobConfig
from hotstart.launcher.placement import Held, HostShare

_FIRST_PAUSE_S = 0.01
_PAUSE_S = 0.1


class Reservation:
    """A placement group with one bundle for each host, in order. Nothing blocks but `wait`."""

    def __init__(self, shares: Sequence[HostShare], group: Any) -> None:
        self.shares = tuple(shares)
        self.group = group

    def wait(self, timeout_s: float) -> bool:
        """Whether Ray has granted it by then."""
        return granted_within(timeout_s, self.group)

    def bundle_index(self, host_index: int) -> int:
        """Which of the group's bundles is a host's."""
        return host_index

    def node_ids(self) -> list[str]:
        """Ray's ids of the nodes that the bundles are on, by host index."""
        import ray

        table = ray.util.placement_group_table(self.group)
        nodes = table.get("bundles_to_node_id") or {}
        return [str(nodes.get(index, "")) for index in range(len(self.shares))]

    def held(self) -> Held:
        """What has been granted."""
        by_node: dict[str, dict[str, float]] = {}
        for node_id, share in zip(self.node_ids(), self.shares, strict=True):
            there = by_node.setdefault(node_id, {})
            for name, amount in share.bundle.items():
                there[name] = there.get(name, 0.0) + amount
        return Held(self.group.id.hex(), by_node)

    def release(self) -> None:
        """Give it back, granted or not; also what runs in it ends."""
        import ray

        with contextlib.suppress(Exception):
            ray.util.remove_placement_group(self.group)


def granted_within(timeout_s: float, group: Any) -> bool:
    """Whether Ray has granted a placement group by then; asks at least once.

    Ray's own wait takes whole seconds, so a part of one is no wait at all.
    """
    until, pause_s = time.monotonic() + timeout_s, _FIRST_PAUSE_S
    while not group.wait(0):
        left_s = until - time.monotonic()
        if left_s <= 0:
            return False
        time.sleep(min(pause_s, left_s))
        pause_s = min(2 * pause_s, _PAUSE_S)
    return True


def reserve(config: JobConfig, shares: Sequence[HostShare]) -> Reservation:
    """Ask Ray for a gang's hosts; returns at once."""
    import ray

    if config.tpu.topology is not None:
        from hotstart.launcher.slices import SliceReservation

        return SliceReservation(config, shares)
    group = ray.util.placement_group(
        [share.bundle for share in shares],
        strategy="STRICT_SPREAD" if config.placement == "spread" else "PACK",
        bundle_label_selector=[dict(config.labels) for _ in shares] if config.labels else None,
    )
    return Reservation(shares, group)
