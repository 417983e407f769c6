"""The cache of one host: its agent resolves keys for its workers, together with other agents.

    worker --ask--> HostCache --resolve--> Upstream: coordinator, peers, store, other clusters
    worker <-answer--+

A worker's claim is granted inside the host first (claims.py; members are workers), then among
the hosts, then between clusters, and only then the worker compiles, holding all of these leases
at once, for this one key. Reading ahead is a member of its own that never compiles: what it
brings is in the node directory when a worker asks.

No cycle of waiting can form: whoever waits here waits for the holder of the same key's lease, one
level further at most, and a holder waits for nobody. What bounds each wait: inside the host the
worker's life (`gone`, `begin`), among hosts the agent's (the coordinator sees its connection end,
and gives it a time to come back), between clusters the beat of a lease in the store; reads from
store and peers have deadlines. Who waits for the coordinator over a link whose connection has
ended waits until that is noticed and for the time to connect again at most
(`coordinator_session.py`). Where the coordinator is lost the host goes on with its own claims.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hotstart.launcher.claims import STORE, Absent, Claims, Found, Granted, Reply, Unstored
from hotstart.launcher.host_store import HostStore
from hotstart.launcher.questions import Question, Questions, Send, own_way, wanted_of
from hotstart.launcher.resolved import (
    Alone,
    Here,
    MayCompile,
    Nothing,
    Resolved,
    Unreadable,
    Wanted,
)
from hotstart.launcher.unleased import Unleased
from hotstart.launcher.upstream import Upstream

logger = logging.getLogger(__name__)

AHEAD = -2  # as a member: the agent itself, reading ahead


@dataclass(frozen=True)
class _Compiling:
    """Who compiles a key under the host's lease, and the entry that theirs is to replace."""

    worker: int
    replaces: bytes | None


