"""Which hosts a gang needs, and how large a gang the cluster has room for: pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from hotstart.conf.schema import JobConfig

SLICE_LABEL = "ray.io/tpu-slice-name"
TOPOLOGY_LABEL = "ray.io/tpu-topology"
POD_TYPE_LABEL = "ray.io/tpu-pod-type"
_UNUSED = {"CPU": 0.001}
_TINY = 1e-6  # Ray counts resources in steps of 0.0001, and adds them up as floats


@dataclass(frozen=True)
class HostShare:
    """One host's part of the gang: its process indices and the bundle that they need."""

    host_index: int
    processes: tuple[int, ...]
    bundle: dict[str, float]


@dataclass(frozen=True)
class GangSize:
    """How many workers and hosts a gang has, and how few and many workers it may have."""

    process_count: int
    host_count: int
    least: int
    most: int


@dataclass(frozen=True)
class Host:
    """A node of the cluster that is alive: what it has, and how much of that is free.

    `groups` are the ids of the placement groups that are taken off what is free: Ray's account is
    about a second old.
    """

    node_id: str
    labels: Mapping[str, str]
    total: Mapping[str, float]
    free: Mapping[str, float]
    groups: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Held:
    """What a gang has been granted: the id of its placement group, and resources by node id."""

    group: str
    by_node: Mapping[str, Mapping[str, float]]


def place(config: JobConfig, workers: int | None = None) -> tuple[HostShare, ...]:
    """The hosts of a gang of `workers`, process indices in order, `workers_per_host` on each.

    None is for the most that the job may have.
    """
    workers = workers or config.workers
    per_host = config.workers_per_host or workers
    shares = []
    for host_index, first in enumerate(range(0, workers, per_host)):
        processes = tuple(range(first, min(first + per_host, workers)))
        bundle = {k: v * len(processes) for k, v in config.resources_per_worker.items() if v}
        shares.append(HostShare(host_index, processes, bundle or dict(_UNUSED)))
    return tuple(shares)


def size_of(config: JobConfig, shares: Sequence[HostShare]) -> GangSize:
    """The size of a gang with these hosts."""
    workers = sum(len(share.processes) for share in shares)
    return GangSize(workers, len(shares), config.least_workers, config.workers)


def sizes_of(config: JobConfig) -> range:
    """The numbers of workers that a gang of the job may have."""
    step = (config.workers_per_host or 1) * hosts_per_slice(config)
    return range(config.least_workers, config.workers + 1, step)


