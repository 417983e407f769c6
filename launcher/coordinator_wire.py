"""Messages between the coordinator and its agents: JSON arrays, one a line, over TCP.

    agent                                                   coordinator
    ["begin", attempt]
    ["claims", [[request, key], ...]]                       [request, "found", digest, size_bytes,
    ["claims", [[request, key, options], ...]]                  [source, ...], in_store]
                                                            [request, "granted", absent, replaces]
                                                            [request, "absent"]
                                                            [request, "unstored"]
    ["publish", request, key, digest,                       [request, "published", digest]
        size_bytes, in_node, in_store]
    ["absent", key]  ["unstored", key]
    ["release", key]  ["stored", key, digest]

Digests are in hex, `replaces` is one or null. `options` holds what differs from a plain claim:
`have: [digest, size_bytes]`, `failed: [member, ...]`, `failed_digest`, `may_compile: false`.
A member numbers its requests; an answer carries the number back. Answers come in any order.
How a connection begins and ends, and what becomes of these messages when it does so in the middle,
is drawn in `coordinator_session.py`.
"""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass
from typing import Any

from hotstart.launcher.claims import Absent, Answer, Found, Granted, Held, Unstored

MAX_LINE_BYTES = 64 << 20
DEAD_AFTER_S = 15

_encode = json.JSONEncoder(separators=(",", ":")).encode
_decode = json.JSONDecoder().decode


@dataclass(frozen=True, slots=True)
class Ask:
    """One claim; the fields are those of `Claims.claim`."""

    request: int
    key: str
    have: Held | None = None
    failed: tuple[int, ...] = ()
    failed_digest: bytes | None = None
    may_compile: bool = True


@dataclass(frozen=True, slots=True)
class Published:
    """The answer to a publication: the digest that counts, perhaps another's."""

    digest: bytes


class Malformed(ValueError):
    """A line that is no message of this protocol."""


def to_line(message: list[Any]) -> bytes:
    """The message as bytes, with its line end."""
    return _encode(message).encode() + b"\n"


def from_line(line: bytes) -> list[Any]:
    """The array in a line. Raises Malformed."""
    try:
        message = _decode(line.decode())
    except (ValueError, RecursionError) as error:
        raise Malformed("not JSON") from error
    if not isinstance(message, list):
        raise Malformed("not an array")
    return message


def ask_to_json(ask: Ask) -> list[Any]:
    """A claim as an item of `claims`."""
    options: dict[str, Any] = {}
    if ask.have is not None:
        options["have"] = [ask.have.digest.hex(), ask.have.size_bytes]
    if ask.failed:
        options["failed"] = list(ask.failed)
    if ask.failed_digest is not None:
        options["failed_digest"] = ask.failed_digest.hex()
    if not ask.may_compile:
        options["may_compile"] = False
    return [ask.request, ask.key, options] if options else [ask.request, ask.key]


def ask_from_json(item: Any) -> Ask:
    """The claim in an item of `claims`. Raises Malformed."""
    match item:
        case [int(request), str(key)]:
            return Ask(request, key)
        case [int(request), str(key), dict(options)]:
            have, digest = options.get("have"), options.get("failed_digest")
            return Ask(
                request,
                key,
                None if have is None else _held(have),
                _members(options.get("failed", [])),
                None if digest is None else digest_from_json(digest),
                options.get("may_compile", True) is not False,
            )
    raise Malformed("not a claim")


def answer_to_line(request: int, answer: Answer | Published) -> bytes:
    """An answer as bytes, with its line end."""
    match answer:
        case Found():
            sources = ",".join(map(str, answer.sources))
            in_store = "true" if answer.in_store else "false"
            text = f'"found","{answer.digest.hex()}",{answer.size_bytes},[{sources}],{in_store}'
        case Granted():
            absent = "true" if answer.absent else "false"
            replaces = "null" if answer.replaces is None else f'"{answer.replaces.hex()}"'
            text = f'"granted",{absent},{replaces}'
        case Absent():
            text = '"absent"'
        case Unstored():
            text = '"unstored"'
        case Published():
            text = f'"published","{answer.digest.hex()}"'
    return f"[{request},{text}]\n".encode()


def answer_from_line(line: bytes) -> tuple[int, Answer | Published]:
    """The request and its answer. Raises Malformed."""
    match from_line(line):
        case [int(request), "found", str(digest), int(size), list(sources), bool(in_store)]:
            return request, Found(digest_from_json(digest), size, _members(sources), in_store)
        case [int(request), "granted", bool(absent), None]:
            return request, Granted(absent, None)
        case [int(request), "granted", bool(absent), str(replaces)]:
            return request, Granted(absent, digest_from_json(replaces))
        case [int(request), "absent"]:
            return request, Absent()
        case [int(request), "unstored"]:
            return request, Unstored()
        case [int(request), "published", str(digest)]:
            return request, Published(digest_from_json(digest))
    raise Malformed("not an answer")


def digest_from_json(text: Any) -> bytes:
    """The digest behind its hex form. Raises Malformed."""
    try:
        return bytes.fromhex(text)
    except (ValueError, TypeError) as error:
        raise Malformed("a digest is not in hex") from error


def _members(item: Any) -> tuple[int, ...]:
    if not isinstance(item, list) or not all(isinstance(member, int) for member in item):
        raise Malformed("not a list of members")
    return tuple(item)


def _held(item: Any) -> Held:
    match item:
        case [str(digest), int(size_bytes)]:
            return Held(digest_from_json(digest), size_bytes)
    raise Malformed("have is no digest and size")


class Lines:
    """Cuts what a socket reads into lines."""

    def __init__(self, max_line_bytes: int) -> None:
        self.max_line_bytes = max_line_bytes
        self._parts: list[bytes] = []  # of the line that has not ended yet
        self._size_bytes = 0

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that end in `data`. Raises Malformed where one is too long."""
        if b"\n" not in data:
            self._keep(data)
            return []
        *lines, rest = data.split(b"\n")
        if self._parts:
            self._keep(lines[0])
            lines[0] = b"".join(self._parts)
            self._parts, self._size_bytes = [], 0
        self._keep(rest)
        return lines

    def _keep(self, part: bytes) -> None:
        self._size_bytes += len(part)
        if self._size_bytes > self.max_line_bytes:
            raise Malformed(f"a line of more than {self.max_line_bytes} bytes")
        if part:
            self._parts.append(part)


def set_options(connection: socket.socket) -> None:
    """Send at once, and notice within `DEAD_AFTER_S` that the other host is dead."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # https://man7.org/linux/man-pages/man7/tcp.7.html; absent names: not Linux, system defaults
    for name, value in (
        ("TCP_KEEPIDLE", DEAD_AFTER_S // 3),
        ("TCP_KEEPINTVL", DEAD_AFTER_S // 5),
        ("TCP_KEEPCNT", 3),
        ("TCP_USER_TIMEOUT", DEAD_AFTER_S * 1000),
    ):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
