"""Which hosts a gang needs."""

from __future__ import annotations

from typing import Any

import pytest

from hotstart.conf.schema import JobConfig, TpuSection
from hotstart.launcher.cluster import check_hosts
from hotstart.launcher.errors import UsageError
from hotstart.launcher.placement import (
    POD_TYPE_LABEL,
    SLICE_LABEL,
    TOPOLOGY_LABEL,
    Held,
    Host,
    HostShare,
    describe,
    describe_need,
    is_suitable,
    place,
    room_beside,
    total,
    workers_that_fit,
)

pytestmark = pytest.mark.unit


def test_place_without_workers_per_host_puts_all_on_one() -> None:
    job = JobConfig(workers=3, resources_per_worker={"CPU": 2.0})
    assert place(job) == (HostShare(0, (0, 1, 2), {"CPU": 6.0}),)


def test_place_fills_hosts_in_order_and_the_last_one_with_the_rest() -> None:
    job = JobConfig(workers=5, workers_per_host=2, resources_per_worker={"CPU": 1.0, "GPU": 4.0})
    assert place(job) == (
        HostShare(0, (0, 1), {"CPU": 2.0, "GPU": 8.0}),
        HostShare(1, (2, 3), {"CPU": 2.0, "GPU": 8.0}),
        HostShare(2, (4,), {"CPU": 1.0, "GPU": 4.0}),
    )


def test_place_more_room_than_workers_takes_one_host() -> None:
    job = JobConfig(workers=2, workers_per_host=8, resources_per_worker={"CPU": 1.0})
    assert place(job) == (HostShare(0, (0, 1), {"CPU": 2.0}),)


def test_place_leaves_out_what_is_zero() -> None:
    job = JobConfig(workers=2, resources_per_worker={"CPU": 0.5, "GPU": 0.0})
    assert place(job) == (HostShare(0, (0, 1), {"CPU": 1.0}),)


def test_place_of_workers_without_needs_still_makes_a_bundle() -> None:
    job = JobConfig(workers=2, resources_per_worker={"CPU": 0.0})
    assert place(job) == (HostShare(0, (0, 1), {"CPU": 0.001}),)


def test_total_adds_up_all_hosts() -> None:
    shares = (HostShare(0, (0,), {"CPU": 1.0, "a": 1.0}), HostShare(1, (1,), {"CPU": 2.5}))
    assert total(shares) == {"CPU": 3.5, "a": 1.0}
    assert total(()) == {}


def test_describe_sorts_and_writes_whole_numbers_without_a_point() -> None:
    assert describe({"GPU": 8.0, "CPU": 0.5}) == "{CPU: 0.5, GPU: 8}"


def host(name: str = "a", total: float = 8, free: float | None = None, **labels: str) -> Host:
    gpus = {"GPU": total}
    return Host(name, labels, gpus, gpus if free is None else {"GPU": free})


def job(workers: int = 8, least: int | None = None, **more: Any) -> JobConfig:
    options = {"workers_per_host": 2, "resources_per_worker": {"GPU": 4.0}, **more}
    return JobConfig(workers=workers, workers_min=least, **options)


@pytest.mark.parametrize(
    ("hosts", "spread", "packed"),
    [
        ([], 0, 0),
        ([host("a")], 2, 2),
        ([host("a", free=7.9)], 0, 0),
        ([host("a", 16), host("b", 24)], 4, 8),
        ([host("a"), host("b", free=0), host("c")], 4, 4),
        ([host(str(i)) for i in range(9)], 8, 8),
    ],
)
def test_workers_that_fit_counts_hosts_or_places(
    hosts: list[Host], spread: int, packed: int
) -> None:
    assert workers_that_fit(job(), hosts) == spread
    assert workers_that_fit(job(placement="pack"), hosts) == packed


def test_workers_that_fit_on_one_host_are_those_of_the_largest() -> None:
    config = job(workers_per_host=None)
    assert workers_that_fit(config, [host("a", 8), host("b", 12)]) == 3
    assert workers_that_fit(config, [host("a", 1000)]) == 8


@pytest.mark.parametrize(
    ("selector", "taken"),
    [("a", "a"), ("!a", "bn"), ("in(a,b)", "ab"), ("!in(a,b)", "n"), ("c", "")],
)
def test_labels_select_hosts(selector: str, taken: str) -> None:
    hosts = [host("a", zone="a"), host("b", zone="b"), host("n")]
    config = job(labels={"zone": selector})
    assert "".join(h.node_id for h in hosts if is_suitable(config, h.labels)) == taken
    assert workers_that_fit(config, hosts) == 2 * len(taken)


def test_workers_that_fit_on_slices_are_those_of_whole_ones() -> None:
    tpus = {"TPU": 4.0}
    config = JobConfig(
        workers=12,
        workers_min=4,
        workers_per_host=1,
        resources_per_worker=tpus,
        platform="tpu",
        tpu=TpuSection("4x4", "v6e"),
    )

    def of_slice(name: str, count: int, busy: int = 0) -> list[Host]:
        free = [{"TPU": 0.0}] * busy + [tpus] * (count - busy)
        return [Host(f"{name}{i}", {SLICE_LABEL: name}, tpus, free[i]) for i in range(count)]

    lone = [Host("lone", {}, tpus, tpus)]
    assert workers_that_fit(config, of_slice("a", 4)) == 4
    assert workers_that_fit(config, of_slice("a", 4, busy=1) + of_slice("b", 3) + lone * 4) == 0
    everything = [h for name in "abcd" for h in of_slice(name, 4)]
    assert workers_that_fit(config, everything) == 12
    assert "lacking: 1 whole slice that no one uses" in describe_need(config, of_slice("a", 3))


