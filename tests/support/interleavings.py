"""Every order in which two actors can do their operations on one store, one order after another.

An actor is a function that is given its own view of the store and a `sleep`; each operation on the
view, and each sleep, is a step. A run of two actors is decided by who takes each step; all the
ways to decide are tried, depth first.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from hotstart.cache.store import ObjectStat
from tests.support.memory_store import MemoryStore

TIMEOUT_S = 20.0


class View:
    """A store as one actor uses it; `turn` is called before each operation."""

    def __init__(self, store: MemoryStore, turn: Callable[[], None]) -> None:
        self._store = store
        self._turn = turn
        self.now_s = 0.0

    @property
    def url(self) -> str:
        return self._store.url

    def get(self, name: str) -> bytes | None:
        self._turn()
        return self._store.get(name)

    def create(self, name: str, data: bytes) -> bool:
        self._turn()
        return self._store.create(name, data)

    def delete(self, name: str, generation: int) -> bool:
        self._turn()
        return self._store.delete(name, generation)

    def renew(self, name: str, generation: int) -> bool:
        self._turn()
        return self._store.renew(name, generation)

    def list(self, prefix: str) -> Iterator[ObjectStat]:
        self._turn()
        return self._store.list(prefix)

    def stat(self, name: str) -> ObjectStat | None:
        self._turn()
        return self._store.stat(name)

    def clock(self) -> float:
        return self.now_s

    def sleep(self, duration_s: float) -> None:
        self._turn()
        self.now_s += duration_s


Actor = Callable[[View], Any]


@dataclass
class _Running:
    """One actor: it waits for `go` before each step, and `parked` says that it does, or is done."""

    go: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    parked: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    is_done: bool = False
    result: Any = None

    def turn(self) -> None:
        self.parked.release()
        assert self.go.acquire(timeout=TIMEOUT_S)

    def run(self, actor: Actor, store: MemoryStore) -> None:
        try:
            self.result = actor(View(store, self.turn))
        except BaseException as error:
            self.result = error
        self.is_done = True
        self.parked.release()


def every_order(
    make_store: Callable[[], MemoryStore], actors: tuple[Actor, Actor]
) -> Iterator[tuple[MemoryStore, tuple[Any, Any], str]]:
    """After each order: the store, what the actors returned or raised, and the order as text."""
    forced: list[int] = []
    while True:
        store = make_store()
        running = (_Running(), _Running())
        threads = [
            threading.Thread(target=one.run, args=(actor, store), daemon=True)
            for one, actor in zip(running, actors, strict=True)
        ]
        for thread, one in zip(threads, running, strict=True):
            thread.start()
            assert one.parked.acquire(timeout=TIMEOUT_S)
        taken: list[int] = []
        free: list[bool] = []  # whether there was a choice
        while not all(one.is_done for one in running):
            choices = [index for index, one in enumerate(running) if not one.is_done]
            step = len(taken)
            chosen = forced[step] if step < len(forced) else choices[0]
            taken.append(chosen)
            free.append(len(choices) > 1)
            running[chosen].go.release()
            assert running[chosen].parked.acquire(timeout=TIMEOUT_S)
        for thread in threads:
            thread.join(TIMEOUT_S)
        yield store, (running[0].result, running[1].result), "".join(map(str, taken))
        last = max((i for i, is_free in enumerate(free) if is_free and taken[i] == 0), default=None)
        if last is None:
            return
        forced = [*taken[:last], 1]
