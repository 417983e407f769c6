"""What counters get of the workers' reports, over attempts."""

from __future__ import annotations

from typing import Any

import pytest

from hotstart.launcher.agent import Agent
from hotstart.launcher.metrics import HostMetrics
from hotstart.launcher.ray_agent import RayAgent

pytestmark = pytest.mark.unit


class Series:
    """A counter or gauge that keeps what it was told, by run."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def inc(self, value: float, tags: dict[str, str]) -> None:
        self.values[tags["run"]] = self.values.get(tags["run"], 0.0) + value

    def set(self, value: float, tags: dict[str, str]) -> None:
        self.values[tags["run"]] = value


class Host:
    """The workers of a host, and what was sent of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, every_s: float = 3600.0) -> None:
        import ray.util.metrics

        self.series: dict[str, Series] = {}

        def declared(name: str, **options: Any) -> Series:
            return self.series.setdefault(name, Series())

        monkeypatch.setattr(ray.util.metrics, "Counter", declared)
        monkeypatch.setattr(ray.util.metrics, "Gauge", declared)
        self.reports: list[tuple[str, int, int, dict[str, Any]]] = []
        self.metrics = HostMetrics(lambda: self.reports, every_s=every_s)

    def has(self, attempt: int, *compiled: int) -> None:
        """The workers of an attempt, and what each has compiled so far."""
        self.reports = [
            ("lm-1", attempt, index, {"cache": {"compiled": count}, "last_step": 7 + index})
            for index, count in enumerate(compiled)
        ]

    def sent(self, name: str) -> float:
        return self.series[f"hotstart_{name}"].values["lm-1"]


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(monkeypatch)


def test_metrics_of_an_attempt_that_ends_between_ticks_are_counted(host: Host) -> None:
    host.has(1, 3, 4)
    host.metrics.send()
    host.has(1, 5, 4)
    host.metrics.send()
    host.metrics.send()
    host.has(2, 1, 0)
    host.metrics.close()
    assert host.sent("cache_compiled_total") == 10
    assert host.sent("last_step") == 7


def test_metrics_forget_workers_of_earlier_attempts(host: Host) -> None:
    for attempt in range(1, 50):
        host.has(attempt, 1, 1)
        host.metrics.send()
    assert host.sent("cache_compiled_total") == 98
    assert len(host.metrics._counted) == 2
    host.metrics.close()


def test_metrics_that_ray_refuses_cost_nothing(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(name: str, **options: Any) -> Series:
        raise ValueError("no metrics here")

    import ray.util.metrics

    monkeypatch.setattr(ray.util.metrics, "Gauge", refused)
    host.has(1, 1)
    host.metrics.send()
    host.metrics.close()


def test_agent_that_has_finished_an_attempt_has_sent_its_metrics(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[str] = []

    class Finishing(RayAgent):
        def __init__(self) -> None:  # without Ray
            self._metrics = Sending()  # type: ignore[assignment]

    class Sending:
        def send(self) -> None:
            told.append("sent")

    def finish(agent: Agent) -> tuple[dict[int, dict[str, Any]], int]:
        told.append("finished")
        return {}, 3

    monkeypatch.setattr(Agent, "finish", finish)
    assert Finishing().finish() == ({}, 3)
    assert told == ["finished", "sent"]
