"""Wait for the cluster's resources and put an agent on each host of a gang."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from hotstart.launcher.errors import PlacementTimeout
from hotstart.launcher.gang import Gang
from hotstart.launcher.placement import HostShare, describe, total
from hotstart.launcher.plan import AttemptPlan

_POLL_S = 0.2


def place_gang(
    shares: Sequence[HostShare],
    first: AttemptPlan,
    *,
    spread: bool,
    timeout_s: float,
    is_interrupted: Callable[[], bool],
    tell: Callable[[str], None],
) -> Gang | None:
    """Wait for the hosts and put an agent on each; None if interrupted meanwhile.

    The agents start processes for the `first` attempt, whose coordinator isn't known yet.

    Says through `tell` what it waits for, every 10 s. Raises `PlacementTimeout` or `HostFailed`.
    """
    import ray

    group = ray.util.placement_group(
        [share.bundle for share in shares], strategy="STRICT_SPREAD" if spread else "PACK"
    )
    started = time.monotonic()
    next_word_s = 2.0
    while not group.wait(_POLL_S):
        waited_s = time.monotonic() - started
        if is_interrupted() or waited_s > timeout_s:
            ray.util.remove_placement_group(group)
            if is_interrupted():
                return None
            raise PlacementTimeout(f"{_needs(shares)}; gave up after {waited_s:.0f} s "
                                   "(timeouts.placement_s)")  # fmt: skip
        if waited_s > next_word_s:
            next_word_s += 10.0
            tell(f"{_needs(shares)}; waiting up to {timeout_s:.0f} s")
    gang = Gang(shares, group)
    try:
        started_all = gang.start_agents(first, is_interrupted)
    except BaseException:
        gang.close()
        raise
    if not started_all:
        gang.close()
        return None
    return gang


def _needs(shares: Sequence[HostShare]) -> str:
    import ray

    alive = [node for node in ray.nodes() if node["Alive"]]
    free = ray.available_resources()
    wanted = sorted(total(shares))
    has = {k: ray.cluster_resources().get(k, 0.0) for k in wanted}
    return (
        f"needs {len(shares)} x {describe(shares[0].bundle)} on as many hosts; the cluster has "
        f"{len(alive)} hosts with {describe(has)}, "
        f"of which {describe({k: free.get(k, 0.0) for k in wanted})} are free"
    )
