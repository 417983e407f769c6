"""Messages between a worker and its agent: JSON objects, one a line, over a socket pair.

A pair that the child inherits needs no name, so nothing is left behind when either side is
killed, and the other side sees the end of file at once.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any


class Channel:
    """One end. `send` is safe among threads; only one thread may iterate."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._lock = threading.Lock()

    def send(self, message: dict[str, Any]) -> None:
        """Send one message, or drop it where the peer has gone. Blocks while its buffer is full."""
        line = json.dumps(message, separators=(",", ":")).encode() + b"\n"
        with self._lock, contextlib.suppress(OSError):
            self._socket.sendall(line)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Messages as they come, until the peer ends; a broken last line is left out."""
        with contextlib.suppress(OSError), self._socket.makefile("rb") as lines:
            # By `map`: a frame that keeps the last line would show a secret in it to debuggers.
            for message in map(_parse, lines):
                if isinstance(message, dict):
                    yield message

    def close(self) -> None:
        """End it; a thread that iterates stops."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def _parse(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None
