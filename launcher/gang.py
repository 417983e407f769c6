"""The gang on Ray: a placement group, one agent actor a host, and what they report.

All Ray calls of a run are here. The gang lives for the whole run; an agent that is lost takes
the gang down with it, and the next attempt is placed anew.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from hotstart.launcher.agent import Agent, HostInfo
from hotstart.launcher.errors import HostFailed, PlacementTimeout
from hotstart.launcher.outcome import AgentLost
from hotstart.launcher.placement import HostShare, describe, total
from hotstart.launcher.plan import AttemptPlan
from hotstart.launcher.workers import Event

logger = logging.getLogger(__name__)

_POLL_S = 0.2
_CALL_S = 30.0
_AGENTS_S = 120.0


class Gang:
    """Agents on their hosts. Made by `place_gang`; every method blocks."""

    def __init__(self, shares: Sequence[HostShare], group: Any) -> None:
        self._shares = shares
        self._group = group
        self._agents: list[Any] = []
        self._infos: list[HostInfo] = []
        self._node_ids: list[str] = []
        self._cursors: list[int] = []
        self._ends: dict[int, int] = {}
        self._polls: dict[Any, int] = {}
        self._started_at = 0.0
        self.lost: list[AgentLost] = []

    def start_agents(self, is_interrupted: Callable[[], bool]) -> bool:
        """Create the agents; returns when all have answered, False if interrupted meanwhile.

        Raises `HostFailed`.
        """
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        actor = ray.remote(_RayAgent)
        for share in self._shares:
            bundle = dict(share.bundle)
            self._agents.append(
                actor.options(
                    num_cpus=bundle.pop("CPU", 0),
                    num_gpus=bundle.pop("GPU", 0),
                    memory=bundle.pop("memory", None),
                    resources=bundle or None,
                    max_concurrency=4,
                    scheduling_strategy=PlacementGroupSchedulingStrategy(
                        self._group, placement_group_bundle_index=share.host_index
                    ),
                ).remote()
            )
        refs = [agent.describe.remote() for agent in self._agents]
        deadline = time.monotonic() + _AGENTS_S
        waiting = refs
        while waiting:
            if is_interrupted():
                return False
            if time.monotonic() > deadline:
                raise HostFailed(
                    f"{len(waiting)} of {len(refs)} agents did not start within {_AGENTS_S:.0f} s; "
                    "see Ray's logs on its hosts"
                )
            _, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=_POLL_S)
        try:
            answers = ray.get(refs)
        except ray.exceptions.RayError as error:
            raise HostFailed(f"an agent did not start: {_cause(error)}") from error
        self._infos = [info for info, _ in answers]
        self._node_ids = [node_id for _, node_id in answers]
        self._cursors = [0] * len(self._agents)
        return True

    @property
    def hosts(self) -> list[HostInfo]:
        """Where the agents are, by host index."""
        return self._infos

    def fresh_coordinator(self) -> str | None:
        """`host:port` for the jax.distributed coordinator, on process 0's host.

        None where an agent, that one or another, was found to be lost.
        """
        answers = self._call_all("give a free port", lambda i: (self._agents[i].free_port, ()))
        return None if self.lost else f"{self._infos[0].ip}:{answers[0]}"

    def start(self, attempt: AttemptPlan, decided_at: float) -> None:
        """Start all workers of an attempt that was decided at `decided_at`, monotonic.

        Raises `HostFailed`.
        """
        self._started_at = decided_at
        elapsed_s = time.monotonic() - decided_at
        self._call_all(
            "start its workers",
            lambda i: (self._agents[i].start, (attempt, self._shares[i].processes, elapsed_s)),
        )

    def events(self) -> Iterator[tuple[int, Event]]:
        """What has happened since the last call, each with its attempt; blocks at most 0.2 s.

        An agent that has died is added to `lost`.
        """
        import ray

        for index in range(len(self._agents)):
            if index not in self._polls.values() and not self._is_lost(index):
                ref = self._agents[index].events.remote(self._cursors[index])
                self._polls[ref] = index
        if not self._polls:
            return
        ready, _ = ray.wait(list(self._polls), num_returns=1, timeout=_POLL_S)
        for ref in ready:
            index = self._polls.pop(ref)
            try:
                batch = ray.get(ref)
            except ray.exceptions.RayError as error:
                self._lose(index, error)
                continue
            self._cursors[index] = batch.next_cursor
            yield from batch.events

    def stop(self, grace_s: float, *, ask: bool) -> None:
        """End all workers; returns when they are reaped."""
        self._call_all(
            "stop its workers",
            lambda i: (self._agents[i].stop, (grace_s, ask)),
            timeout_s=grace_s + 10,
        )

    def finish(self) -> dict[int, dict[str, Any]]:
        """The reports of all workers of the attempt, by process index.

        `events` may still have something of the attempt, until `drained`.
        """
        reports: dict[int, dict[str, Any]] = {}
        answers = self._call_all(
            "give its workers' reports", lambda i: (self._agents[i].finish, ()), may_fail=True
        )
        for index, (found, end) in answers.items():
            reports |= found
            self._ends[index] = end
        return reports

    def drained(self) -> bool:
        """Whether `events` has given all that the agents had seen when they finished."""
        return all(
            self._cursors[index] >= end
            for index, end in self._ends.items()
            if not self._is_lost(index)
        )

    def close(self) -> None:
        """Give everything back to Ray."""
        import ray

        with contextlib.suppress(Exception):
            self._call_all("close", lambda i: (self._agents[i].close, ()), timeout_s=3)
        for agent in self._agents:
            with contextlib.suppress(Exception):
                ray.kill(agent)
        with contextlib.suppress(Exception):
            ray.util.remove_placement_group(self._group)

    def _call_all(
        self,
        what: str,
        call: Callable[[int], tuple[Any, tuple[Any, ...]]],
        timeout_s: float = _CALL_S,
        *,
        may_fail: bool = False,
    ) -> dict[int, Any]:
        """One call on each agent that is there, in parallel; the answers by host index.

        `what` is what it asks for. An error inside an agent is raised as `HostFailed`; with
        `may_fail` it only costs that agent's answer.
        """
        import ray

        refs = {}
        for index in range(len(self._agents)):
            if not self._is_lost(index):
                method, arguments = call(index)
                refs[index] = method.remote(*arguments)
        ray.wait(list(refs.values()), num_returns=len(refs), timeout=timeout_s) if refs else None
        answers = {}
        for index, ref in refs.items():
            try:
                answers[index] = ray.get(ref, timeout=0.001)
            except ray.exceptions.GetTimeoutError:
                logger.warning("the agent on %s does not answer", self._infos[index].host)
                self._lose(index, None)
            except ray.exceptions.RayTaskError as error:
                message = f"{self._infos[index].host} can't {what}: {_cause(error)}"
                if not may_fail:
                    raise HostFailed(message) from error
                logger.warning("%s", message)
            except ray.exceptions.RayError as error:
                self._lose(index, error)
        return answers

    def _is_lost(self, index: int) -> bool:
        return any(lost.host_index == index for lost in self.lost)

    def _lose(self, index: int, error: BaseException | None) -> None:
        if not self._is_lost(index):
            logger.info("agent %d lost: %s", index, error)
            self.lost.append(
                AgentLost(
                    host_index=index,
                    host=self._infos[index].host,
                    node_alive=_is_node_alive(self._node_ids[index]),
                    processes=self._shares[index].processes,
                    at_s=time.monotonic() - self._started_at,
                )
            )


class _RayAgent(Agent):
    """An `Agent` that knows its node."""

    def __init__(self) -> None:
        import ray

        super().__init__(ray.util.get_node_ip_address())

    def describe(self) -> tuple[HostInfo, str]:  # type: ignore[override]
        import ray

        return super().describe(), ray.get_runtime_context().get_node_id()


def place_gang(
    shares: Sequence[HostShare],
    *,
    spread: bool,
    timeout_s: float,
    is_interrupted: Callable[[], bool],
    tell: Callable[[str], None],
) -> Gang | None:
    """Wait for the hosts and put an agent on each; None if interrupted meanwhile.

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
        started_all = gang.start_agents(is_interrupted)
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


def _cause(error: BaseException) -> str:
    """In one line, what lies under an error of Ray's, whose text has a whole traceback."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, BaseException):
        return (f"{type(cause).__name__}: {cause}".splitlines() or [""])[0]
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()


def _is_node_alive(node_id: str) -> bool:
    import ray

    with contextlib.suppress(Exception):
        return any(node["NodeID"] == node_id and node["Alive"] for node in ray.nodes())
    return False
