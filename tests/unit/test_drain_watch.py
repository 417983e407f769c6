from __future__ import annotations

import socket

import pytest

from hotstart.launcher.drain_watch import DrainWatch
from tests.support.launch import await_true

pytestmark = pytest.mark.unit

NOW_S = 1_000_000.0


def watch() -> DrainWatch:
    made = DrainWatch(("node-a", "node-b"), lambda: {}, wall_clock=lambda: NOW_S)
    made.close()
    return made


def in_ms(left_s: float) -> int:
    return int((NOW_S + left_s) * 1000)


def test_drain_of_a_node_of_the_gang_is_seen_once_with_its_seconds() -> None:
    drains = watch()
    drains.look({"node-b": in_ms(20), "node-z": in_ms(5)})
    assert drains.take() == {1: 20.0}
    drains.look({"node-b": in_ms(20)})
    assert drains.take() == {}


def test_drain_without_a_deadline_has_no_seconds_and_may_get_some() -> None:
    drains = watch()
    drains.look({"node-a": 0})
    assert drains.take() == {0: None}
    drains.look({"node-a": 0})
    assert drains.take() == {}
    drains.look({"node-a": in_ms(9)})
    assert drains.take() == {0: 9.0}


def test_drain_whose_deadline_comes_nearer_is_seen_again_and_a_later_one_is_not() -> None:
    drains = watch()
    drains.look({"node-a": in_ms(60)})
    drains.look({"node-a": in_ms(90)})
    assert drains.take() == {0: 60.0}
    drains.look({"node-a": in_ms(15)})
    assert drains.take() == {0: 15.0}


def test_drain_whose_deadline_is_over_has_no_time_left() -> None:
    drains = watch()
    drains.look({"node-a": in_ms(-5)})
    assert drains.take() == {0: 0.0}


def test_drain_is_polled_again_after_an_error() -> None:
    calls: list[int] = []

    def draining() -> dict[str, int]:
        calls.append(1)
        return {"node-a": 0}

    drains = DrainWatch(("node-a",), draining)
    try:
        await_true(lambda: drains.take() == {0: None}, 5)
    finally:
        drains.close()
    assert calls


def test_drain_where_ray_looks_unfamiliar_is_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from hotstart.launcher import drain_watch

    def unfamiliar() -> None:
        raise AttributeError("no GlobalStateAccessor")

    monkeypatch.setattr(drain_watch, "_draining_of_ray", unfamiliar)
    drains = DrainWatch(("node-a",))
    await_true(lambda: bool(caplog.records), 5)
    drains.close()
    assert [record.message for record in caplog.records] == [
        "Ray's notices of nodes that it drains are not seen: no GlobalStateAccessor"
    ]


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [("listens", True), ("closed", False), ("dead", False), ("unknown", False)],
)
def test_node_is_alive_where_its_raylet_takes_connections(
    monkeypatch: pytest.MonkeyPatch, nodes: str, expected: bool
) -> None:
    import ray

    from hotstart.launcher.drain_watch import dead_nodes

    with socket.socket() as raylet:
        raylet.bind(("127.0.0.1", 0))
        if nodes != "closed":
            raylet.listen()
        node = {
            "NodeID": "other" if nodes == "unknown" else "node-a",
            "Alive": nodes != "dead",
            "NodeManagerAddress": "127.0.0.1",
            "NodeManagerPort": raylet.getsockname()[1],
        }
        monkeypatch.setattr(ray, "nodes", lambda: [node])
        assert dead_nodes(["node-a"]) == ([] if expected else ["node-a"])
