"""Who resolves which key, and who has its entry: the rules, without clock, I/O or threads.

Used twice: inside an agent, where the members are the host's workers, and inside the
coordinator, where they are the agents. The caller holds a lock around each call and delivers
the replies that it returns.

    claim ---> Found      published: read it from one of the sources, or from the store
          |--> Granted    the lease: look into the store, else compile; then say what became of it
          |--> Unstored   compiled elsewhere and kept nowhere: compile it, nobody waits for you
          |--> Absent     to a claim that would not compile: there is nothing to read
          '--> (waits)    somebody else has the lease
    Granted ---> publish | absent, then publish | unstored | release

Each claim gets exactly one reply, unless its member is gone or has begun a new attempt.

No cycle of waiting: a claim waits only for the holder of its key's lease. A holder settles a
lease without waiting for the reply to another claim: a thread resolves one key at a time, and
who holds several leases, reading ahead, reads each on its own. So holders wait for nobody, and
every chain of waiting has length one.

What bounds a wait is the holder's liveness, not a deadline (a compilation may take an hour): it
ends by `publish`, `unstored`, `release`, or `absent` where it would not compile; for a holder
that died, by `gone` or `begin`. Each of these answers the waiters or grants the lease to the
first of them, who is alive. A holder whose connection has ended counts as alive for a time, in
which it comes back without waiting for anybody (`coordinator_session.py`): so may the first of the
waiters, to whom the lease is granted.

Failure to read is a matter of the claim that failed: others may well reach what it did not, and
are not to be sent compiling. Only where nothing is left to it is the entry replaced.

Memory: 0.5 KB a key with its 80 characters, and 0.15 KB a waiting claim. Beyond `max_keys`
the oldest settled key is forgotten: who asks for it reads the store, or compiles.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

STORE = -1
"""As a source that failed: the store."""

_MAX_SOURCES = 8


@dataclass(frozen=True, slots=True)
class Held:
    """An entry that a member has in its node directory."""

    digest: bytes
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Found:
    """The entry to read. `sources` have it in their node directory, most recent first."""

    digest: bytes
    size_bytes: int
    sources: tuple[int, ...]
    in_store: bool


@dataclass(frozen=True, slots=True)
class Granted:
    """The lease: read the entry from the store, else compile it.

    `absent`: it is known not to be in the store. `replaces`: the digest of the published entry,
    which this claim could not read from anywhere; a `publish` takes its place.
    """

    absent: bool
    replaces: bytes | None


@dataclass(frozen=True, slots=True)
class Absent:
    """Only to claims that would not compile: nothing to read, as far as is known."""


@dataclass(frozen=True, slots=True)
class Unstored:
    """Compiled elsewhere in this attempt, or tried, and not stored: compile it, without a lease."""


Answer = Found | Granted | Absent | Unstored


@dataclass(frozen=True, slots=True)
class Reply:
    """The one answer to a claim."""

    member: int
    request: int
    answer: Answer


@dataclass(slots=True)
class _Claim:
    member: int
    request: int
    may_compile: bool
    failed: tuple[int, ...]
    failed_digest: bytes | None


@dataclass(slots=True)
class _Key:
    digest: bytes | None = None  # published; while there is a holder too, being replaced
    size_bytes: int = 0
    sources: tuple[int, ...] = ()
    in_store: bool = False
    absent_in: int | None = None  # the attempt that looked or compiled
    unstored_in: int | None = None
    holder: _Claim | None = None
    waiting: list[_Claim] = field(default_factory=list)  # empty without a holder

    def add_source(self, member: int) -> None:
        others = tuple(source for source in self.sources if source != member)
        self.sources = (member, *others[: _MAX_SOURCES - 1])


class Claims:
    """The state of all keys. Not safe among threads; no call blocks or raises."""

    def __init__(self, max_keys: int = 100_000) -> None:
        self._max_keys = max_keys
        self._keys: dict[str, _Key] = {}
        self._unsettled: dict[str, None] = {}  # keys that have a holder, in order
        self._attempts: dict[int, int] = {}
        self._attempt = 0  # the newest

    def claim(
        self,
        member: int,
        request: int,
        key: str,
        *,
        have: Held | None = None,
        failed: Collection[int] = (),
        failed_digest: bytes | None = None,
        may_compile: bool = True,
    ) -> list[Reply]:
        """Ask for `key`; the reply comes now or with a later call.

        `have` is an entry in the member's node directory: it is published where none is and
        nobody is about to publish one, and makes the member a source where it is the published
        one. `failed` are members, or `STORE`,
        from which the entry of `failed_digest` (None: the published one) could not be read. One
        member may have several claims to one key, even while it holds the lease.
        """
        state = self._keys.get(key) or self._add(key)
        if failed and failed_digest is None:
            failed_digest = state.digest
        replies: list[Reply] = []
        if have is not None and not (member in failed and have.digest == failed_digest):
            if state.digest is None and state.holder is None:
                _, replies = self.publish(
                    member, key, have.digest, have.size_bytes, in_node=True, in_store=False
                )
            elif state.digest == have.digest:
                state.add_source(member)
        claim = _Claim(member, request, may_compile, tuple(failed), failed_digest)
        answer = self._answer(key, state, claim)
        if answer is None:
            state.waiting.append(claim)
        else:
            replies.append(Reply(member, request, answer))
        return replies

    def publish(
        self,
        member: int,
        key: str,
        digest: bytes,
        size_bytes: int,
        *,
        in_node: bool,
        in_store: bool,
    ) -> tuple[bytes, list[Reply]]:
        """Say that the entry is in the member's node directory, or in the store; ends its lease.

        Returns the digest that counts, and the waiters' replies. The first digest published
        stays, unless the member's lease is to replace it; who published another is no source.
        While another member has the lease nothing is published: that one may run its own by now.
        An entry that is in neither place is `unstored`.
        """
        state = self._keys.get(key) or self._add(key)
        holds = state.holder is not None and state.holder.member == member
        if not in_node and not in_store:
            counts = digest if holds or state.digest is None else state.digest
            return counts, self.unstored(member, key)
        if holds or (state.digest is None and state.holder is None):
            if state.digest != digest:
                state.sources, state.in_store = (), False
            state.digest, state.size_bytes = digest, size_bytes
            state.absent_in, state.unstored_in = None, None
            state.holder = None
            for claim in state.waiting:
                claim.failed = ()
        elif state.digest != digest:
            return state.digest or digest, []
        if in_node:
            state.add_source(member)
        state.in_store |= in_store
        return digest, self._settle(key, state)

    def absent(self, member: int, key: str) -> list[Reply]:
        """The holder found nothing in the store, and compiles now if its claim said so."""
        state = self._held(member, key)
        if state is None or state.holder is None:
            return []
        state.absent_in = self._attempts.get(member, 0)
        if not state.holder.may_compile:
            state.holder = None
        return self._settle(key, state)

    def unstored(self, member: int, key: str) -> list[Reply]:
        """The holder compiled and stored nothing, or compiling raised: nobody waits any more.

        It counts for the rest of the attempt, or until somebody publishes. Where it was to
        replace an entry, those who can read that one are told of it.
        """
        state = self._held(member, key)
        if state is None:
            return []
        state.unstored_in = self._attempts.get(member, 0)
        return self._let_go(key, state)

    def release(self, member: int, key: str) -> list[Reply]:
        """The holder gives up; the next waiter has the lease. Without effect for others."""
        state = self._held(member, key)
        return [] if state is None else self._let_go(key, state)

    def stored(self, member: int, key: str, digest: bytes) -> None:
        """The upload of `digest` is in the store."""
        state = self._keys.get(key)
        if state is not None and state.digest == digest:
            state.in_store = True

    def begin(self, member: int, attempt: int) -> list[Reply]:
        """A new attempt of this member: its leases and claims are void, its sources stay.

        What older attempts compiled and did not store is forgotten.
        """
        self._attempts[member] = attempt
        self._attempt = max(self._attempt, attempt)
        return self._void(member)

    def gone(self, member: int) -> list[Reply]:
        """The member is lost, with all that it held, asked for and had."""
        self._attempts.pop(member, None)
        for state in self._keys.values():
            if member in state.sources:
                state.sources = tuple(source for source in state.sources if source != member)
                if not state.sources and not state.in_store:
                    state.digest = None
        return self._void(member)

    def _void(self, member: int) -> list[Reply]:
        replies: list[Reply] = []
        for key in list(self._unsettled):
            state = self._keys[key]
            state.waiting = [claim for claim in state.waiting if claim.member != member]
            if state.holder is not None and state.holder.member == member:
                replies += self._let_go(key, state)
        return replies

    def _held(self, member: int, key: str) -> _Key | None:
        state = self._keys.get(key)
        if state is None or state.holder is None or state.holder.member != member:
            return None
        return state

    def _let_go(self, key: str, state: _Key) -> list[Reply]:
        state.holder = None
        return self._settle(key, state)

    def _settle(self, key: str, state: _Key) -> list[Reply]:
        """Answer the waiters, in order, that need not wait as things are now."""
        waiting, state.waiting = state.waiting, []
        replies: list[Reply] = []
        for claim in waiting:
            answer = self._answer(key, state, claim)
            if answer is None:
                state.waiting.append(claim)
            else:
                replies.append(Reply(claim.member, claim.request, answer))
        if state.holder is None:
            self._unsettled.pop(key, None)
        return replies

    def _answer(self, key: str, state: _Key, claim: _Claim) -> Answer | None:
        """The answer as things are now, with the lease if that is it; None is to wait."""
        if state.holder is not None:
            return Absent() if self._is_absent(state) and not claim.may_compile else None
        if state.digest is not None:
            failed = claim.failed if claim.failed_digest == state.digest else ()
            sources = tuple(source for source in state.sources if source not in failed)
            in_store = state.in_store and STORE not in failed
            if sources or in_store:
                return Found(state.digest, state.size_bytes, sources, in_store)
        if state.unstored_in is not None and state.unstored_in >= self._attempt:
            return Unstored()
        is_absent = self._is_absent(state)
        if not claim.may_compile and (is_absent or state.digest is not None):
            return Absent()
        state.holder = claim
        self._unsettled[key] = None
        return Granted(is_absent, state.digest)

    def _is_absent(self, state: _Key) -> bool:
        """Another job may have stored it since an older attempt looked."""
        return state.absent_in is not None and state.absent_in >= self._attempt

    def _add(self, key: str) -> _Key:
        if len(self._keys) >= self._max_keys:
            oldest = next((k for k, state in self._keys.items() if state.holder is None), None)
            if oldest is not None:
                del self._keys[oldest]
        state = self._keys[key] = _Key()
        return state
