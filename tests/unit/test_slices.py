"""The reservation of whole slices, which Ray makes in calls that block; here with a Ray of air."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from hotstart.conf.schema import JobConfig, TpuSection
from hotstart.launcher import slices
from hotstart.launcher.errors import HostFailed
from hotstart.launcher.placement import Held, place
from hotstart.launcher.reservation import Reservation, granted_within, reserve
from hotstart.launcher.slices import SliceReservation
from tests.support.launch import await_true

pytestmark = pytest.mark.unit

JOB = JobConfig(
    platform="tpu",
    workers=4,
    workers_per_host=1,
    resources_per_worker={"TPU": 4.0, "CPU": 0.0},
    tpu=TpuSection("2x2x2", "v4"),
)


class AirSlices:
    """What `SlicePlacementGroup` gives."""

    def __init__(self, granted: bool = True) -> None:
        self.placement_group = SimpleNamespace(wait=lambda timeout_s: granted)
        self.heads_released = self.shut_down = 0

    def release_head_pgs(self) -> None:
        self.heads_released += 1

    def shutdown(self) -> None:
        self.shut_down += 1


def reserved(monkeypatch: pytest.MonkeyPatch, ask: Callable[..., Any]) -> SliceReservation:
    monkeypatch.setattr(slices, "_AGAIN_S", 0.01)
    monkeypatch.setattr(slices, "_ask", ask)
    made = reserve(JOB, place(JOB))
    assert isinstance(made, SliceReservation)
    return made


def test_slices_are_granted_and_given_back_once(monkeypatch) -> None:
    air, asked = AirSlices(), []
    made = reserved(monkeypatch, lambda config, hosts: asked.append(hosts) or air)
    assert made.wait(10)
    assert (asked, air.heads_released, air.shut_down) == ([4], 1, 0)
    made.release()
    made.release()
    assert air.shut_down == 1


def test_slices_that_are_not_ready_yet_are_waited_for(monkeypatch) -> None:
    air = AirSlices(granted=False)
    made = reserved(monkeypatch, lambda config, hosts: air)
    await_true(lambda: made.group is not None, 10)
    assert not made.wait(0.01)
    assert air.heads_released == 0
    made.release()
    assert air.shut_down == 1


def test_wait_does_not_block_on_ray_and_what_comes_after_a_release_is_given_back(
    monkeypatch,
) -> None:
    air, may_come = AirSlices(), threading.Event()

    def ask(config: JobConfig, hosts: int) -> AirSlices:
        assert may_come.wait(10)
        return air

    made = reserved(monkeypatch, ask)
    started = time.monotonic()
    assert not made.wait(0.05)
    assert time.monotonic() - started < 5
    made.release()
    assert air.shut_down == 0
    may_come.set()
    await_true(lambda: air.shut_down == 1, 10)


def test_slices_that_are_taken_are_asked_for_again(monkeypatch) -> None:
    answers = [TimeoutError("no head"), RuntimeError("no slice"), AirSlices()]

    def ask(config: JobConfig, hosts: int) -> Any:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    made = reserved(monkeypatch, ask)
    assert made.wait(10)
    made.release()
    assert answers == []


def test_slices_that_ray_does_not_know_end_the_run(monkeypatch) -> None:
    def ask(config: JobConfig, hosts: int) -> Any:
        raise ValueError("Invalid accelerator topology: '2x2x2'")

    made = reserved(monkeypatch, ask)
    with pytest.raises(HostFailed) as caught:
        made.wait(10)
    expected = "Ray can't reserve slices: Invalid accelerator topology: '2x2x2'"
    assert str(caught.value) == expected


@pytest.mark.parametrize("knows", [True, False], ids=["ray_2.60", "ray_2.55"])
def test_what_ray_is_asked_for(monkeypatch, knows: bool) -> None:
    asked: list[dict[str, Any]] = []

    class New:
        def __init__(
            self, *, chips_per_vm: int = 0, bundle_label_selector: Any = None, **rest: Any
        ) -> None:
            asked.append({"chips_per_vm": chips_per_vm, "labels": bundle_label_selector, **rest})

    class Old:
        def __init__(self, **rest: Any) -> None:
            asked.append(rest)

    def of_version(self: Any, topology: str, accelerator_version: str, resources_per_bundle: Any,
                   strategy: str, num_slices: int) -> None:  # fmt: skip
        asked.append(
            {
                "topology": topology,
                "accelerator_version": accelerator_version,
                "resources_per_bundle": resources_per_bundle,
                "strategy": strategy,
                "num_slices": num_slices,
            }
        )

    monkeypatch.setattr(Old, "__init__", of_version)
    tpu = pytest.importorskip("ray.util.tpu")
    monkeypatch.setattr(tpu, "SlicePlacementGroup", New if knows else Old)
    slices._ask(JOB, 4)
    common = {
        "topology": "2x2x2",
        "accelerator_version": "v4",
        "resources_per_bundle": {"TPU": 4.0},
        "strategy": "SPREAD",
        "num_slices": 2,
    }
    assert asked == [common | ({"chips_per_vm": 4, "labels": None} if knows else {})]


def test_grant_is_waited_for_by_parts_of_a_second() -> None:
    asked: list[float] = []

    def granted_at_last(timeout_s: float) -> bool:
        asked.append(timeout_s)
        return len(asked) == 4

    assert granted_within(5.0, SimpleNamespace(wait=granted_at_last))
    assert asked == [0] * 4
    asked.clear()
    assert not granted_within(0.0, SimpleNamespace(wait=granted_at_last))
    assert asked == [0]


def test_reservation_holds_by_node_what_its_hosts_got_there() -> None:
    config = JobConfig(workers=5, workers_per_host=2, resources_per_worker={"CPU": 1.0})

    class Granted(Reservation):
        def node_ids(self) -> list[str]:
            return ["a", "b", "a"]

    group = SimpleNamespace(id=bytes.fromhex("f4"))
    held = Granted(place(config), group).held()
    assert held == Held("f4", {"a": {"CPU": 3.0}, "b": {"CPU": 2.0}})
