"""Connections between processes: bytes in order, late, in pieces; and cut.

A message is never lost on a connection that goes on: what is lost ends it, at each end at another
time. The way is open again at once where a link breaks, and after a while where it is cut. The
kernel ends the connections of a process that dies.
"""

from __future__ import annotations

import contextlib
import json
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from hotstart.launcher.coordinator_session import RECONNECT_S
from tests.simulation.scheduler import Task
from tests.simulation.world import BROKEN, SimProcess, World

SHUT_RDWR = 2
_DEAD_AFTER_S = 15.0
_CUT_S = (3.0, 60.0)


class End:
    """One end of a connection, as a socket where a process reads and writes it."""

    def __init__(self, network: Network, process: SimProcess, delay_s: float) -> None:
        self.process = process
        self.peer: End
        self.on_data: Callable[[bytes | None], None] | None = None
        self.is_closed = False
        self.has_heard = False
        self._network = network
        self._world = network.world
        self._delay_s = delay_s
        self._arrives_s = 0.0
        self._inbox: deque[bytes | None] = deque()
        self._reading: Task | None = None
        self._timeout_s: float | None = None
        process.on_end.append(self.close)

    # As a socket.

    def settimeout(self, timeout_s: float | None) -> None:
        self._timeout_s = timeout_s

    def setsockopt(self, *option: Any) -> None:
        """Options change nothing here."""

    def sendall(self, data: bytes) -> None:
        self._world.scheduler.may_switch()
        if self.is_closed:
            raise BrokenPipeError("the connection has ended")
        self.push(data)

    def recv(self, size_bytes: int) -> bytes:
        scheduler = self._world.scheduler
        scheduler.may_switch()
        while not self._inbox:
            if self.is_closed:
                raise ConnectionResetError("the connection has ended")
            self._reading = scheduler.check()
            end_s = scheduler.now_s + (self._timeout_s or float("inf"))
            scheduler.wait(self._timeout_s)
            if not self._inbox and scheduler.now_s >= end_s:
                raise TimeoutError("timed out")
        data = self._inbox.popleft()
        if data is None:
            self._inbox.appendleft(None)
            return b""
        size_bytes = min(size_bytes, len(data))
        if self._world.rng.random() < 0.1:  # a connection keeps no boundaries
            size_bytes = self._world.rng.randint(1, size_bytes)
        if size_bytes < len(data):
            self._inbox.appendleft(data[size_bytes:])
        return data[:size_bytes]

    def shutdown(self, how: int) -> None:
        self.close()

    def close(self) -> None:
        """End it; the peer reads the end after what was sent before."""
        if not self.is_closed:
            self.is_closed = True
            self.push(None)
            self._wake()

    # What the network does.

    def push(self, data: bytes | None) -> None:
        """Send; None is the end."""
        world = self._world
        now_s = world.scheduler.now_s
        delay_s = world.rng.expovariate(1 / self._delay_s)
        self._arrives_s = max(self._arrives_s, now_s + delay_s)
        world.scheduler.at(self._arrives_s - now_s, lambda: self.peer.arrive(data))

    def arrive(self, data: bytes | None) -> None:
        if self.is_closed or not self.process.alive or (self._inbox and self._inbox[-1] is None):
            return
        self.has_heard |= data is not None
        if self.on_data is not None:
            self.on_data(data)
        else:
            self._inbox.append(data)
            self._wake()

    def reset(self) -> None:
        """The kernel has found that the other host gives no answer."""
        if not self.is_closed:
            self._inbox.clear()
            self.arrive(None)
            self.is_closed = True
            self._wake()

    def _wake(self) -> None:
        if self._reading is not None:
            self._world.scheduler.wake(self._reading)


class Network:
    """Who listens where, and the connections between hosts."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.links: list[End] = []
        self._listening: dict[tuple[str, int], tuple[SimProcess, Callable[[End], None]]] = {}
        self._closed_until_s: dict[tuple[SimProcess, SimProcess], float] = {}
        self._ports = 5000

    def listen(self, ip: str, accept: Callable[[End], None]) -> int:
        self._ports += 1
        self._listening[ip, self._ports] = self.world.process, accept
        return self._ports

    def connect(self, address: tuple[str, int], timeout: float) -> End:
        """As `socket.create_connection`."""
        world = self.world
        world.scheduler.sleep(world.rng.expovariate(1 / 0.001))
        server, accept = self._listening[address]
        left_s = self._closed_until_s.get((world.process, server), 0.0) - world.scheduler.now_s
        if left_s > 0:
            world.scheduler.sleep(min(left_s, timeout))
            raise TimeoutError("timed out")
        if not server.alive:
            raise ConnectionRefusedError("nobody listens there")
        near, far = self.pair(world.process, server, 0.001)
        near.settimeout(timeout)
        self.links.append(near)
        accept(far)
        return near

    def pair(self, one: SimProcess, other: SimProcess, delay_s: float) -> tuple[End, End]:
        near, far = End(self, one, delay_s), End(self, other, delay_s)
        near.peer, far.peer = far, near
        return near, far

    def break_one(self) -> None:
        """One connection between hosts is lost; another can be made at once."""
        end = self._choose()
        if end is None or not end.has_heard:  # a member that is not let in has nothing to resume
            return
        self.world.fault(BROKEN, end.process.name, end.peer.process.name, lasts_s=_DEAD_AFTER_S)
        self._lose(end)

    def cut(self) -> None:
        """One connection between hosts is lost, and for a while no other can be made."""
        world, end = self.world, self._choose()
        if end is None:
            return
        lasts_s = world.rng.uniform(*_CUT_S)
        self._closed_until_s[end.process, end.peer.process] = world.scheduler.now_s + lasts_s
        who = end.process.name, end.peer.process.name
        world.fault("cut", *who, lasts_s=max(_DEAD_AFTER_S, lasts_s) + RECONNECT_S)
        self._lose(end)

    def _choose(self) -> End | None:
        self.links = [end for end in self.links if not (end.is_closed and end.peer.is_closed)]
        return self.world.rng.choice(self.links) if self.links else None

    def _lose(self, near: End) -> None:
        """Each end notices in its own time, often at once."""
        world = self.world
        self.links.remove(near)
        for end in (near, near.peer):
            end._arrives_s = float("inf")
            noticed_s = world.rng.choice((0.0, world.rng.uniform(0, _DEAD_AFTER_S)))
            world.scheduler.at(noticed_s, end.reset)


class SimChannel:
    """A worker's channel to its agent: `launcher.channel.Channel`."""

    def __init__(self, end: End) -> None:
        self._end = end

    def send(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):
            self._end.sendall(json.dumps(message).encode() + b"\n")

    def __iter__(self) -> Iterator[dict[str, Any]]:
        rest = b""
        while True:
            try:
                data = self._end.recv(1 << 16)
            except OSError:
                return
            if not data:
                return
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                yield json.loads(line)
