"""An agent's connection to the coordinator.

Two threads: one sends what was queued, in order and as much at once as there is, so that no
caller waits for the network; one reads, and calls back. The wire format is drawn in
`coordinator_wire.py`.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections.abc import Callable, Iterable
from typing import Any

from hotstart.launcher.claims import Answer, Held
from hotstart.launcher.coordinator_wire import (
    MAX_LINE_BYTES,
    Ask,
    Lines,
    Malformed,
    Published,
    answer_from_line,
    ask_to_json,
    from_line,
    set_options,
    to_line,
)

logger = logging.getLogger(__name__)

_CONNECT_S = 5.0
_LAST_WORDS_S = 1.0


class CoordinatorLink:
    """All methods are safe among threads; only the constructor and `close` may block.

    Register a request before it is sent: its answer may come at once. Once the link is lost,
    requests are dropped silently and no answer comes; check `lost` after registering, under the
    lock that `on_lost` takes.
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
    ) -> None:
        """Connect as `member`. Raises OSError: unreachable, refused the token, or timed out.

        Both callbacks run on the link's thread, and should not block. `on_lost` comes once, when
        the coordinator or the way to it is lost (15 s after a host has died), not after `close`.
        """
        self._on_reply = on_reply
        self._on_lost = on_lost
        self._lines = Lines(MAX_LINE_BYTES)
        self._queue: list[bytes] = []
        self._changed = threading.Condition()
        self._closing = False
        self._lost = False
        where = f"the coordinator at {address[0]}:{address[1]}"
        try:
            self._socket = socket.create_connection(address, timeout=timeout_s)
        except OSError as error:
            raise ConnectionError(f"cannot connect to {where}: {error}") from error
        try:
            set_options(self._socket)
            self._socket.sendall(to_line(["hello", token, member]))
            answers = self._enter()
            self._socket.settimeout(None)
        except (OSError, Malformed) as error:
            self._socket.close()
            text = f"{where} does not let member {member} in, has it this run's token? {error}"
            raise ConnectionError(text) from error
        self._reader = threading.Thread(
            target=self._read, args=(answers,), name="coordinator-link-read", daemon=True
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
        """End it, without `on_lost`; blocks until what was queued is sent, 1 s at most."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._join(self._writer)
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._join(self._reader)
        self._socket.close()

    def _join(self, thread: threading.Thread) -> None:
        if thread is not threading.current_thread():  # a callback may close the link
            thread.join(_LAST_WORDS_S)

    def _send(self, message: list[Any]) -> None:
        line = to_line(message)
        with self._changed:
            if not (self._closing or self._lost):
                self._queue.append(line)
                self._changed.notify_all()

    def _enter(self) -> list[bytes]:
        """Wait for the welcome; returns the lines that came with it."""
        while data := self._socket.recv(1 << 16):
            lines = self._lines.feed(data)
            if lines:
                if from_line(lines[0]) != ["welcome"]:
                    raise Malformed("not a welcome")
                return lines[1:]
        raise ConnectionResetError("it has closed the connection")

    def _write(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closing or self._lost)
                queued, self._queue = self._queue, []
            if not queued:
                return
            try:
                self._socket.sendall(b"".join(queued))
            except OSError:
                with contextlib.suppress(OSError):  # the reader says that it is lost
                    self._socket.shutdown(socket.SHUT_RDWR)
                return

    def _read(self, lines: list[bytes]) -> None:
        reason = "it has ended"
        try:
            while True:
                for line in lines:
                    self._call_back(line)
                data = self._socket.recv(1 << 18)
                if not data:
                    break
                lines = self._lines.feed(data)
        except (OSError, Malformed) as error:
            reason = str(error)
        with self._changed:
            closing = self._closing
            self._lost = True
            self._queue.clear()
            self._changed.notify_all()
        if not closing:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            self._join(self._writer)
            self._socket.close()
            logger.info("the link to the coordinator has ended: %s", reason)
            self._on_lost()

    def _call_back(self, line: bytes) -> None:
        request, answer = answer_from_line(line)
        try:
            self._on_reply(request, answer)
        except Exception:
            logger.exception("the answer to request %d could not be taken", request)