def hosts_per_slice(config: JobConfig) -> int:
    """How many hosts are taken together: those of a TPU's slice, else 1."""
    if config.tpu.topology is None:
        return 1
    return int(config.tpu.chips // config.resources_per_worker["TPU"])


def workers_that_fit(config: JobConfig, hosts: Iterable[Host]) -> int:
    """The most workers, in steps that the job allows, for which there is room; may be 0.

    Not more than the job's most, but it may be fewer than its least.
    """
    suitable = [host for host in hosts if is_suitable(config, host.labels)]
    if config.workers_per_host is None:
        each = {k: v for k, v in config.resources_per_worker.items() if v} or _UNUSED
        return min(config.workers, max((_times(each, host.free) for host in suitable), default=0))
    bundle = place(config, config.workers_per_host)[0].bundle
    places = {host.node_id: _times(bundle, host.free) for host in suitable}
    if config.placement == "spread" or config.tpu.topology is not None:
        places = {node_id: min(1, count) for node_id, count in places.items()}
    together = hosts_per_slice(config)
    if together > 1:
        slices: dict[str, int] = {}
        for host in suitable:
            name = host.labels.get(SLICE_LABEL, "")
            slices[name] = slices.get(name, 0) + places[host.node_id]
        count = sum(together for name, there in slices.items() if name and there == together)
    else:
        count = sum(places.values())
    return min(config.workers, count * config.workers_per_host)


def room_beside(config: JobConfig, hosts: Iterable[Host], held: Held) -> int:
    """For how many more workers there is room beside a gang, whose own room is not free.

    A gang without `workers_per_host` may only grow where it is, one that is spread, or of slices,
    only where it is not.
    """
    spread = config.placement == "spread" or config.tpu.topology is not None
    if config.workers_per_host is None:
        hosts = [host for host in hosts if host.node_id in held.by_node]
    elif spread:
        hosts = [host for host in hosts if host.node_id not in held.by_node]
    return workers_that_fit(config, [_less(host, held) for host in hosts])


def _less(host: Host, held: Held) -> Host:
    """The host, less what a gang holds there, where that is not taken off yet."""
    taken = held.by_node.get(host.node_id, {})
    if not taken or held.group in host.groups:
        return host
    free = {name: amount - taken.get(name, 0.0) for name, amount in host.free.items()}
    return replace(host, free=free)


def is_suitable(config: JobConfig, labels: Mapping[str, str]) -> bool:
    """Whether a host's labels, and its slice, are as the job wants them."""
    return selects(config.labels, labels) and is_of_kind(config, labels)


def is_of_kind(config: JobConfig, labels: Mapping[str, str]) -> bool:
    """Whether a host is of slices such as the job wants, as far as its labels say."""
    topology, generation = config.tpu.topology, config.tpu.generation
    if topology is None or generation is None:
        return True
    has = {name: labels.get(name, "").lower() for name in (TOPOLOGY_LABEL, POD_TYPE_LABEL)}
    return has[TOPOLOGY_LABEL] in ("", topology.strip().lower()) and (
        not has[POD_TYPE_LABEL] or has[POD_TYPE_LABEL].partition("-")[0] == generation.lower()
    )


def selects(selectors: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Whether labels are as these selectors of Ray's want them."""
    return all(_selects(selector, labels.get(name)) for name, selector in selectors.items())


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


def describe_size(least: int, most: int) -> str:
    """How many workers an attempt may have: `4`, or `2 to 8`."""
    return str(most) if least == most else f"{least} to {most}"


def describe_need(config: JobConfig, hosts: Sequence[Host]) -> str:
    """What a job needs, what the cluster has of it, and what is lacking, in one line."""
    shares = place(config, config.least_workers)
    bundle, count = shares[0].bundle, len(shares)
    needs = f"needs {count} x {describe(bundle)}"
    if config.tpu.topology is not None:
        slices = count // hosts_per_slice(config)
        needs += f" as {slices} whole slice{_s(slices)} of {config.tpu.topology}"
    elif config.placement == "spread" or count == 1:
        needs += " on as many hosts" if count > 1 else " on one host"
    if config.labels:
        needs += " labeled " + ", ".join(f"{k}={v}" for k, v in sorted(config.labels.items()))
    if config.workers_min is not None:
        needs += f", for {config.least_workers} workers (at most {config.workers})"
    has = {name: sum(host.total.get(name, 0.0) for host in hosts) for name in bundle}
    free = {name: sum(host.free.get(name, 0.0) for host in hosts) for name in bundle}
    return (
        f"{needs}; the cluster has {len(hosts)} host{_s(len(hosts))} with {describe(has)}, "
        f"of which {describe(free)} are free; lacking: {_lacking(config, hosts, bundle)}"
    )


def _lacking(config: JobConfig, hosts: Sequence[Host], bundle: Mapping[str, float]) -> str:
    labeled = [host for host in hosts if selects(config.labels, host.labels)]
    suitable = [host for host in labeled if is_of_kind(config, host.labels)]
    large = [host for host in suitable if _times(bundle, host.total)]
    unknown = sorted(name for name in bundle if not any(name in host.total for host in suitable))
    why = []
    if count := len(hosts) - len(labeled):
        why.append(f"{count} of the hosts {'is' if count == 1 else 'are'} labeled otherwise")
    if count := len(labeled) - len(suitable):
        kind = f"{config.tpu.generation} {config.tpu.topology}"
        are = "is of another slice" if count == 1 else "are of other slices"
        why.append(f"{count} of the hosts {are} than {kind}")
    if suitable and unknown:
        why.append(f"none of them has {', '.join(unknown)}")
    elif suitable and not large:
        most = {name: max(host.total.get(name, 0.0) for host in suitable) for name in bundle}
        why.append(f"none of them is that large, the largest have {describe(most)}")
    fit = workers_that_fit(config, hosts)
    missing = config.least_workers - fit
    if missing <= 0:
        text = "nothing, it is about to be taken"
    elif config.workers_per_host is None:
        text = f"a host with {describe(bundle)} free"
    else:
        count = -(-missing // config.workers_per_host)
        together = hosts_per_slice(config)
        text = (
            f"{count // together} whole slice{_s(count // together)} that no one uses"
            if together > 1
            else f"{count} x {describe(bundle)} free"
        )
    return f"{text} ({'; '.join(why)})" if why else text


def _times(bundle: Mapping[str, float], free: Mapping[str, float]) -> int:
    """How often a bundle fits."""
    least = min(free.get(name, 0.0) / amount + _TINY for name, amount in bundle.items())
    return max(0, int(least))


def _selects(selector: str, label: str | None) -> bool:
    """Whether Ray's label selector takes a node whose label is this; None where it has none."""
    negated = selector.startswith("!")
    text = selector.removeprefix("!")
    listed = re.fullmatch(r"in\((.*)\)", text)
    return (label in (listed[1].split(",") if listed else [text])) != negated


def _s(count: int) -> str:
    return "" if count == 1 else "s"
