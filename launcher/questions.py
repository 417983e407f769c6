"""The open questions of a host's workers: what they ask, and how an answer looks.

{"request": 7, "ask": "resolve", "key": ..., "failed": [["node", DIGEST], ["store", null],
                                                        ["unloadable", DIGEST]]}
{"request": 7, "waited": false, "answer": "node" | "store", "digest": ...}
                                "answer": "compile", "leased": true
                                "answer": "required", "error": ...
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from hotstart.launcher.resolved import Wanted

Send = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Question:
    """One open question of a member, and who takes its answer, under the member's `number`."""

    id: int
    member: int
    number: int
    wanted: Wanted
    send: Send

    def answer(self, waited: bool, **fields: Any) -> None:
        """Send the answer; blocks while the worker's buffer is full."""
        self.send({"request": self.number, "waited": waited, **fields})


class Questions:
    """Not safe among threads: the caller holds a lock. An answer is for who takes it off first."""

    def __init__(self) -> None:
        self._ids = itertools.count(1)
        self._open: dict[int, Question] = {}
        self._waited: set[int] = set()

    def add(self, member: int, number: int, wanted: Wanted, send: Send) -> Question:
        """A new question."""
        question = Question(next(self._ids), member, number, wanted, send)
        self._open[question.id] = question
        return question

    def find(self, id: int) -> Question | None:
        """The question, unless it is answered or void."""
        return self._open.get(id)

    def note_wait(self, question: Question) -> None:
        """It was not answered at once."""
        self._waited.add(question.id)

    def take_off(self, question: Question) -> bool | None:
        """It is answered now: whether it has waited, or None where it is not open any more."""
        if self._open.pop(question.id, None) is None:
            return None
        waited = question.id in self._waited
        self._waited.discard(question.id)
        return waited

    def forget(self, members: Collection[int]) -> None:
        """What these members have asked is void."""
        for question in [q for q in self._open.values() if q.member in members]:
            self.take_off(question)


def wanted_of(key: str, failed: Sequence[list[str | None]]) -> Wanted:
    """What a worker wants that could not use what it was told of before.

    What JAX can't load is of no use, however sound it is. What could not be read twice in the
    node directory, where the agent finds it sound, is not to be looked for there any more.
    """
    digests = [digest for _, digest in failed if digest]
    replaces = digests[-1] if digests else None
    return Wanted(
        key,
        may_compile=True,
        replaces=None if replaces is None else bytes.fromhex(replaces),
        distrusted=["unloadable", replaces] in failed,
        node_failed=failed.count(["node", replaces]) > 1,
        store_failed=any(tier == "store" for tier, _ in failed),
    )


def own_way(message: dict[str, Any]) -> dict[str, Any]:
    """An answer with which a worker can go on, whatever it has asked."""
    return {
        "request": message["request"],
        "answer": "compile",
        "leased": False,
        "digest": message.get("digest"),
        "flushed": False,
    }
