"""A store in this process's memory, with the contract of the real ones."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

from hotstart.cache.store import ObjectStat, check_name


class MemoryStore:
    """Objects in a dict. Safe among threads; not shared with other processes."""

    def __init__(self, url: str = "memory://store") -> None:
        self._url = url
        self._lock = threading.Lock()
        self._generations = itertools.count(1)
        self._objects: dict[str, tuple[bytes, ObjectStat]] = {}

    @property
    def url(self) -> str:
        return self._url

    def get(self, name: str) -> bytes | None:
        found = self._objects.get(check_name(name))
        return None if found is None else found[0]

    def create(self, name: str, data: bytes) -> bool:
        check_name(name)
        with self._lock:
            if name in self._objects:
                return False
            stat = ObjectStat(name, len(data), next(self._generations), time.time())
            self._objects[name] = (bytes(data), stat)
            return True

    def delete(self, name: str, generation: int) -> bool:
        with self._lock:
            found = self._objects.get(check_name(name))
            if found is None or found[1].generation != generation:
                return False
            del self._objects[name]
            return True

    def renew(self, name: str, generation: int) -> bool:
        with self._lock:
            found = self._objects.get(check_name(name))
            if found is None or found[1].generation != generation:
                return False
            data, stat = found
            self._objects[name] = (data, replace(stat, generation=next(self._generations)))
            return True

    def list(self, prefix: str) -> Iterator[ObjectStat]:
        with self._lock:
            found = sorted(self._objects.items())
        return iter([stat for name, (_, stat) in found if name.startswith(prefix)])

    def stat(self, name: str) -> ObjectStat | None:
        found = self._objects.get(check_name(name))
        return None if found is None else found[1]
