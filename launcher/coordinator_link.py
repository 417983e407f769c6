"""An agent's link to the coordinator, over as many connections as it takes.

Two threads: one sends what was queued, in order and as much at once as there is, so that no
caller waits for the network; one reads, calls back, and connects again where a connection has
ended. What is said meanwhile waits. The messages are drawn in `coordinator_wire.py`, and what
holds them together in `coordinator_session.py`.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from hotstart.launcher.claims import Answer, Held
from hotstart.launcher.coordinator_connection import Connection, Over, Unreachable, connect
from hotstart.launcher.coordinator_session import MOST_FRUITLESS, RECONNECT_S, Session
from hotstart.launcher.coordinator_wire import (
    Ask,
    Malformed,
    Published,
    answer_from_line,
    ask_to_json,
    from_line,
    to_line,
)

logger = logging.getLogger(__name__)

_CONNECT_S = 5.0
_TRY_S = 3.0  # of several: the first packet of one may be lost
_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 2.0
_LAST_WORDS_S = 1.0
_TAKEN, _BYE = b'["taken"', b'["bye"]'


class CoordinatorLink:
    """All methods are safe among threads; only the constructor and `close` may block.

    Register a request before it is sent: its answer may come at once. Once the link is lost,
    requests are dropped silently and no answer comes; check `lost` after registering, under the
    lock that `on_lost` takes. While it is away and connects again, they wait.
    """

    def __init__(
        self,
        address: tuple[str, int],
        token: str,
        member: int,
        on_reply: Callable[[int, Answer | Published], None],
        on_lost: Callable[[], None],
        *,
        timeout_s: float = _CONNECT_S,
        reconnect_s: float = RECONNECT_S,
    ) -> None:
        """Connect as `member`. Raises OSError: unreachable, refused the token, or timed out.

        Both callbacks run on the link's thread, and should not block. `on_lost` comes once, when
        the coordinator is lost, or the way to it for longer than `reconnect_s` after that was
        noticed (within 15 s); not after `close`.
        """
        self._address = address
        self._token = token
        self._member = member
        self._on_reply = on_reply
        self._on_lost = on_lost
        self._reconnect_s = reconnect_s
        self._session = Session()
        self._attempt = 0
        self._changed = threading.Condition()
        self._closing = False
        self._lost = False
        self._is_writing = False
        where = f"the coordinator at {address[0]}:{address[1]}"
        try:
            connection = connect(address, ["hello", token, member], timeout_s)
        except Unreachable as error:
            raise ConnectionError(f"cannot connect to {where}: {error}") from error
        except (OSError, Malformed) as error:
            text = f"{where} does not let member {member} in, has it this run's token? {error}"
            raise ConnectionError(text) from error
        self._number = connection.answer[1]
        self._socket: socket.socket | None = connection.socket
        self._since_s = time.monotonic()
        self._progress: tuple[int, int] | None = None
        self._fruitless = 0
        self._reader = threading.Thread(
            target=self._run, args=(connection,), name="coordinator-link-read", daemon=True
        )
        self._writer = threading.Thread(
            target=self._write, name="coordinator-link-write", daemon=True
        )
        self._writer.start()
        self._reader.start()

    @property
    def lost(self) -> bool:
        """Whether no answer comes any more; True before `on_lost` is called."""
        return self._lost

    def begin(self, attempt: int) -> None:
        """A new attempt of this agent: its leases are void, its claims get no answer."""
        with self._changed:
            self._attempt = attempt
            self._send(["begin", attempt])

    def claim(
        self,
        request: int,
        key: str,
        *,
        have: Held | None = None,
        failed: Iterable[int] = (),
        failed_digest: bytes | None = None,
        may_compile: bool = True,
    ) -> None:
        """As `Claims.claim`; the answer comes to `on_reply` with `request`."""
        self.claim_many([Ask(request, key, have, tuple(failed), failed_digest, may_compile)])

    def claim_many(self, asks: Iterable[Ask]) -> None:
        """Many claims in one message."""
        self._send(["claims", [ask_to_json(ask) for ask in asks]])

    def publish(
        self,
        request: int,
        key: str,
        digest: bytes,
        size_bytes: int,
        *,
        in_node: bool,
        in_store: bool,
    ) -> None:
        """As `Claims.publish`; `Published` with the digest that counts comes to `on_reply`."""
        self._send(["publish", request, key, digest.hex(), size_bytes, in_node, in_store])

    def absent(self, key: str) -> None:
        """As `Claims.absent`."""
        self._send(["absent", key])

    def unstored(self, key: str) -> None:
        """As `Claims.unstored`."""
        self._send(["unstored", key])

    def release(self, key: str) -> None:
        """As `Claims.release`."""
        self._send(["release", key])

    def stored(self, key: str, digest: bytes) -> None:
        """As `Claims.stored`."""
        self._send(["stored", key, digest.hex()])

    def close(self) -> None:
        """End it, without `on_lost`; blocks until what was queued is sent, 1 s at most.

        The coordinator keeps nothing for this member, unless the link is away just then.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._join(self._writer)
        with self._changed:
            _shut_down(self._socket)
        self._join(self._reader)

    def _join(self, thread: threading.Thread) -> None:
        if thread is not threading.current_thread():  # a callback may close the link
            thread.join(_LAST_WORDS_S)

    def _send(self, message: list[Any]) -> None:
        line = to_line(message)
        with self._changed:
            if not (self._closing or self._lost):
                self._session.add(line)
                self._changed.notify_all()

    # The writer's thread.

    def _write(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(self._may_write)
                if self._lost or self._socket is None:
                    return
                data, connection = self._session.send(), self._socket
                count = self._session.tell()
                if count is not None:
                    data.append(to_line(["taken", count]))
                if self._closing:
                    data.append(to_line(["bye"]))
                self._is_writing = True
            try:
                connection.sendall(b"".join(data))
            except OSError:  # the reader sees it too; what the coordinator lacks is sent again
                _shut_down(connection)
            with self._changed:
                self._is_writing = False
                self._changed.notify_all()
                if self._closing:
                    return

    def _may_write(self) -> bool:
        return (
            self._lost
            or self._closing
            or (self._socket is not None and (self._session.has_unsent or self._session.must_tell))
        )

    # The reader's thread.

    def _run(self, connection: Connection | None) -> None:
        reason = ""
        while connection is not None:
            reason = self._read(connection)
            connection = None if self._put_away() else self._connect_again(reason)
        with self._changed:
            closing = self._closing
            self._lost = True
            self._session = Session()
            self._changed.notify_all()
        if not closing:
            self._join(self._writer)
            logger.info("the link to the coordinator has ended: %s", reason)
            self._on_lost()

    def _read(self, connection: Connection) -> str:
        """Take what comes until the connection ends; why it has."""
        lines = connection.rest
        try:
            while True:
                for line in lines:
                    self._take(line)
                with self._changed:
                    if self._session.must_tell:
                        self._changed.notify_all()
                data = connection.socket.recv(1 << 18)
                if not data:
                    return "it has ended"
                lines = connection.lines.feed(data)
        except OSError as error:
            return str(error)
        except (Malformed, Over) as error:  # it would say so again
            with self._changed:
                self._lost = True
            return str(error)

    def _take(self, line: bytes) -> None:
        if line.startswith(_TAKEN):
            with self._changed:
                match from_line(line):
                    case ["taken", int(count)]:
                        self._session.told(count)
                        return
            raise Malformed("not a count")
        if line == _BYE:
            raise Over("it has closed")
        request, answer = answer_from_line(line)
        with self._changed:
            self._session.take()
        try:
            self._on_reply(request, answer)
        except Exception:
            logger.exception("the answer to request %d could not be taken", request)

    def _put_away(self) -> bool:
        """The connection has ended; whether the link has too."""
        with self._changed:
            ended, self._socket = self._socket, None
            _shut_down(ended)
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._is_writing)
            if ended is not None:
                ended.close()
            return self._lost or self._closing

    def _connect_again(self, reason: str) -> Connection | None:
        """The next connection; None where there is none in time, or the session is over."""
        noticed_s = time.monotonic()
        with self._changed:
            progress = self._session.taken, self._session.taken_there
        lasted = progress != self._progress or noticed_s - self._since_s >= self._reconnect_s
        self._fruitless = 0 if lasted else self._fruitless + 1
        self._progress = progress
        if self._fruitless >= MOST_FRUITLESS:
            return None
        logger.info("the connection to the coordinator has ended (%s); connecting again", reason)
        pause_s = 0.0
        while not self._pause(pause_s):
            left_s = noticed_s + self._reconnect_s - time.monotonic()
            if left_s <= 0:
                return None
            try:
                connection = self._resume(min(left_s, _TRY_S))
            except Over:
                return None
            except (OSError, Malformed) as error:
                logger.info("the coordinator is out of reach: %s", error)
            else:
                self._since_s = time.monotonic()
                logger.info("connected again after %.1f s", self._since_s - noticed_s)
                return connection
            pause_s = min(max(2 * pause_s, _PAUSE_S), _LONGEST_PAUSE_S)
        return None

    def _pause(self, pause_s: float) -> bool:
        """Whether the link is closed within that time."""
        with self._changed:
            return self._changed.wait_for(lambda: self._closing, pause_s)

    def _resume(self, timeout_s: float) -> Connection:
        with self._changed:
            attempt, taken = self._attempt, self._session.taken
        first = ["resume", self._token, self._member, self._number, attempt, taken]
        connection = connect(self._address, first, timeout_s)
        try:
            with self._changed:
                if self._closing:
                    raise Over("closed")
                self._session.resume(connection.answer[1])
                self._socket = connection.socket
                self._changed.notify_all()
        except (Malformed, Over):
            connection.socket.close()
            raise
        return connection


def _shut_down(connection: socket.socket | None) -> None:
    if connection is not None:
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
