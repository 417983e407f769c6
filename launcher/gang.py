"""The gang on Ray: one agent actor a host, what they are asked for, and what they report.

The gang lives for the whole run; an agent that is lost takes the gang down with it, and the next
attempt is placed anew (`place_gang.py`).
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hotstart.cache.config import CacheConfig
from hotstart.launcher.agent import HostInfo
from hotstart.launcher.agent_cache import Seat
from hotstart.launcher.ahead_calls import AheadCalls
from hotstart.launcher.cluster_hosts import gone_among, is_node_alive
from hotstart.launcher.drain_watch import dead_nodes
from hotstart.launcher.errors import CacheRequired, HostFailed, HostLost, UsageError, first_line
from hotstart.launcher.leaving import LeavingHosts
from hotstart.launcher.outcome import AgentLost
from hotstart.launcher.owner_watch import Sign
from hotstart.launcher.placement import GangSize
from hotstart.launcher.plan import AttemptPlan
from hotstart.launcher.preemption import PreemptionNotice
from hotstart.launcher.ray_agent import cause_of, create_agent
from hotstart.launcher.reservation import Reservation
from hotstart.launcher.workers import Event

if TYPE_CHECKING:
    from hotstart.launcher.bucket_lifetime import Lived

logger = logging.getLogger(__name__)

_POLL_S = 0.2
_CALL_S = 30.0
_AGENTS_S = 120.0
_SILENCE_S = 60.0  # an agent that lives answers a poll within 10 s


class Gang(AheadCalls):
    """Agents on their hosts. Made by `place_gang`; every method blocks."""

    def __init__(
        self,
        reservation: Reservation,
        size: GangSize,
        room_beside: Callable[[], int],
    ) -> None:
        """`room_beside` tells for how many workers there is room beside this gang."""
        super().__init__()
        self.size = size
        self._shares = reservation.shares
        self._reservation = reservation
        self._room_beside = room_beside
        self._infos: list[HostInfo] = []
        self._node_ids: list[str] = []
        self._cursors: list[int] = []
        self._answered_at: dict[int, float] = {}  # by each agent's own clock
        self._taken: list[tuple[int, Event]] = []  # of polls while workers were started
        self._ends: dict[int, int] = {}
        self._polls: dict[Any, tuple[int, float]] = {}  # host index, and when it was asked
        self._started_at = 0.0
        self.beat_age_s: Callable[[], float] = lambda: 0.0  # of the run's owner
        self._attempt = 0
        self._leaving: LeavingHosts | None = None
        self.lost: list[AgentLost] = []

    def start_agents(self, first: AttemptPlan, is_interrupted: Callable[[], bool]) -> bool:
        """Create the agents; returns when all have answered, False if interrupted meanwhile.

        They start the workers of the `first` attempt, which wait for their plans.
        Raises `HostFailed`, and `HostLost` where a node has gone meanwhile.
        """
        import ray

        reservation = self._reservation
        self._agents += [
            create_agent(share, reservation.group, reservation.bundle_index(share.host_index))
            for share in self._shares
        ]
        node_ids = reservation.node_ids()
        refs = [agent.describe.remote() for agent in self._agents]
        for agent, share in zip(self._agents, self._shares, strict=True):
            agent.prepare.remote(first, share.processes)  # what fails here fails again in `start`
        deadline = time.monotonic() + _AGENTS_S
        waiting = refs
        while waiting:
            if is_interrupted():
                return False
            if time.monotonic() > deadline:
                _raise_if_lost(node_ids)
                raise HostFailed(
                    f"{len(waiting)} of {len(refs)} agents did not start within {_AGENTS_S:.0f} s; "
                    "see Ray's logs on its hosts"
                )
            _, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=_POLL_S)
        try:
            answers = ray.get(refs)
        except ray.exceptions.RayError as error:
            _raise_if_lost(node_ids)
            raise HostFailed(f"an agent did not start: {cause_of(error)}") from error
        self._infos = [info for info, _ in answers]
        self._node_ids = [node_id for _, node_id in answers]
        self._cursors = [0] * len(self._agents)
        self._leaving = LeavingHosts([info.host for info in self._infos], self._node_ids)
        return True

    def could_grow(self) -> bool:
        """Whether the cluster has room for a larger gang that the job would take."""
        size = self.size
        if size.process_count >= size.most or self.lost:
            return False
        try:
            return self._room_beside() > 0
        except Exception as error:  # Ray doesn't say: the gang that is there will do
            logger.info("room beside the gang is not known: %s", first_line(error))
            return False

    @property
    def leaving(self) -> dict[int, float]:
        """Hosts that are about to go, and when, monotonic: the next attempt does without them."""
        return self._leaving.gone_s if self._leaving is not None else {}

    @property
    def hosts(self) -> list[HostInfo]:
        """Where the agents are, by host index."""
        return self._infos

    def open_cache(self, cache: CacheConfig | None) -> None:
        """Open the caches of all hosts, which resolve keys together; they are not waited for."""
        coordinator = None
        if cache is not None and cache.compile == "once" and len(self._agents) > 1:
            answers = self._call_all(
                "serve the coordinator",
                lambda i: (self._agents[i].serve_coordinator, ()),
                hosts=(0,),
            )
            coordinator = answers.get(0)
        import ray

        agents = ray.put(self._agents)  # once: as an argument they would be written N x N times
        for index, agent in enumerate(self._agents):
            agent.open_cache.remote(cache, Seat(index, coordinator), agents)

    def flush(self, timeout_s: float) -> bool:
        """Block until all that workers published is in the store; False where it is not."""
        answers = self._call_all(
            "store what its workers compiled",
            lambda i: (self._agents[i].flush_cache, (timeout_s,)),
            timeout_s=timeout_s + 5,
            may_fail=True,
        )
        return len(answers) == len(self._agents) and all(answers.values())

    def take_stats(self) -> list[dict[str, Any]]:
        """What each host has done for its workers' caches since the last call."""
        answers = self._call_all(
            "say what it has read and written",
            lambda i: (self._agents[i].take_stats, ()),
            may_fail=True,
        )
        return [answers[index] for index in sorted(answers) if answers[index]]

    def check_store(
        self, cache: CacheConfig, source: str, is_interrupted: Callable[[], bool]
    ) -> None:
        """Raise where process 0's host can't write the cache's location, which `source` has set.

        `UsageError`, in strict mode `CacheRequired`; see `store_check`. A lost agent says nothing,
        and once `is_interrupted` it is not waited for.
        """
        import ray

        ref = self._agents[0].check_store.remote(cache, source)
        while not ray.wait([ref], timeout=_POLL_S)[0]:
            if is_interrupted():
                return
        with contextlib.suppress(ray.exceptions.RayError):
            if problem := ray.get(ref):
                raise (CacheRequired if cache.strict else UsageError)(problem)

    def look_at_lifetime(self, lived: Lived, tell: Callable[[str], None]) -> None:
        """Have process 0's host look at the lifecycle rules of the run's buckets; does not block.

        `tell` gets each of its warnings, on a thread of Ray's.
        """

        def say(answer: Future[list[str]]) -> None:
            with contextlib.suppress(Exception):  # lost agents say nothing
                for warning in answer.result():
                    tell(f"warning: {warning}")

        # Not by a thread that waits: Ray may be shut down before the answer is there.
        self._agents[0].lifetime_warnings.remote(lived).future().add_done_callback(say)

    def check_signing_keys(self, cache: CacheConfig, ours: Sequence[str]) -> None:
        """Raise where a host's signing keys don't go with the driver's, whose ids are `ours`.

        `HostFailed` where it can't use them, `UsageError` where one side signs with a key that
        the other doesn't have.
        """
        answers = self._call_all(
            "use its signing key", lambda i: (self._agents[i].key_ids, (cache,))
        )
        for index, ids in answers.items():
            if not ids or ids[0] not in ours or ours[0] not in ids:
                raise UsageError(
                    f"{self._infos[index].host} has the signing keys {', '.join(ids) or 'none'}, "
                    f"the driver {', '.join(ours)}; each must have the key that the other signs "
                    "with, its first: bring one key file to all hosts (docs/trust.md)"
                )

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
        self._attempt = attempt.attempt
        if self._leaving is not None:
            self._leaving.begin()
        self._answered_at |= self._call_all("answer", lambda i: (self._agents[i].now, ()))
        elapsed_s = time.monotonic() - decided_at

        def start(index: int) -> tuple[Any, tuple[Any, ...]]:
            processes = self._shares[index].processes
            return self._agents[index].start, (attempt, processes, elapsed_s, self._sign(index))

        def poll() -> None:  # the first to start must hear of their owner while others do
            self._taken += self._take(0.0)

        self._call_all("start its workers", start, meanwhile=poll)

    def go_on(self, attempt: int) -> None:
        """Let all workers of an attempt enter user code; does not block."""
        for agent in self._agents:
            with contextlib.suppress(Exception):  # a lost agent's workers have ended with it
                agent.go_on.remote(attempt)

    def tell(self, attempt: int, message: dict[str, Any]) -> None:
        """Send all workers of an attempt a message; does not block."""
        for agent in self._agents:
            with contextlib.suppress(Exception):
                agent.tell.remote(attempt, message)

    def events(self) -> Iterator[tuple[int, Event]]:
        """What has happened since the last call, each with its attempt; blocks at most 0.2 s.

        An agent that has died is added to `lost`, a host with a notice to `leaving`.
        """
        taken, self._taken = self._taken, []
        yield from taken
        yield from self._take(_POLL_S)

    def _take(self, timeout_s: float) -> Iterator[tuple[int, Event]]:
        import ray

        for notice in self._leaving.fresh() if self._leaving is not None else ():
            yield self._attempt, notice

        asked = {index for index, _ in self._polls.values()}
        for index in range(len(self._agents)):
            if index not in asked and not self._is_lost(index):
                ref = self._agents[index].events.remote(self._cursors[index], self._sign(index))
                self._polls[ref] = index, time.monotonic()
        self._lose_silent()
        if not self._polls:
            return
        first, _ = ray.wait(list(self._polls), num_returns=1, timeout=timeout_s)
        if not first:
            return
        ready, _ = ray.wait(list(self._polls), num_returns=len(self._polls), timeout=0)
        for ref in ready:
            index, _ = self._polls.pop(ref)
            try:
                batch = ray.get(ref)
            except ray.exceptions.RayError as error:
                self._lose(index, error)
                continue
            self._cursors[index] = batch.next_cursor
            self._answered_at[index] = batch.answered_at
            for attempt, event in batch.events:
                if isinstance(event, PreemptionNotice) and self._leaving is not None:
                    event = self._leaving.note(index, event)
                yield attempt, event

    def _sign(self, index: int) -> Sign:
        """How old the owner's beat is, for an agent; worth nothing before that has answered."""
        return Sign(self._answered_at.get(index, 0.0), self.beat_age_s())

    def stacks(self) -> dict[int, str]:
        """What the threads of all workers do now, by process index, of agents that answer."""
        answers = self._call_all(
            "say what its workers do", lambda i: (self._agents[i].stacks, ()), may_fail=True
        )
        return {index: text for found in answers.values() for index, text in found.items()}

    def stop(self, grace_s: float, *, ask: bool) -> None:
        """End all workers; returns when they are reaped."""
        self._call_all(
            "stop its workers",
            lambda i: (self._agents[i].stop, (grace_s, ask)),
            timeout_s=grace_s + 10,
        )

    def finish(self) -> dict[int, dict[str, Any]]:
        """The reports of all workers of the attempt, by process index.

        By now Ray knows of a node that went away, whose agent may have been missed before that.
        `events` may still have something of the attempt, until `drained`.
        """
        reports: dict[int, dict[str, Any]] = {}
        answers = self._call_all(
            "give its workers' reports", lambda i: (self._agents[i].finish, ()), may_fail=True
        )
        for index, (found, end) in answers.items():
            reports |= found
            self._ends[index] = end
        gone = gone_among(self._node_ids)
        for index in gone:
            self._lose(index, None, node_is_gone=True)
        self.lost = [
            replace(lost, node_alive=False) if lost.host_index in gone else lost
            for lost in self.lost
        ]
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

        if self._leaving is not None:
            self._leaving.close()
        with contextlib.suppress(Exception):
            for lost in self.lost:  # it may live on a node that Ray has lost, for a while
                self._agents[lost.host_index].close.remote()
            self._call_all("close", lambda i: (self._agents[i].close, ()), timeout_s=3)
        for agent in self._agents:
            with contextlib.suppress(Exception):
                ray.kill(agent)
        self._reservation.release()

    def _call_all(
        self,
        what: str,
        call: Callable[[int], tuple[Any, tuple[Any, ...]]],
        timeout_s: float = _CALL_S,
        *,
        hosts: Sequence[int] | None = None,
        may_fail: bool = False,
        meanwhile: Callable[[], None] | None = None,
    ) -> dict[int, Any]:
        """One call on each agent that is there, or on those of `hosts`; the answers by host index.

        All are made in parallel. `what` is what it asks for. An error inside an agent is raised
        as `HostFailed`; with `may_fail` it only costs that agent's answer. `meanwhile` is called
        now and then until all have answered.
        """
        import ray

        refs = {}
        for index in range(len(self._agents)) if hosts is None else hosts:
            if not self._is_lost(index):
                method, arguments = call(index)
                refs[index] = method.remote(*arguments)
        waiting, until = list(refs.values()), time.monotonic() + timeout_s
        while waiting and (left_s := until - time.monotonic()) > 0:
            some_s = left_s if meanwhile is None else min(left_s, _POLL_S)
            _, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=some_s)
            if waiting and meanwhile is not None:
                meanwhile()
        answers = {}
        for index, ref in refs.items():
            try:
                answers[index] = ray.get(ref, timeout=0.001)
            except ray.exceptions.GetTimeoutError:
                logger.warning("the agent on %s does not answer", self._infos[index].host)
                self._lose(index, None)
            except ray.exceptions.RayTaskError as error:
                message = f"{self._infos[index].host} can't {what}: {cause_of(error)}"
                if not may_fail:
                    raise HostFailed(message) from error
                logger.warning("%s", message)
            except ray.exceptions.RayError as error:
                self._lose(index, error)
        return answers

    def look_at_nodes(self) -> None:
        """Add hosts whose nodes are gone to `lost`, whether or not their agents still answer."""
        dead = dead_nodes(self._node_ids)
        for index, node_id in enumerate(self._node_ids):
            if node_id in dead:
                self._lose(index, None, node_is_gone=True)

    def _is_node_gone(self, index: int) -> bool:
        node_id = self._node_ids[index]
        return not is_node_alive(node_id) or bool(dead_nodes([node_id]))

    def _lose_silent(self) -> None:
        """An agent that is stopped, or cut off, neither answers nor dies."""
        import ray

        now = time.monotonic()
        stale = [ref for ref, (_, asked_at) in self._polls.items() if now - asked_at > _SILENCE_S]
        if not stale:
            return
        # This driver itself may have been silent, with answers that it has not read.
        _, unanswered = ray.wait(stale, num_returns=len(stale), timeout=0)
        for ref in unanswered:
            index, _ = self._polls.pop(ref)
            self._lose(index, None)

    def _is_lost(self, index: int) -> bool:
        return any(lost.host_index == index for lost in self.lost)

    def _lose(self, index: int, error: BaseException | None, *, node_is_gone: bool = False) -> None:
        if not self._is_lost(index):
            logger.info("agent %d lost: %s", index, error)
            is_gone = node_is_gone or _is_preempted(error) or self._is_node_gone(index)
            self.lost.append(
                AgentLost(
                    host_index=index,
                    host=self._infos[index].host,
                    node_alive=not is_gone,
                    processes=self._shares[index].processes,
                    at_s=time.monotonic() - self._started_at,
                )
            )


def _is_preempted(error: BaseException | None) -> bool:
    """Whether Ray itself says that an actor's node was drained under it."""
    return bool(getattr(error, "preempted", False))


def _raise_if_lost(node_ids: Sequence[str]) -> None:
    gone = gone_among(node_ids)
    if gone:
        raise HostLost(
            f"{len(gone)} of {len(node_ids)} hosts went away before the gang had started"
        )