class HostCache:
    """One agent's part in resolving keys. Does not block; safe among threads.

    No lock is held while something is sent, stored or resolved upstream; `begin` alone keeps
    others from beginning until it has told upstream.
    """

    def __init__(self, store: HostStore, upstream: Upstream) -> None:
        self.store = store
        self._upstream = upstream
        self._unleased = Unleased(store)
        self._claims = Claims()
        self._begins = threading.Lock()
        self._lock = threading.Lock()
        self._questions = Questions()
        self._compiling: dict[str, _Compiling] = {}
        self._attempt = -1
        self._term = 0
        self._members = {AHEAD}  # all that there ever were
        self._senders: dict[int, Send] = {}

    def begin(self, attempt: int, senders: dict[int, Send] | None = None) -> None:
        """A new attempt, the first time it is said, and its workers by process index.

        What was asked or leased before is void, also what its workers asked before they were
        named here. An attempt older than the last one is ignored.
        """
        with self._begins:
            replies: list[Reply] = []
            with self._lock:
                if attempt < self._attempt:  # the message has come late
                    return
                fresh, self._attempt = attempt != self._attempt, attempt
                if senders is not None:
                    self._senders = dict(senders)
                    self._members.update(senders)
                workers = set() if senders is None else self._members - {AHEAD}
                void = self._members if fresh else workers
                self._term += fresh
                if fresh and self._upstream.was_alone:  # what counts here may not in the gang
                    self._claims = Claims()
                abandoned = self._forget(void)
                for member in void:
                    replies += self._claims.begin(member, attempt)
            self._abandon(abandoned)
            if fresh:
                self._upstream.begin(attempt)
        self._deliver(replies)  # but for those that have been voided after it

    @property
    def is_compiling(self) -> bool:
        """Whether a worker compiles under this host's lease."""
        with self._lock:
            return bool(self._compiling)

    def gone(self, worker: int, attempt: int | None = None) -> None:
        """A worker, of `attempt` where given, has ended; who waits for what it held gets it."""
        with self._lock:
            if attempt is not None and attempt != self._attempt:
                return
            abandoned = self._forget({worker})
            replies = self._claims.begin(worker, self._attempt)
        self._abandon(abandoned)
        self._deliver(replies)

    def read_ahead(self, attempt: int, keys: Sequence[str]) -> None:
        """Bring the entries of these keys into the node directory, in parallel."""
        self.begin(attempt)
        for key in keys if attempt == self._attempt else ():
            self._claim(AHEAD, 0, Wanted(key, may_compile=False), _nobody)

    def ask(self, worker: int, message: dict[str, Any]) -> None:
        """A message of a worker; what is answered goes to its sender. Raises nothing."""
        send = self._senders.get(worker)
        if send is None:  # of an attempt that is over
            return
        try:
            self._take(worker, message, send)
        except Exception:  # the worker must not wait for ever
            logger.exception("process %d: its question could not be taken", worker)
            if "request" in message:
                send(own_way(message))

    def close(self) -> None:
        """Answer nobody any more."""
        with self._lock:
            self._senders = {}
            self._forget(set(self._members))
        self._upstream.close()
        self.store.close()

    def _take(self, worker: int, message: dict[str, Any], send: Send) -> None:
        key, number = str(message.get("key", "")), int(message.get("request", 0))
        required = self.store.required
        if required is not None and message["ask"] in ("resolve", "probe"):
            send({"request": number, "answer": "required", "error": required})
            return
        match message["ask"]:
            case "resolve":
                self._claim(worker, number, wanted_of(key, message["failed"]), send)
            case "ahead":
                self._claim(worker, number, Wanted(key, may_compile=False), send)
            case "probe":
                self._unleased.probe(key, number, message["failed"], send)
            case "publish":
                self._publish(worker, message, send)
            case "release":
                self._unstored(worker, key)
            case "flush":
                self._unleased.flush(number, float(message["timeout_s"]), send)

    def _forget(self, members: set[int]) -> dict[str, _Compiling]:
        """Their questions, and the keys that they compile; the caller holds the lock."""
        self._questions.forget(members)
        abandoned = {key: who for key, who in self._compiling.items() if who.worker in members}
        for key in abandoned:
            del self._compiling[key]
        return abandoned

    def _abandon(self, compiling: Mapping[str, _Compiling]) -> None:
        """Let go of what workers compiled that have ended, and upload what they came to store."""
        for key, who in compiling.items():
            self._upstream.release(key)
            self.store.upload_left(key, who.replaces)

    def _claim(self, member: int, number: int, wanted: Wanted, send: Send) -> None:
        with self._lock:
            question = self._questions.add(member, number, wanted, send)
            # There is one node directory: who could not read an entry there can't from anybody.
            failed = () if wanted.replaces is None else (*self._members, STORE)
            replies = self._claims.claim(
                member, question.id, wanted.key,
                failed=failed, failed_digest=wanted.replaces, may_compile=wanted.may_compile,
            )  # fmt: skip
            if not replies:
                self._questions.note_wait(question)
        self._deliver(replies)

    def _deliver(self, replies: Sequence[Reply]) -> None:
        for reply in replies:
            with self._lock:
                question = self._questions.find(reply.request)
            if question is None:  # void by now, and its lease with it
                continue
            match reply.answer:
                case Found() as found:
                    tier = "node" if found.sources else "store"
                    self._answer(question, answer=tier, digest=found.digest.hex())
                case Granted(absent=absent):
                    wanted = dataclasses.replace(question.wanted, absent=absent)
                    self._upstream.resolve(wanted, functools.partial(self._settle, question))
                case Unstored() | Absent():
                    self._answer(question, answer="compile", leased=False)

    def _settle(self, question: Question, outcome: Resolved) -> bool:
        """What upstream found out about a granted request; False where nobody wants it now."""
        with self._lock:
            if self._questions.find(question.id) is None:
                return False
            replies = self._note(question, outcome)
        match outcome:
            case Here() as here:
                tier = "node" if here.in_node else "store"
                self._answer(question, answer=tier, digest=here.digest.hex())
            case Unreadable(error=error):
                self._answer(question, answer="required", error=error)
            case _:
                leased = isinstance(outcome, MayCompile)
                self._answer(question, answer="compile", leased=leased)
        self._deliver(replies)
        return True

    def _note(self, question: Question, outcome: Resolved) -> list[Reply]:
        """The same for the claims of this host; the caller holds the lock."""
        member, key = question.member, question.wanted.key
        match outcome:
            case Here() as here:
                return self._publish_here(member, key, here)
            case MayCompile(absent=absent):
                self._compiling[key] = _Compiling(member, question.wanted.useless)
                return self._claims.absent(member, key) if absent else []
            case Alone():
                return self._claims.unstored(member, key)
            case Nothing(absent=True):
                return self._claims.absent(member, key)
        return self._claims.release(member, key)

    def _publish_here(self, member: int, key: str, here: Here) -> list[Reply]:
        # Not in the store as well: a worker reads it there itself only where it has to.
        where = {"in_node": here.in_node, "in_store": not here.in_node}
        return self._claims.publish(member, key, here.digest, here.size_bytes, **where)[1]

    def _answer(self, question: Question, **fields: Any) -> None:
        with self._lock:
            waited = self._questions.take_off(question)
        if waited is not None:
            question.answer(waited, **fields)

    def _publish(self, worker: int, message: dict[str, Any], send: Send) -> None:
        key, size_bytes = str(message["key"]), int(message["size_bytes"])
        digest, in_node = bytes.fromhex(message["digest"]), bool(message["in_node"])
        with self._lock:
            held, term = self._let_go(worker, key), self._term

        def published(canonical: bytes) -> None:
            replies: list[Reply] = []
            with self._lock:
                current = term == self._term
                if current and canonical == digest:
                    canonical, replies = self._claims.publish(
                        worker, key, digest, size_bytes, in_node=in_node, in_store=not in_node
                    )
                elif current:
                    replies = self._claims.release(worker, key)
            answer = {"request": message["request"], "digest": canonical.hex()}
            if canonical == digest and in_node:  # before the answer: a flush may follow it
                then = functools.partial(self._uploaded, key, digest)
                self.store.upload(key, then, None if held is None else held.replaces)
            elif canonical == digest:
                self._upstream.stored(key, digest)
            elif held is not None:
                self._upstream.let_go(key)
            self._deliver(replies)
            if canonical != digest and current:
                bring = Wanted(key, may_compile=False)
                self._upstream.resolve(bring, functools.partial(self._brought, key, send, answer))
            else:
                send(answer)

        self._upstream.publish(key, digest, size_bytes, in_node=in_node, then=published)

    def _brought(self, key: str, send: Send, answer: dict[str, Any], outcome: Resolved) -> bool:
        """The gang's entry has taken the place of a worker's own, if it could be read."""
        replies: list[Reply] = []
        with self._lock:
            if isinstance(outcome, Here):
                replies = self._publish_here(AHEAD, key, outcome)
        send(answer)
        self._deliver(replies)
        return True

    def _uploaded(self, key: str, digest: bytes, in_store: bool) -> None:
        if in_store:
            return self._upstream.stored(key, digest)
        return self._upstream.let_go(key)

    def _unstored(self, worker: int, key: str) -> None:
        with self._lock:
            held = self._let_go(worker, key)
            replies = self._claims.unstored(worker, key)
        if held is not None:
            self._upstream.unstored(key)
        self._deliver(replies)

    def _let_go(self, worker: int, key: str) -> _Compiling | None:
        """That the worker compiles it no more, if it did; the caller holds the lock."""
        held = self._compiling.get(key)
        if held is None or held.worker != worker:
            return None
        del self._compiling[key]
        return held


def _nobody(message: dict[str, Any]) -> None:
    """Reading ahead needs no answer."""
