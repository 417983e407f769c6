"""Parts of a simulated gang: agents' processes, where workers meet, what an agent has taken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hotstart.launcher.agent_cache import AgentCache
from hotstart.launcher.agent_resolver import AgentResolver
from hotstart.launcher.manifest import Manifest, ManifestEntry
from tests.simulation.checks import Checks
from tests.simulation.network import SimChannel
from tests.simulation.scheduler import Task
from tests.simulation.world import Host, SimProcess, World

FETCH_S = 60.0


class Meeting:
    """Where all workers of an attempt wait for each other, program by program."""

    def __init__(self, world: World, size: int) -> None:
        self._world = world
        self._size = size
        self._there: list[Task] = []

    def join(self) -> None:
        self._there.append(self._world.scheduler.check())
        if len(self._there) < self._size:
            self._world.scheduler.wait()
            return
        there, self._there = self._there, []
        for task in there:
            self._world.scheduler.wake(task)


class Agent:
    """An agent's process and the real cache in it."""

    def __init__(self, world: World, cluster: Cluster, index: int) -> None:
        self.index = index
        self.host = cluster.hosts[index]
        self.process = world.new_process("agent0" if index == 0 else "agent", self.host)
        self.workers: list[SimProcess] = []
        self.cache: AgentCache
        self.call(lambda: setattr(self, "cache", AgentCache(self.host.name)))

    def call(self, run: Callable[[], Any], timeout_s: float = FETCH_S) -> Any:
        """Run in the agent, and wait for it. Raises OSError where it is lost or too slow."""
        world = self.process.world
        caller = world.scheduler.check()
        answer: list[Any] = []

        def told() -> None:
            result = run()
            delay_s = world.rng.expovariate(1 / 0.002)
            world.scheduler.at(
                delay_s, lambda: (answer.append(result), world.scheduler.wake(caller))
            )

        if self.process.alive:
            self.process.spawn("call", told)
            self.process.on_end.append(lambda: world.scheduler.wake(caller))
        end_s = world.scheduler.now_s + timeout_s
        while not answer:
            if not self.process.alive:
                raise ConnectionError(f"{self.process.name} is lost")
            if world.scheduler.now_s >= end_s:
                raise TimeoutError(f"{self.process.name} does not answer")
            world.scheduler.wait(end_s - world.scheduler.now_s)
        return answer[0]


class Cluster:
    """One job: its hosts, its agents, its attempts."""

    def __init__(self, name: str, hosts: list[Host], workers: int) -> None:
        self.name = name
        self.hosts = hosts
        self.workers = workers
        self.agents: list[Agent] = []
        self.is_done = False


class Acknowledged(AgentResolver):
    """What an agent has taken from a worker must come into the store, whoever dies then."""

    def __init__(self, channel: SimChannel, checks: Checks, agent: SimProcess) -> None:
        super().__init__(channel)  # type: ignore[arg-type]
        self._checks = checks
        self._agent = agent

    def publish(self, key: str, digest: bytes, size_bytes: int, *, in_node: bool) -> bytes:
        since_s = self._agent.world.scheduler.now_s
        counts = super().publish(key, digest, size_bytes, in_node=in_node)
        if in_node and not self._agent.world.excused(since_s, self._agent, kind="disk full"):
            self._checks.promise(key, f"{self._agent.name} has taken it")
        return counts


def manifest_of(keys: list[str], processes: int) -> bytes:
    """What a run has learned of these programs."""
    everybody = ((0, processes - 1),)
    entries = tuple(ManifestEntry(key, 100, None, everybody, None, None, False) for key in keys)
    return Manifest(entries, "jax", "jaxlib", "cpu", processes).to_json()
