"""One member's conversation with the coordinator, over as many connections as it takes.

A session is what a member and the coordinator say to each other: lines, in order. It outlives
the connection under it, in the manner of XMPP's stream management
(https://xmpp.org/extensions/xep-0198.html):

    agent                                                   coordinator
    ["hello", token, member]                  first         ["welcome", session]
    lines (coordinator_wire.py)                             lines
    ["taken", count]                                        ["taken", count]
        ...the connection ends, and is noticed by each end in its own time...
    ["resume", token, member, session,        first         ["resumed", taken]
        attempt, taken]                                     ["refused", "attempt" | "over"]
    the lines that the coordinator has not taken            the lines that the agent has not taken
    ["bye"]                                   last          ["bye"]

The messages drawn here are no lines of the session. Its lines have no numbers: both ends count
them, from 1, and count one as taken when it has come whole and was acted on. Each end keeps what
it has sent until the other says that it has taken it, every `TELL_EVERY` lines and as a session
is resumed; then it sends the rest again. So each line is taken once and in order, however often
the connection ends and wherever that cuts a line in two: what both ends know of leases, open
questions and publications is what it would be had it never ended, only later. What the member
asks, publishes and lets go while it is away is said when it is back, and so is what it is answered.
Nothing is asked, answered or granted twice.

**Who waits, and for how long.** A member that is away holds what it held, and waits where it
waited; it may be granted a lease. It comes back without waiting for anybody's lease, so it is no
link in a cycle. It notices the end of its connection within `DEAD_AFTER_S` and tries to connect
again for `RECONNECT_S`; then it is lost and goes on alone. The coordinator keeps it for `KEEP_S`
after it has noticed the end; then the member is gone, and what it held goes to who waits for it.
`KEEP_S` is longer than the other two together, as the coordinator may notice first: a member that
is back in its time finds its session, unless it, or the coordinator, stood still. A way that lets
a member in and carries nothing holds nobody up for ever: it is lost after `MOST_FRUITLESS` short
connections in a row through which no line has come.

**Who is refused.** Without the run's token, which a coordinator that has been started again has
anew, nobody is let in. "over": the session is not the member's any more: the coordinator has kept
it for its time, or whoever is this member now has said hello. "attempt": others have begun a later
attempt; in the time that it has left the member may begin that one too and be let in.

**What ends a session at once**: bye, which either end says when it closes; a line that is no
message; 64 MiB that the member does not read.
"""

from __future__ import annotations

from hotstart.launcher.coordinator_wire import DEAD_AFTER_S, Malformed

RECONNECT_S = 10.0
KEEP_S = DEAD_AFTER_S + RECONNECT_S + 5.0
MOST_FRUITLESS = 5
TELL_EVERY = 32


class Session:
    """One end of it. Not safe among threads: the caller holds a lock."""

    def __init__(self) -> None:
        self._kept: list[bytes] = []  # lines that the other end has not said to have taken
        self._before = 0  # lines that it has
        self._sent = 0  # of those kept, over the present connection
        self._taken = 0
        self._told = 0

    @property
    def has_unsent(self) -> bool:
        """Whether there is something to send over the present connection."""
        return self._sent < len(self._kept)

    @property
    def taken(self) -> int:
        """How many lines of the other end were taken here."""
        return self._taken

    @property
    def taken_there(self) -> int:
        """How many lines of this end the other has said to have taken."""
        return self._before

    def add(self, line: bytes) -> None:
        """A line to send."""
        self._kept.append(line)

    def send(self) -> list[bytes]:
        """The lines to send now; they are kept."""
        unsent, self._sent = self._kept[self._sent :], len(self._kept)
        return unsent

    def take(self) -> None:
        """A line of the other end was taken."""
        self._taken += 1

    @property
    def must_tell(self) -> bool:
        """Whether the other end is to be told what was taken here."""
        return self._taken - self._told >= TELL_EVERY

    def tell(self) -> int | None:
        """The count to tell the other end, where that is due."""
        if not self.must_tell:
            return None
        self._told = self._taken
        return self._taken

    def told(self, count: int) -> None:
        """The other end has taken so many lines. Raises Malformed where that can't be."""
        if not 0 <= count - self._before <= self._sent:
            raise Malformed(f"{count} lines taken of {self._before + self._sent}")
        del self._kept[: count - self._before]
        self._sent -= count - self._before
        self._before = count

    def resume(self, count: int) -> None:
        """Another connection, and the other end has taken so many lines. Raises Malformed."""
        self.told(count)
        self._sent = 0
        self._told = self._taken
