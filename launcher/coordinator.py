"""The coordinator: one TCP server a run, around the `Claims` of its agents.

It lives in the agent of process 0: the gang ends with that host in any case, so nothing is lost
that would have gone on. One thread with an event loop of its own does all the work. The wire
format is drawn in `coordinator_wire.py`, the rules are argued in `claims.py`.

Who connects must send the token in its first line. A connection that ends leaves its member's
session for `KEEP_S`, for it to come back; then the member is gone, and at once where it has said
bye or sent what is no message: what it held goes to who waits for it (`coordinator_session.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import socket
import threading
from typing import cast

from hotstart.launcher.coordinator_desk import Desk, Member, Refused
from hotstart.launcher.coordinator_session import KEEP_S
from hotstart.launcher.coordinator_wire import (
    MAX_LINE_BYTES,
    Lines,
    Malformed,
    from_line,
    set_options,
    to_line,
)

logger = logging.getLogger(__name__)

_HELLO_S = 5.0
_HELLO_BYTES = 4096
_UNREAD_BYTES = 64 << 20
_READ_BYTES = 1 << 18
_BACKLOG = 4096
_STOP_S = 5.0


class Coordinator:
    """Serves from its construction until `close`."""

    def __init__(
        self, ip: str, *, hello_timeout_s: float = _HELLO_S, keep_s: float = KEEP_S
    ) -> None:
        """Listen on a free port of `ip`. Raises OSError."""
        family = socket.AF_INET6 if ":" in ip else socket.AF_INET
        listener = socket.create_server((ip, 0), family=family, backlog=_BACKLOG)
        self._address: tuple[str, int] = (ip, listener.getsockname()[1])
        self._token = secrets.token_hex(16)
        self._desk = Desk(self._token, keep_s)
        self._hello_timeout_s = hello_timeout_s
        self._buffer = memoryview(bytearray(_READ_BYTES))
        self._loop = asyncio.new_event_loop()
        self._closing = asyncio.Event()
        self._thread = threading.Thread(
            target=self._run, args=(listener,), name="hotstart-coordinator", daemon=True
        )
        self._thread.start()

    @property
    def address(self) -> tuple[str, int]:
        """IP and port."""
        return self._address

    @property
    def token(self) -> str:
        """What a `CoordinatorLink` must know."""
        return self._token

    def close(self) -> None:
        """End all connections; blocks until they and the port are closed, 5 s at most."""
        with contextlib.suppress(RuntimeError):  # closed before
            self._loop.call_soon_threadsafe(self._closing.set)
        self._thread.join(_STOP_S)

    def _run(self, listener: socket.socket) -> None:
        self._loop.run_until_complete(self._serve(listener))
        self._loop.close()

    async def _serve(self, listener: socket.socket) -> None:
        server = await self._loop.create_server(
            lambda: Connection(self._desk, self._buffer, self._hello_timeout_s),
            sock=listener,
            backlog=_BACKLOG,
        )
        await self._closing.wait()
        server.close()
        self._desk.close()
        await asyncio.sleep(0)  # the transports close their sockets now


class Connection(asyncio.BufferedProtocol):
    """One agent's connection, or somebody's who has not shown the token yet."""

    def __init__(self, desk: Desk, buffer: memoryview, hello_timeout_s: float) -> None:
        """`buffer` is one for all: a selector loop reads into it, then calls `buffer_updated`."""
        self.member: Member | None = None
        self._buffer = buffer
        self._hello_timeout_s = hello_timeout_s
        self._desk = desk
        self._lines = Lines(_HELLO_BYTES)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        with contextlib.suppress(OSError):  # closed by the peer already
            set_options(transport.get_extra_info("socket"))
        self._peer = transport.get_extra_info("peername")
        loop = asyncio.get_running_loop()
        self._hello = loop.call_later(self._hello_timeout_s, self._drop_silent)
        self._desk.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._hello.cancel()
        self._desk.closed(self, asyncio.get_running_loop().call_later)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        try:
            for line in self._lines.feed(bytes(self._buffer[:nbytes])):
                message = from_line(line)
                if self.member is None:
                    self.member = self._desk.enter(self, message)
                    self._hello.cancel()
                    self._lines.max_line_bytes = MAX_LINE_BYTES
                elif self.member.connection is self:  # it may have said bye
                    self._desk.handle(self.member, message)
        except Malformed as error:
            self._refuse(str(error))
        except Refused as error:
            logger.info("a session of %s is not resumed: %s", self._peer, error)
            self._hello.cancel()
            self.write([to_line(["refused", str(error)])])
            self._transport.close()
        self._desk.flush()

    def write(self, lines: list[bytes]) -> None:
        if not self._transport.is_closing():
            self._transport.write(b"".join(lines))
            if self._transport.get_write_buffer_size() > _UNREAD_BYTES:
                self._refuse("it reads nothing")

    def drop(self) -> None:
        self._transport.abort()

    def _refuse(self, why: str) -> None:
        """Close it for good: it would be the same once more."""
        logger.warning("the connection of %s is closed: %s", self._peer, why)
        if self.member is not None and self.member.connection is self:
            self._desk.end(self.member)
        self.drop()

    def _drop_silent(self) -> None:
        logger.warning("the connection of %s is closed: it has not shown the token", self._peer)
        self.drop()
