"""A worker's side of the resolution: it asks its agent over the channel, and waits.

The messages are drawn in `questions.py`.

An answer may take as long as another worker compiles. It always comes, or the agent has died,
and this process with it: the wait has no bound of its own.
"""

from __future__ import annotations

import base64
import itertools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from hotstart.cache.errors import CacheRequired
from hotstart.cache.requests import Request
from hotstart.cache.resolve import Answer, Compile, Failed, InNode, InStore, Unloadable
from hotstart.launcher.channel import Channel

_FLUSH_SLACK_S = 1.0


class AgentResolver:
    """`hotstart.cache.resolve.Resolver` of a worker; `answered` takes what the agent sends."""

    has_agent = True

    def __init__(
        self,
        channel: Channel,
        on_wait: Callable[[], None] = lambda: None,
        *,
        flush_slack_s: float = _FLUSH_SLACK_S,
    ) -> None:
        """`on_wait` is called once for each answer that somebody else had to be waited for.

        A `flush` may take `flush_slack_s` longer than it was told, for the answer to come.
        """
        self._channel = channel
        self._on_wait = on_wait
        self._flush_slack_s = flush_slack_s
        self._numbers = itertools.count(1)
        self._open: dict[int, Future[dict[str, Any]]] = {}
        self._lock = threading.Lock()

    def answered(self, message: dict[str, Any]) -> None:
        """An answer has arrived; called on the thread that reads the channel."""
        with self._lock:
            future = self._open.pop(message["request"], None)
        if future is not None:
            future.set_result(message)

    def resolve(self, key: str, failed: Sequence[Failed] = ()) -> Answer:
        """See `Resolver`; raises `CacheRequired` where strict mode can't read the store."""
        return self._where("resolve", key, failed)

    def probe(self, key: str, failed: Sequence[Failed] = ()) -> Answer:
        """See `Resolver`."""
        return self._where("probe", key, failed)

    def ahead(self, key: str, failed: Sequence[Failed] = ()) -> Answer:
        """See `Resolver`."""
        return Compile(False) if failed else self._where("ahead", key, ())

    def publish(self, key: str, digest: bytes, size_bytes: int, *, in_node: bool) -> bytes:
        """See `Resolver`."""
        message = self._ask(
            ask="publish", key=key, digest=digest.hex(), size_bytes=size_bytes, in_node=in_node
        ).result()
        return bytes.fromhex(message["digest"])

    def release(self, key: str) -> None:
        """See `Resolver`; does not block."""
        self._channel.send({"ask": "release", "key": key})

    def flush(self, timeout_s: float) -> bool:
        """See `Resolver`."""
        try:
            answer = self._ask(ask="flush", timeout_s=timeout_s)
            return bool(answer.result(timeout_s + self._flush_slack_s)["flushed"])
        except TimeoutError:
            return False

    def close(self) -> None:
        """The agent lets go of what a worker held when that ends."""

    def planned(self) -> list[dict[str, Any]]:
        """What the run's manifest lets this process load ahead."""
        return list(self._ask(ask="planned").result()["planned"])

    def _where(self, ask: str, key: str, failed: Sequence[Failed]) -> Answer:
        message = self._ask(ask=ask, key=key, failed=[_to_json(answer) for answer in failed])
        answer = message.result()
        if answer.get("waited"):
            self._on_wait()
        digest = bytes.fromhex(answer["digest"]) if answer.get("digest") else None
        match answer["answer"]:
            case "node":
                return InNode(digest)
            case "store":
                return InStore(digest)
            case "required":
                raise CacheRequired(answer["error"])
        return Compile(bool(answer.get("leased")))

    def _ask(self, **message: Any) -> Future[dict[str, Any]]:
        number = next(self._numbers)
        future: Future[dict[str, Any]] = Future()
        with self._lock:
            self._open[number] = future
        self._channel.send({"request": number, **message})
        return future


def asked_of(request: Request) -> dict[str, Any]:
    """A program that JAX asked for, as `launcher.asked` takes it; the agent adds the order."""
    return {
        "key": request.key,
        "size_bytes": request.size_bytes,
        "digest": request.digest.hex() if request.digest else None,
        "options": base64.b64encode(request.options).decode(),
        "devices": list(request.device_ids),
        "callbacks": request.host_callbacks,
        "outcome": request.outcome,
    }


def _to_json(answer: Failed) -> list[str | None]:
    if isinstance(answer, Unloadable):
        return ["unloadable", answer.digest.hex()]
    tier = "node" if isinstance(answer, InNode) else "store"
    digest = None if isinstance(answer, Compile) else answer.digest
    return [tier, digest.hex() if digest else None]
