"""A host's side of its conversation with the coordinator, over attempts and lost links.

A link is lost when it could not connect again; until then its questions wait in it, and nothing
here knows of its connections (`coordinator_session.py`).

Each attempt is a *term*. What belongs to an older term is void: it sends nothing any more, so
that no claim of a worker that has ended follows the `begin` that voids its claims.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from hotstart.launcher.claims import Held


class Link(Protocol):
    """The connection to the coordinator; see `coordinator_link.CoordinatorLink`.

    No call blocks, or calls back on the calling thread.
    """

    @property
    def lost(self) -> bool: ...
    def begin(self, attempt: int) -> None: ...
    def claim(
        self,
        request: int,
        key: str,
        *,
        have: Held | None = ...,
        failed: Iterable[int] = ...,
        failed_digest: bytes | None = ...,
        may_compile: bool = ...,
    ) -> None: ...
    def publish(
        self,
        request: int,
        key: str,
        digest: bytes,
        size_bytes: int,
        *,
        in_node: bool,
        in_store: bool,
    ) -> None: ...
    def absent(self, key: str) -> None: ...
    def unstored(self, key: str) -> None: ...
    def release(self, key: str) -> None: ...
    def stored(self, key: str, digest: bytes) -> None: ...


@dataclass(frozen=True)
class _Open:
    """A question that has no answer yet."""

    link: Link
    then: Callable[[Any], None]
    outlives: bool


class GangLink:
    """Safe among threads. Links are called under a lock, as they only queue what they send.

    Answers are called back without it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._link: Link | None = None
        self._attempt: int | None = None
        self._term = 0
        self._number = 0
        self._open: dict[int, _Open] = {}
        self._was_alone = False

    @property
    def was_alone(self) -> bool:
        """Whether the term that has begun last was, in part at least, without this link."""
        return self._was_alone

    @property
    def term(self) -> int:
        """The one that has begun last."""
        return self._term

    def connect(self, link: Link) -> None:
        """Talk over this link from now on."""
        with self._lock:
            self._link = link
            if self._attempt is not None:
                self._was_alone = True
                link.begin(self._attempt)

    def begin(self, attempt: int | None) -> None:
        """A new term; None where no attempt follows."""
        with self._lock:
            self._term += 1
            self._attempt = attempt
            void, self._open = self._open, {}
            self._was_alone = False
            if self._link is not None and attempt is not None:
                self._link.begin(attempt)
        for question in void.values():
            if question.outlives:
                question.then(None)

    def ask(
        self,
        term: int,
        send: Callable[[Link, int], None],
        then: Callable[[Any], None],
        *,
        outlives: bool = False,
    ) -> bool:
        """Send a question by its number; False where there is nobody to ask.

        `then` gets the answer, or None where the coordinator is lost, or where a new term begins
        and the question `outlives` its own. Nothing is sent for a void term, and nothing comes.
        """
        with self._lock:
            if term != self._term:
                return not outlives
            link = self._link
            if link is None:
                return False
            self._number += 1
            self._open[self._number] = _Open(link, then, outlives)
            send(link, self._number)
            if link.lost:  # perhaps before it took the question
                self._link = None
                return self._open.pop(self._number, None) is None
        return True

    def tell(self, term: int, send: Callable[[Link], None]) -> None:
        """Send what needs no answer, unless the term is void."""
        with self._lock:
            if term == self._term and self._link is not None:
                send(self._link)

    def answered(self, number: int, answer: Any) -> None:
        """The coordinator's answer; called on the link's thread."""
        with self._lock:
            question = self._open.pop(number, None)
        if question is not None:
            question.then(answer)

    def lost(self) -> bool:
        """A link says that it is lost; whether it was the one in use."""
        with self._lock:
            link = self._link
            was_ours = link is not None and link.lost
            if was_ours:
                self._link = None
            numbers = [number for number, question in self._open.items() if question.link.lost]
            void = [self._open.pop(number) for number in numbers]
        for question in void:
            question.then(None)
        return was_ours