def test_workers_that_fit_on_slices_are_those_of_the_jobs_kind() -> None:
    config = JobConfig(
        workers=8,
        workers_min=4,
        workers_per_host=1,
        resources_per_worker={"TPU": 4.0},
        platform="tpu",
        tpu=TpuSection("4x4", "v6e"),
    )

    def of_slice(name: str, topology: str, pod_type: str) -> list[Host]:
        labels = {SLICE_LABEL: name, TOPOLOGY_LABEL: topology, POD_TYPE_LABEL: pod_type}
        return [Host(f"{name}{i}", labels, {"TPU": 4.0}, {"TPU": 4.0}) for i in range(4)]

    older = of_slice("a", "4x4", "v5p-32")
    longer = of_slice("b", "2x8", "v6e-16")
    assert workers_that_fit(config, older + longer) == 0
    assert workers_that_fit(config, older + longer + of_slice("c", "4x4", "v6e-16")) == 4
    assert describe_need(config, older).endswith(
        "lacking: 1 whole slice that no one uses (4 of the hosts are of other slices than v6e 4x4)"
    )


@pytest.mark.parametrize("is_seen", [True, False], ids=["taken off", "not yet"])
def test_room_beside_a_gang_that_may_share_hosts_is_without_its_own(is_seen: bool) -> None:
    """Two of its hosts' shares lie on `a`, which somebody else uses too; `b` is nobody's."""
    config = job(16, 2, placement="pack")
    held = Held("group", {"a": {"GPU": 16.0}})
    free, groups = (4.0, {"group", "other"}) if is_seen else (20.0, {"other"})
    hosts = [
        Host("a", {}, {"GPU": 24.0}, {"GPU": free}, frozenset(groups)),
        Host("b", {}, {"GPU": 8.0}, {"GPU": 8.0}),
    ]
    assert room_beside(config, hosts, held) == 2


@pytest.mark.parametrize("is_seen", [True, False], ids=["taken off", "not yet"])
def test_room_beside_a_gang_of_one_host_is_what_is_left_there(is_seen: bool) -> None:
    config = job(8, 1, workers_per_host=None)
    held = Held("group", {"a": {"GPU": 8.0}})
    free, groups = (8.0, {"group"}) if is_seen else (16.0, set())
    hosts = [Host("a", {}, {"GPU": 16.0}, {"GPU": free}, frozenset(groups)), host("b", 16)]
    assert room_beside(config, hosts, held) == 2


def test_room_beside_a_spread_gang_is_on_other_hosts() -> None:
    held = Held("group", {"a": {"GPU": 8.0}})
    assert room_beside(job(8, 2), [host("a", 16), host("b")], held) == 2
    assert room_beside(job(8, 2, placement="pack"), [host("a", 8)], held) == 0


@pytest.mark.parametrize(
    ("config", "hosts", "expected"),
    [
        (
            job(4),
            [host("a")],
            "needs 2 x {GPU: 8} on as many hosts; the cluster has 1 host with {GPU: 8}, of which "
            "{GPU: 8} are free; lacking: 1 x {GPU: 8} free",
        ),
        (
            job(4, placement="pack"),
            [host("a", free=0), host("b", 4)],
            "needs 2 x {GPU: 8}; the cluster has 2 hosts with {GPU: 12}, of which {GPU: 4} are "
            "free; lacking: 2 x {GPU: 8} free",
        ),
        (
            job(2, labels={"zone": "b"}),
            [host("a", zone="a"), host("b", 4, zone="b")],
            "needs 1 x {GPU: 8} on one host labeled zone=b; the cluster has 2 hosts with "
            "{GPU: 12}, of which {GPU: 12} are free; lacking: 1 x {GPU: 8} free (1 of the hosts "
            "is labeled otherwise; none of them is that large, the largest have {GPU: 4})",
        ),
        (
            job(8, 4, resources_per_worker={"NPU": 1.0}),
            [host("a"), host("b")],
            "needs 2 x {NPU: 2} on as many hosts, for 4 workers (at most 8); the cluster has 2 "
            "hosts with {NPU: 0}, of which {NPU: 0} are free; lacking: 2 x {NPU: 2} free (none of "
            "them has NPU)",
        ),
        (
            job(4, workers_per_host=None),
            [host("a")],
            "needs 1 x {GPU: 16} on one host; the cluster has 1 host with {GPU: 8}, of which "
            "{GPU: 8} are free; lacking: a host with {GPU: 16} free (none of them is that large, "
            "the largest have {GPU: 8})",
        ),
    ],
)
def test_describe_need_names_what_is_lacking(
    config: JobConfig, hosts: list[Host], expected: str
) -> None:
    assert describe_need(config, hosts) == expected


def test_ray_that_is_started_here_has_no_labels_of_a_users() -> None:
    shares = place(JobConfig())
    check_hosts("local", shares, spread=True, labels={"zone": "!a", "ray.io/x": "y"})
    check_hosts("host:6379", shares, spread=True, labels={"zone": "a"})
    with pytest.raises(UsageError) as caught:
        check_hosts("local", shares, spread=True, labels={"zone": "a"})
    assert str(caught.value) == (
        "Ray is started here, on a host without labels; the job needs zone=a: use --address, or "
        "leave labels out"
    )
