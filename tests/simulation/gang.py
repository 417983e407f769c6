"""Gangs under the launcher: agents with their hosts' caches, workers, one coordinator a gang.

One or two clusters share a bucket and run the same programs, each from attempt to attempt: a
worker or an agent that dies ends the attempt, as in the launcher, and the next one begins. All
workers of an attempt meet after each program, as in a collective.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
from collections.abc import Callable
from typing import Any

from hotstart.cache.config import CacheConfig
from hotstart.cache.counters import Counters
from hotstart.cache.guarded import GuardedStore
from hotstart.cache.shared import SharedCache, Tiers
from hotstart.launcher.agent_cache import Seat
from hotstart.launcher.upstream import Upstream
from tests.simulation.agents import Acknowledged, Agent, Cluster, Meeting, manifest_of
from tests.simulation.checks import Checks, watched_leases
from tests.simulation.coordinator_host import SimCoordinator, running_loop
from tests.simulation.jax_like import CompileError, JaxLike
from tests.simulation.nemesis import Nemesis
from tests.simulation.network import SHUT_RDWR, Network, SimChannel
from tests.simulation.primitives import Pool
from tests.simulation.scene import FLUSH_S, some_node, some_programs
from tests.simulation.seams import Names
from tests.simulation.stores import Bucket, NodeDirectory, SimStore
from tests.simulation.world import SimProcess, World

QUIET_AFTER_S = 300.0
_ATTEMPTS = 8
SILENCE_S = 60.0  # what the driver bears of an agent


class GangScenario:
    """The scenario; `run` is its main task."""

    def __init__(self, world: World) -> None:
        rng = world.rng
        self.world = world
        self.bucket = Bucket(world, "bucket")
        self.checks = Checks(world, self.bucket)
        self.network = Network(world)
        self._nodes: dict[str, Bucket] = {}
        self._programs = some_programs(world, self.bucket, self.checks, raising=0.05)
        self._read_ahead = rng.random() < 0.4
        self._nemesis = Nemesis(world, self.bucket, self.network)

    def seams(self) -> list[tuple[str, str, Any]]:
        """Names of the product's modules, and what stands for them here."""
        world = self.world
        watched = watched_leases(self.checks)

        def leases(store: Any, **how: Any) -> Any:
            process = world.process
            how |= {"first_poll_s": 0.1, "clock": process.monotonic, "sleep": process.sleep}
            return watched(store, **how)

        pool = functools.partial(Pool, world.scheduler)
        sockets = {"create_connection": self.network.connect, "SHUT_RDWR": SHUT_RDWR}
        loops = Names(asyncio, get_running_loop=running_loop)
        agent_cache = "hotstart.launcher.agent_cache"
        return [
            (agent_cache, "StoreLeases", leases),
            (agent_cache, "Upstream", functools.partial(Upstream, make_pool=pool)),
            (agent_cache, "DirectoryStore", lambda path, **how: self._node()),
            (agent_cache, "open_store", lambda location, **how: self._far()),
            (agent_cache, "Coordinator", functools.partial(SimCoordinator, self.network)),
            ("hotstart.launcher.coordinator_link", "socket", Names(socket, **sockets)),
            ("hotstart.launcher.coordinator_connection", "socket", Names(socket, **sockets)),
            ("hotstart.launcher.coordinator", "asyncio", loops),
        ]

    def run(self) -> None:
        """Start the clusters, wait for them, then look at what is left."""
        world, rng = self.world, self.world.rng
        clusters = []
        for number in range(rng.choice((1, 1, 2))):
            hosts = [world.add_host() for _ in range(rng.choice((1, 2, 3)))]
            clusters.append(Cluster(f"job{number}", hosts, rng.choice((1, 2))))
        for host in world.hosts:
            self._nodes[host.name] = some_node(world, self._programs)
        world.scheduler.at(QUIET_AFTER_S, self._be_quiet)
        for cluster in clusters:
            world.harness.spawn(cluster.name, functools.partial(self._drive, cluster))
        while not all(cluster.is_done for cluster in clusters):
            world.scheduler.sleep(1.0)
        self._be_quiet()
        world.scheduler.sleep(150.0)  # requests of the dead have arrived, what stood still goes on
        for cluster in clusters:  # the next start brings what is marked
            self._place(cluster)
        world.scheduler.sleep(150.0)
        self.checks.at_the_end()

    def _be_quiet(self) -> None:
        self.world.quiet = True

    def _far(self) -> GuardedStore:
        world = self.world
        store = SimStore(world, self.bucket, may_delete=not world.what_fails.may_not_delete)
        return GuardedStore(store, clock=world.process.monotonic)

    def _node(self) -> NodeDirectory:
        return NodeDirectory(self.world, self._nodes[self.world.process.host.name])

    # The driver: the launcher's attempt loop in short.

    def _drive(self, cluster: Cluster) -> None:
        world, attempt = self.world, 0
        world.scheduler.sleep(world.rng.expovariate(1 / 3))
        while True:
            attempt += 1
            lost = False
            try:
                if self._attempt(cluster, attempt):
                    break
            except OSError as error:  # an agent that does not answer is lost
                world.note(f"{cluster.name}: {error}")
                lost = True
            for agent in cluster.agents:
                for worker in agent.workers:
                    world.kill(worker)
            if lost or not all(agent.process.alive for agent in cluster.agents):
                self._drop(cluster, is_fault=True)
            if attempt >= _ATTEMPTS:
                self._be_quiet()
            world.scheduler.sleep(world.rng.expovariate(1 / 1))
        for agent in cluster.agents:
            with contextlib.suppress(OSError):
                agent.call(lambda agent=agent: agent.cache.flush(FLUSH_S), FLUSH_S + 5)
        self._drop(cluster, is_fault=False)
        cluster.is_done = True

    def _drop(self, cluster: Cluster, *, is_fault: bool) -> None:
        """The launcher's `Gang.close`: agents close, then are killed."""
        for agent in cluster.agents:
            with contextlib.suppress(OSError):
                agent.call(agent.cache.close, 5.0)
            self.world.kill(agent.process, is_fault=is_fault)
        cluster.agents = []

    def _place(self, cluster: Cluster) -> None:
        config = CacheConfig("/bucket", node_dir="/node")
        for index in range(len(cluster.hosts)):
            cluster.agents.append(Agent(self.world, cluster, index))
        agents = list(cluster.agents)
        coordinator = agents[0].call(agents[0].cache.serve) if len(agents) > 1 else None

        def fetch(host: int, key: str, digest: bytes) -> bytes | None:
            self.world.point("before an entry comes from a peer")
            data = agents[host].call(lambda: agents[host].cache.hand_out(key, digest))
            self.world.point("after an entry has come from a peer")
            return data

        for agent in agents:
            seat = Seat(agent.index, coordinator)
            open_ = functools.partial(agent.cache.open, config, seat, fetch)
            agent.process.spawn("open", open_)

    def _attempt(self, cluster: Cluster, attempt: int) -> bool:
        """Whether all workers have done all programs. Raises OSError where an agent is lost."""
        world = self.world
        if not cluster.agents:
            self._place(cluster)
        meeting = Meeting(world, len(cluster.agents) * cluster.workers)
        done: list[SimProcess] = []
        for agent in cluster.agents:
            if self._read_ahead:
                keys = [program.key for program in self._programs]
                manifest = manifest_of(keys, len(cluster.agents) * cluster.workers)
                ahead = functools.partial(agent.cache.read_ahead, attempt, manifest)
                agent.process.spawn("ahead", ahead)
        for agent in cluster.agents:
            start = functools.partial(self._start, cluster, agent, attempt, meeting, done)
            agent.workers = agent.call(start)
        workers = [worker for agent in cluster.agents for worker in agent.workers]
        while len(done) < len(workers):
            world.scheduler.sleep(0.2)
            lost = [w for w in workers if not w.alive and w not in done]
            lost += [agent.process for agent in cluster.agents if not agent.process.alive]
            if lost:
                world.note(f"{cluster.name}: attempt {attempt} is over: {lost[0].name} is lost")
                return False
            for agent in cluster.agents:
                if agent.process.stalled_until_s > world.scheduler.now_s + SILENCE_S:
                    world.scheduler.sleep(SILENCE_S)
                    raise TimeoutError(f"{agent.process.name} is silent")
        return True

    def _start(
        self,
        cluster: Cluster,
        agent: Agent,
        attempt: int,
        meeting: Meeting,
        done: list[SimProcess],
    ) -> list[SimProcess]:
        """In the agent: its workers of an attempt."""
        world = self.world
        channels: dict[int, SimChannel] = {}
        workers = []
        for local in range(cluster.workers):
            index = agent.index * cluster.workers + local
            worker = world.new_process("worker", agent.host)
            agent.process.children.append(worker)
            ours, theirs = self.network.pair(agent.process, worker, 0.0001)
            channels[index] = SimChannel(ours)
            workers.append((index, worker, SimChannel(theirs)))
        agent.cache.begin(attempt, {index: channel.send for index, channel in channels.items()})
        for index, worker, channel in workers:
            work = functools.partial(self._work, cluster, agent, worker, channel, attempt, meeting)
            finish = functools.partial(self._run_worker, worker, work, done)
            worker.spawn("main", finish)

            def listen(index: int = index, channel: SimChannel = channels[index]) -> None:
                for message in channel:
                    world.point("before a message of a worker")
                    agent.cache.heard(index, message)
                    world.point("after a message of a worker")
                agent.cache.gone(index, attempt)

            agent.process.spawn(f"from-{index}", listen)
        return [worker for _, worker, _ in workers]

    def _run_worker(
        self, worker: SimProcess, work: Callable[[], None], done: list[SimProcess]
    ) -> None:
        try:
            work()
            done.append(worker)
        except CompileError:
            self.world.note("compiling raised: the worker fails")
        self.world.end(worker)

    def _work(
        self,
        cluster: Cluster,
        agent: Agent,
        worker: SimProcess,
        channel: SimChannel,
        attempt: int,
        meeting: Meeting,
    ) -> None:
        world = self.world
        resolver = Acknowledged(channel, self.checks, agent.process)

        def listen() -> None:
            for message in channel:
                if "request" in message:
                    resolver.answered(message)

        worker.spawn("answers", listen)
        worker.sleep(world.rng.expovariate(1 / 0.5))
        counters = Counters()
        cache = SharedCache(
            Tiers(self._far(), self._node()),
            counters,
            resolver,
            clock=worker.monotonic,
            upload_threads=2,
        )
        allies = tuple(other.process for other in cluster.agents)
        gang = cluster.name, attempt
        jax = JaxLike(worker, self.checks, cache, counters, allies, gang)
        for program in self._programs:
            jax.run(program)
            meeting.join()
        world.point("before the flush")
        cache.flush(FLUSH_S)
        cache.close()
        world.point("after the end")
