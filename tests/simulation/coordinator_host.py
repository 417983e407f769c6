"""The coordinator's own connections and rules, on the simulation's network.

In place of the event loop's thread is a task that takes one event at a time, as that does.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from hotstart.launcher.coordinator import Connection
from hotstart.launcher.coordinator_desk import Desk
from hotstart.launcher.coordinator_session import KEEP_S
from tests.simulation.network import End, Network
from tests.simulation.scheduler import Task


class SimCoordinator:
    """`launcher.coordinator.Coordinator`, in the process that makes it."""

    def __init__(self, network: Network, ip: str) -> None:
        self._world = network.world
        self._events: deque[Callable[[], None]] = deque()
        self._task: Task | None = None
        self._closed = False
        self.token = f"token{self._world.rng.getrandbits(32):08x}"
        self._desk = Desk(self.token, KEEP_S)
        self._buffer = memoryview(bytearray(1 << 18))
        self.address = (ip, network.listen(ip, self._accept))
        self._world.process.spawn("coordinator", self._run)

    def close(self) -> None:
        self._put(self._desk.close)
        self._closed = True

    def call_later(self, delay_s: float, act: Callable[..., None], *args: Any) -> Any:
        """As an event loop's."""
        handle = SimpleNamespace(act=functools.partial(act, *args))

        def cancel() -> None:
            handle.act = None

        def ring() -> None:
            if handle.act is not None:
                self._put(handle.act)

        handle.cancel = cancel
        self._world.scheduler.at(delay_s, ring)
        return handle

    def _put(self, event: Callable[[], None]) -> None:
        self._events.append(event)
        if self._task is not None:
            self._world.scheduler.wake(self._task)

    def _run(self) -> None:
        world = self._world
        self._task = world.scheduler.check()
        while not (self._closed and not self._events):
            if not self._events:
                world.scheduler.wait()
                continue
            world.point("before a message to the coordinator")
            _LOOPS.append(self)
            try:
                self._events.popleft()()
            finally:
                _LOOPS.pop()
            world.point("after a message to the coordinator")

    def _accept(self, end: End) -> None:
        connection = Connection(self._desk, self._buffer, 5.0)
        transport = _Transport(self, end, connection)

        def made() -> None:
            connection.connection_made(transport)  # type: ignore[arg-type]

        def arrived(data: bytes | None) -> None:
            self._put(lambda: transport.read(data))

        end.on_data = arrived
        self._put(made)


_LOOPS: list[SimCoordinator] = []


def running_loop() -> SimCoordinator:
    """What `asyncio.get_running_loop` says in the coordinator's task."""
    return _LOOPS[-1]


class _Transport:
    def __init__(self, loop: SimCoordinator, end: End, connection: Any) -> None:
        self._loop = loop
        self._end = end
        self._connection = connection
        self._lost = False

    def get_extra_info(self, name: str) -> Any:
        return self._end if name == "socket" else self._end.peer.process.name

    def write(self, data: bytes) -> None:
        if not self._end.is_closed:
            self._end.push(data)

    def abort(self) -> None:
        self._end.close()
        self._loop._put(self._lose)

    close = abort  # what was written is on its way

    def is_closing(self) -> bool:
        return self._end.is_closed

    def get_write_buffer_size(self) -> int:
        return 0

    def read(self, data: bytes | None) -> None:
        if data is None:
            self._end.close()
            self._lose()
        elif not self._lost and not self._end.is_closed:
            self._connection.get_buffer(-1)[: len(data)] = data
            self._connection.buffer_updated(len(data))

    def _lose(self) -> None:
        if not self._lost:
            self._lost = True
            self._connection.connection_lost(None)
