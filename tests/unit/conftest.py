"""A store in memory and a clock that only moves when told, for unit tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from hotstart.cache.store import ObjectStat, check_name


class InMemoryStore:
    """The `Store` protocol over a dict; `now_s` is the store's own clock."""

    url = "/runs"

    def __init__(self) -> None:
        self.now_s = 1_800_000_000.0
        self.error: Exception | None = None
        self._objects: dict[str, tuple[bytes, ObjectStat]] = {}
        self._generation = 0

    def get(self, name: str) -> bytes | None:
        self._fail_if_told()
        found = self._objects.get(check_name(name))
        return found[0] if found else None

    def create(self, name: str, data: bytes) -> bool:
        self._fail_if_told()
        if check_name(name) in self._objects:
            return False
        self._generation += 1
        stat = ObjectStat(name, len(data), self._generation, self.now_s)
        # setdefault is atomic under the GIL, so racing threads have one winner
        return self._objects.setdefault(name, (data, stat))[1] is stat

    def delete(self, name: str, generation: int) -> bool:
        self._fail_if_told()
        found = self._objects.get(name)
        if found is None or found[1].generation != generation:
            return False
        del self._objects[name]
        return True

    def list(self, prefix: str) -> Iterator[ObjectStat]:
        self._fail_if_told()
        return iter([self._objects[n][1] for n in sorted(self._objects) if n.startswith(prefix)])

    def stat(self, name: str) -> ObjectStat | None:
        self._fail_if_told()
        found = self._objects.get(name)
        return found[1] if found else None

    def names(self, prefix: str = "") -> tuple[str, ...]:
        return tuple(sorted(n for n in self._objects if n.startswith(prefix)))

    def _fail_if_told(self) -> None:
        if self.error is not None:
            raise self.error


class FakeClock:
    """A monotonic clock that `sleep` moves; `on_sleep` is called after each move."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.slept: list[float] = []
        self.on_sleep: Callable[[], None] = lambda: None

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_s += seconds
        self.on_sleep()


@pytest.fixture
def store() -> InMemoryStore:
    return InMemoryStore()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()
