"""Which hosts a gang needs."""

from __future__ import annotations

import pytest

from hotstart.conf.schema import JobConfig
from hotstart.launcher.placement import HostShare, describe, place, total

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
