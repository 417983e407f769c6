"""A new connection to the coordinator, up to the answer to its first message."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Any

from hotstart.launcher.coordinator_wire import (
    MAX_LINE_BYTES,
    Lines,
    Malformed,
    from_line,
    set_options,
    to_line,
)


class Unreachable(ConnectionError):
    """No connection was made."""


class Over(Exception):
    """The coordinator does not have this session any more, or has closed."""


@dataclass(frozen=True)
class Connection:
    """An open connection: the first answer, and the lines that came with it."""

    socket: socket.socket
    lines: Lines
    answer: list[Any]
    rest: list[bytes]


def connect(address: tuple[str, int], first: list[Any], timeout_s: float) -> Connection:
    """Connect, send a first message, and wait for its answer; each of these within `timeout_s`.

    The messages are drawn in `coordinator_session.py`. Raises OSError, `Unreachable` among them;
    Malformed where what answers is no coordinator; Over.
    """
    try:
        opened = socket.create_connection(address, timeout=timeout_s)
    except OSError as error:
        raise Unreachable(str(error)) from error
    try:
        set_options(opened)
        opened.sendall(to_line(first))
        lines = Lines(MAX_LINE_BYTES)
        while data := opened.recv(1 << 16):
            if got := lines.feed(data):
                answer = from_line(got[0])
                _check(first, answer)
                opened.settimeout(None)
                return Connection(opened, lines, answer, got[1:])
        raise ConnectionResetError("it has closed the connection")
    except BaseException:
        opened.close()
        raise


def _check(first: list[Any], answer: list[Any]) -> None:
    match first[0], answer:
        case ("hello", ["welcome", int()]) | ("resume", ["resumed", int()]):
            return
        case "resume", ["refused", "over"]:
            raise Over("the coordinator does not have this session any more")
        case "resume", ["refused", str(why)]:
            raise ConnectionRefusedError(f"refused: {why}")
    raise Malformed("not a welcome")
