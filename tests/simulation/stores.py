"""A bucket, and what a process sees of it; also node directories, which are faster.

A request takes time to arrive and its answer takes time to come back. What was sent arrives also
where its sender has died or given up meanwhile.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from typing import Any

from hotstart.cache.entry import EntryMeta, encode, entry_name
from hotstart.cache.errors import AccessDenied, DeadlineExceeded, StoreError, TransientError
from hotstart.cache.store import ObjectStat, check_name
from tests.simulation.world import OUTAGE_AFTERMATH_S, SimProcess, World

_DEADLINE_S = 30.0
_KINDS = (
    ("entry", re.compile(r"entries/.*")),
    ("claim", re.compile(r"leases/[^@]*@\d+")),
    ("beat", re.compile(r"leases/.*@\d+\.\d+\..*")),
    ("lease-end", re.compile(r"leases/.*\.done")),
    ("lease", re.compile(r"leases/.*")),
    ("mark", re.compile(r"pending/.*")),
    ("owner-claim", re.compile(r"[^/]*/owner/\d+/00000000")),
    ("owner-beat", re.compile(r"[^/]*/owner/.*")),
    ("attempt", re.compile(r"[^/]*/attempts/.*")),
    ("run-end", re.compile(r"[^/]*/end/.*")),
    ("run", re.compile(r".*")),
)


def kind_of(name: str) -> str:
    return next(kind for kind, pattern in _KINDS if pattern.fullmatch(name))


class Bucket:
    """Named immutable objects, strongly consistent."""

    def __init__(self, world: World, name: str) -> None:
        self.name = name
        self.objects: dict[str, tuple[bytes, ObjectStat]] = {}
        self.clock_s = 1e9
        self.on_create: list[Callable[[str, bytes, int], None]] = []
        self.on_delete: list[Callable[[str, bytes], None]] = []
        self.on_list: list[Callable[[str], None]] = []
        self.out_until_s: dict[str, float] = {}  # by host
        self.by: SimProcess | None = None  # whose request is executed
        self._world = world
        self._generations = itertools.count(1)

    def create(self, name: str, data: bytes) -> bool:
        if name in self.objects:
            return False
        modified_s = self.clock_s + self._world.scheduler.now_s
        stat = ObjectStat(name, len(data), next(self._generations), modified_s)
        self.objects[name] = data, stat
        for act in self.on_create:
            act(name, data, stat.generation)
        return True

    def delete(self, name: str, generation: int) -> bool:
        found = self.objects.get(name)
        if found is None or found[1].generation != generation:
            return False
        del self.objects[name]
        for act in self.on_delete:
            act(name, found[0])
        return True

    def get(self, name: str) -> bytes | None:
        found = self.objects.get(name)
        return None if found is None else found[0]

    def stat(self, name: str) -> ObjectStat | None:
        found = self.objects.get(name)
        return None if found is None else found[1]

    def list(self, prefix: str) -> list[ObjectStat]:
        for act in self.on_list:
            act(prefix)
        found = sorted(self.objects.items())
        return [stat for name, (_, stat) in found if name.startswith(prefix)]


def spoil(world: World, bucket: Bucket, key: str) -> None:
    """Leave what is no sound entry of the key where its entry belongs, as a torn write does."""
    data = bytearray(encode(key, b"an executable of long ago", EntryMeta()))
    if world.rng.random() < 0.5:
        data[-1] ^= 1
    else:
        del data[world.rng.randrange(len(data)) :]
    bucket.create(entry_name(key), bytes(data))
    world.spoiled.add(key)


class SimStore:
    """A bucket as `hotstart.cache.store.Store`, as one role sees it."""

    def __init__(
        self,
        world: World,
        bucket: Bucket,
        *,
        may_delete: bool = True,
        deadline_s: float = _DEADLINE_S,
    ) -> None:
        self._world = world
        self._bucket = bucket
        self._may_delete = may_delete
        self._deadline_s = deadline_s

    @property
    def url(self) -> str:
        return f"memory://{self._bucket.name}"

    def get(self, name: str) -> bytes | None:
        check_name(name)
        return self._request("get", name, lambda: self._bucket.get(name))

    def create(self, name: str, data: bytes) -> bool:
        check_name(name)
        taken = bytes(data)
        return self._request("create", name, lambda: self._bucket.create(name, taken))

    def delete(self, name: str, generation: int) -> bool:
        check_name(name)
        return self._request("delete", name, lambda: self._bucket.delete(name, generation))

    def stat(self, name: str) -> ObjectStat | None:
        check_name(name)
        return self._request("stat", name, lambda: self._bucket.stat(name))

    def list(self, prefix: str) -> Iterator[ObjectStat]:
        return iter(self._request("list", prefix, lambda: self._bucket.list(prefix)))

    def _delays(self) -> tuple[float, float]:
        rng = self._world.rng
        slow = 20.0 if rng.random() < 0.02 else 1.0
        return rng.expovariate(1 / 0.02) * slow, rng.expovariate(1 / 0.02) * slow

    def _error(self, op: str) -> str | None:
        """What goes wrong with this request, if anything does."""
        world = self._world
        process, now_s = world.process, world.scheduler.now_s
        if op == "delete" and not self._may_delete:
            return "denied"
        if world.quiet:
            return None
        if self._bucket.out_until_s.get(process.host.name, 0.0) > now_s:
            return "out"
        if world.what_fails.store_error and world.rng.random() < world.what_fails.store_error:
            return world.rng.choice(("lost", "unanswered", "late"))
        return None

    def _request(self, op: str, name: str, execute: Callable[[], Any]) -> Any:
        world, scheduler = self._world, self._world.scheduler
        sender = world.process

        def effect() -> Any:
            self._bucket.by = sender
            return execute()

        what = f"{op} {kind_of(name)} in {self._bucket.name}"
        world.point(f"before {what}")
        error = self._error(op)
        there_s, back_s = self._delays()
        if error is not None:
            self._fail(error, what, effect, there_s)
        task = scheduler.check()
        answer: list[Any] = []

        def arrive() -> None:
            result = effect()
            scheduler.at(back_s, lambda: (answer.append(result), scheduler.wake(task)))

        scheduler.at(there_s, arrive)
        while not answer:
            scheduler.wait()
        world.point(f"after {what}")
        return answer[0]

    def _fail(self, error: str, what: str, effect: Callable[[], Any], there_s: float) -> None:
        world = self._world
        if error == "denied":
            world.scheduler.sleep(there_s)
            raise AccessDenied(f"cannot {what}: this role may not delete")
        if error != "out":
            world.fault(f"store: {error}", world.process.name, lasts_s=OUTAGE_AFTERMATH_S)
        if error == "unanswered":
            world.scheduler.at(there_s, effect)
        if error == "late":
            world.scheduler.at(self._deadline_s + world.rng.expovariate(1 / 20), effect)
        world.scheduler.sleep(there_s if error == "lost" else self._deadline_s * world.rng.random())
        kind = TransientError if error == "lost" else DeadlineExceeded
        raise kind(f"cannot {what}: {error}")


class NodeDirectory(SimStore):
    """A host's node directory, as `hotstart.cache.directory.DirectoryStore`."""

    def read_head(self, name: str, size_bytes: int) -> bytes | None:
        data = self.get(name)
        return None if data is None else data[:size_bytes]

    def _delays(self) -> tuple[float, float]:
        return self._world.rng.expovariate(1 / 0.0003), 0.0

    def _error(self, op: str) -> str | None:
        world = self._world
        chance = 0.0 if world.quiet or op != "create" else world.what_fails.disk_error
        return "full" if chance and world.rng.random() < chance else None

    def _fail(self, error: str, what: str, effect: Callable[[], Any], there_s: float) -> None:
        self._world.fault("disk full", self._world.process.name)
        self._world.scheduler.sleep(there_s)
        raise StoreError(f"cannot {what}: no space left on device")
