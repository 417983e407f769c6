"""Which hosts a gang needs: pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from hotstart.conf.schema import JobConfig


@dataclass(frozen=True)
class HostShare:
    """One host's part of the gang: its process indices and the bundle that they need."""

    host_index: int
    processes: tuple[int, ...]
    bundle: dict[str, float]


def place(config: JobConfig) -> tuple[HostShare, ...]:
    """The gang's hosts, process indices in order, `workers_per_host` on each."""
    per_host = config.workers_per_host or config.workers
    shares = []
    for host_index, first in enumerate(range(0, config.workers, per_host)):
        processes = tuple(range(first, min(first + per_host, config.workers)))
        bundle = {k: v * len(processes) for k, v in config.resources_per_worker.items() if v}
        shares.append(HostShare(host_index, processes, bundle or {"CPU": 0.001}))
    return tuple(shares)


def total(shares: Iterable[HostShare]) -> dict[str, float]:
    """The resources of all bundles together."""
    resources: dict[str, float] = {}
    for share in shares:
        for name, amount in share.bundle.items():
            resources[name] = resources.get(name, 0.0) + amount
    return resources


def describe(resources: Mapping[str, float]) -> str:
    """Resources as a person would write them: `{CPU: 2, GPU: 8}`."""
    return "{" + ", ".join(f"{k}: {v:g}" for k, v in sorted(resources.items())) + "}"
