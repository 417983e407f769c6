"""Where the coordinator's connections meet: the sessions of its members, and their `Claims`.

Only the thread of the coordinator's event loop comes here. Sessions are argued in
`coordinator_session.py`, claims in `claims.py`.
"""

from __future__ import annotations

import hmac
import logging
from asyncio import TimerHandle
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hotstart.launcher.claims import Claims, Reply
from hotstart.launcher.coordinator_session import Session
from hotstart.launcher.coordinator_wire import (
    Malformed,
    Published,
    answer_to_line,
    ask_from_json,
    digest_from_json,
    to_line,
)

if TYPE_CHECKING:
    from hotstart.launcher.coordinator import Connection

logger = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class Member:
    """A session of a member, and its connection; None while it is away."""

    index: int
    number: int
    connection: Connection | None
    session: Session = field(default_factory=Session)
    forget: TimerHandle | None = None


class Refused(Exception):
    """A session that can't be resumed, and why."""


class Desk:
    """What the connections share."""

    def __init__(self, token: str, keep_s: float) -> None:
        self._keep_s = keep_s
        self._token = token.encode()
        self._claims = Claims()
        self._attempt = 0  # the newest that a member has begun
        self._sessions = 0  # that there have been
        self._members: dict[int, Member] = {}
        self._open: dict[Connection, None] = {}  # a set has no order of its own
        self._unsent: dict[Member, None] = {}

    def opened(self, connection: Connection) -> None:
        self._open[connection] = None

    def closed(self, connection: Connection, call_later: Callable[..., TimerHandle]) -> None:
        """Its member is away for now, unless it has another connection already.

        `call_later` is the event loop's.
        """
        self._open.pop(connection, None)
        member = connection.member
        if member is not None and member.connection is connection:
            member.connection = None
            member.forget = call_later(self._keep_s, self._forget, member)

    def end(self, member: Member) -> None:
        """The session is over: the member is gone, with all that it held."""
        if member.forget is not None:
            member.forget.cancel()
        member.connection = None
        if self._members.get(member.index) is member:
            del self._members[member.index]
            self._deliver(self._claims.gone(member.index))

    def _forget(self, member: Member) -> None:
        logger.warning("member %d has not come back; what it held is let go", member.index)
        self.end(member)
        self.flush()

    def close(self) -> None:
        for member in self._members.values():
            if member.connection is not None:
                member.connection.write([to_line(["bye"])])
        self._members.clear()
        for connection in self._open:
            connection.drop()

    def flush(self) -> None:
        """Send what the last read has led to, in one write a connection."""
        while self._unsent:  # one that reads nothing is ended, which answers others
            unsent, self._unsent = self._unsent, {}
            for member in unsent:
                if member.connection is not None and (lines := _to_send(member.session)):
                    member.connection.write(lines)

    def enter(self, connection: Connection, message: list[Any]) -> Member:
        """The member that a first message names, on its connection. Raises Malformed, Refused."""
        match message:
            case ["hello", str(token), int(index)] if index >= 0 and self._is_ours(token):
                member = self._welcome(connection, index)
            case [
                "resume",
                str(token),
                int(index),
                int(number),
                int(attempt),
                int(taken),
            ] if self._is_ours(token):
                member = self._resume(connection, index, number, attempt, taken)
            case _:
                raise Malformed("the first line does not carry this run's token")
        return member

    def _is_ours(self, token: str) -> bool:
        return hmac.compare_digest(token.encode(errors="replace"), self._token)

    def _welcome(self, connection: Connection, index: int) -> Member:
        self._sessions += 1
        before = self._members.get(index)
        if before is not None:  # its end has not been noticed yet, or another has its place now
            self._leave(before)
            self.end(before)
        member = self._members[index] = Member(index, self._sessions, connection)
        connection.write([to_line(["welcome", member.number])])
        return member

    def _resume(
        self, connection: Connection, index: int, number: int, attempt: int, taken: int
    ) -> Member:
        member = self._members.get(index)
        if member is None or member.number != number:
            raise Refused("over")
        if attempt < self._attempt:
            raise Refused("attempt")
        member.session.resume(taken)
        self._leave(member)
        if member.forget is not None:
            member.forget.cancel()
            member.forget = None
        member.connection = connection
        connection.write([to_line(["resumed", member.session.taken])])
        self._unsent[member] = None
        return member

    def _leave(self, member: Member) -> None:
        """Its connection is not the member's any more."""
        before, member.connection = member.connection, None
        if before is not None:
            before.drop()

    def handle(self, sender: Member, message: list[Any]) -> None:
        """Act on a message of a member. Raises Malformed."""
        claims, member = self._claims, sender.index
        match message:
            case ["taken", int(count)]:
                sender.session.told(count)
                return
            case ["bye"]:
                self._leave(sender)
                self.end(sender)
                return
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
                self._send(sender, answer_to_line(request, Published(counts)))
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
                self._attempt = max(self._attempt, attempt)
                self._deliver(claims.begin(member, attempt))
            case _:
                raise Malformed("not a message of an agent")
        sender.session.take()
        if sender.session.must_tell:
            self._unsent[sender] = None

    def _deliver(self, replies: list[Reply]) -> None:
        for reply in replies:
            member = self._members.get(reply.member)
            if member is not None:
                self._send(member, answer_to_line(reply.request, reply.answer))

    def _send(self, member: Member, line: bytes) -> None:
        member.session.add(line)
        self._unsent[member] = None


def _to_send(session: Session) -> list[bytes]:
    lines, taken = session.send(), session.tell()
    return lines if taken is None else [*lines, to_line(["taken", taken])]
