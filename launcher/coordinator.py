"""The coordinator: one TCP server a run, around the `Claims` of its agents.

It lives in the agent of process 0: the gang ends with that host in any case, so nothing is lost
that would have gone on. One thread with an event loop of its own does all the work. The wire
format is drawn in `coordinator_wire.py`, the rules are argued in `claims.py`.

Who connects must send the token in its first line. A connection that breaks, ends or sends what
is no message is closed, and its member is gone: what it held goes to who waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import secrets
import socket
import threading
from typing import Any, cast

from hotstart.launcher.claims import Claims, Reply
from hotstart.launcher.coordinator_wire import (
    MAX_LINE_BYTES,
    Lines,
    Malformed,
    Published,
    answer_to_line,
    ask_from_json,
    digest_from_json,
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

    def __init__(self, ip: str, *, hello_timeout_s: float = _HELLO_S) -> None:
        """Listen on a free port of `ip`. Raises OSError."""
        family = socket.AF_INET6 if ":" in ip else socket.AF_INET
        listener = socket.create_server((ip, 0), family=family, backlog=_BACKLOG)
        self._address: tuple[str, int] = (ip, listener.getsockname()[1])
        self._token = secrets.token_hex(16)
        self._desk = _Desk(self._token, hello_timeout_s)
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
            lambda: _Connection(self._desk), sock=listener, backlog=_BACKLOG
        )
        await self._closing.wait()
        server.close()
        self._desk.close()
        await asyncio.sleep(0)  # the transports close their sockets now


class _Desk:
    """What the connections share; only the loop's thread comes here."""

    def __init__(self, token: str, hello_timeout_s: float) -> None:
        self.hello_timeout_s = hello_timeout_s
        self.buffer = memoryview(bytearray(_READ_BYTES))
        self._token = token.encode()
        self._claims = Claims()
        self._members: dict[int, _Connection] = {}
        self._open: dict[_Connection, None] = {}  # a set has no order of its own
        self._unsent: list[_Connection] = []

    def opened(self, connection: _Connection) -> None:
        self._open[connection] = None

    def closed(self, connection: _Connection) -> None:
        self._open.pop(connection, None)
        member = connection.member
        if member is not None and self._members.get(member) is connection:
            del self._members[member]
            self._deliver(self._claims.gone(member))
            self.flush()

    def close(self) -> None:
        self._members.clear()
        for connection in self._open:
            connection.drop()

    def flush(self) -> None:
        """Send what the last read has led to, in one write a connection."""
        for connection in self._unsent:
            connection.flush()
        self._unsent.clear()

    def enter(self, connection: _Connection, message: list[Any]) -> int:
        """The member that a first message names. Raises Malformed."""
        match message:
            case ["hello", str(token), int(member)] if member >= 0 and hmac.compare_digest(
                token.encode(errors="replace"), self._token
            ):
                pass
            case _:
                raise Malformed("the first line does not carry this run's token")
        before = self._members.get(member)
        self._members[member] = connection
        if before is not None:  # its end has not been noticed yet
            before.drop()
            self._deliver(self._claims.gone(member))
        self._send(connection, to_line(["welcome"]))
        return member

    def handle(self, connection: _Connection, member: int, message: list[Any]) -> None:
        """Act on a message of `member`. Raises Malformed."""
        claims = self._claims
        match message:
            case ["claims", list(items)]:
                for item in items:
                    ask = ask_from_json(item)
                    self._deliver(
                        claims.claim(
                            member,
                            ask.request,
                            ask.key,
                            have=ask.have,
                            failed=ask.failed,
                            failed_digest=ask.failed_digest,
                            may_compile=ask.may_compile,
                        )
                    )
            case [
                "publish",
                int(request),
                str(key),
                str(digest),
                int(size_bytes),
                bool(in_node),
                bool(in_store),
            ]:
                given = digest_from_json(digest)
                counts, replies = claims.publish(
                    member, key, given, size_bytes, in_node=in_node, in_store=in_store
                )
                self._send(connection, answer_to_line(request, Published(counts)))
                self._deliver(replies)
            case ["absent", str(key)]:
                self._deliver(claims.absent(member, key))
            case ["unstored", str(key)]:
                self._deliver(claims.unstored(member, key))
            case ["release", str(key)]:
                self._deliver(claims.release(member, key))
            case ["stored", str(key), str(digest)]:
                claims.stored(member, key, digest_from_json(digest))
            case ["begin", int(attempt)]:
                self._deliver(claims.begin(member, attempt))
            case _:
                raise Malformed("not a message of an agent")

    def _deliver(self, replies: list[Reply]) -> None:
        for reply in replies:
            connection = self._members.get(reply.member)
            if connection is not None:
                self._send(connection, answer_to_line(reply.request, reply.answer))

    def _send(self, connection: _Connection, line: bytes) -> None:
        if not connection.outbox:
            self._unsent.append(connection)
        connection.outbox.append(line)


class _Connection(asyncio.BufferedProtocol):
    """One agent's connection, or somebody's who has not shown the token yet."""

    def __init__(self, desk: _Desk) -> None:
        self.member: int | None = None
        self.outbox: list[bytes] = []
        self._desk = desk
        self._lines = Lines(_HELLO_BYTES)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        with contextlib.suppress(OSError):  # closed by the peer already
            set_options(transport.get_extra_info("socket"))
        self._peer = transport.get_extra_info("peername")
        loop = asyncio.get_running_loop()
        self._hello = loop.call_later(self._desk.hello_timeout_s, self._drop_silent)
        self._desk.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._hello.cancel()
        self._desk.closed(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        # One for all: a selector loop reads into it and calls `buffer_updated` right after.
        return self._desk.buffer

    def buffer_updated(self, nbytes: int) -> None:
        try:
            for line in self._lines.feed(bytes(self._desk.buffer[:nbytes])):
                message = from_line(line)
                if self.member is None:
                    self.member = self._desk.enter(self, message)
                    self._hello.cancel()
                    self._lines.max_line_bytes = MAX_LINE_BYTES
                else:
                    self._desk.handle(self, self.member, message)
        except Malformed as error:
            logger.warning("the connection of %s is closed: %s", self._peer, error)
            self.drop()
        self._desk.flush()

    def flush(self) -> None:
        if not self._transport.is_closing():
            self._transport.write(b"".join(self.outbox))
            if self._transport.get_write_buffer_size() > _UNREAD_BYTES:
                logger.warning("the connection of %s is closed: it reads nothing", self._peer)
                self.drop()
        self.outbox.clear()

    def drop(self) -> None:
        self._transport.abort()

    def _drop_silent(self) -> None:
        logger.warning("the connection of %s is closed: it has not shown the token", self._peer)
        self.drop()
