"""Random schedules of hosts, workers, attempts and a coordinator that may get lost.

Nothing here runs in parallel: each step runs one queued task, delivers one message, or lets one
worker act, in an order drawn from a seed.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import pytest

from hotstart.cache.config import CacheConfig
from hotstart.cache.directory import DirectoryStore
from hotstart.cache.entry import EntryMeta, encode, entry_digest, entry_name
from hotstart.launcher.claims import Claims, Granted, Reply
from hotstart.launcher.coordinator_wire import Published
from hotstart.launcher.gang_link import GangLink
from hotstart.launcher.host_cache import HostCache
from hotstart.launcher.host_store import HostStore
from hotstart.launcher.resolved import Alone, Here, MayCompile, Nothing, Wanted
from hotstart.launcher.upstream import Upstream
from tests.support.host_lab import KEY, FarStore, entry
from tests.support.memory_store import MemoryStore

pytestmark = pytest.mark.unit

KEYS = [f"jit_{i}-" + "0" * 64 for i in range(8)]
DIGEST = entry_digest(entry())


class StepExecutor(Executor):
    """Keeps what it is given until `step`."""

    def __init__(self) -> None:
        self.tasks: deque[Callable[[], None]] = deque()
        self._is_shut = False

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        if self._is_shut:
            raise RuntimeError("cannot schedule new futures after shutdown")
        self.tasks.append(lambda: fn(*args, **kwargs))
        return Future()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._is_shut = True
        self.tasks.clear()

    def run_all(self) -> None:
        while self.tasks:
            self.tasks.popleft()()


class StepLink:
    """A link whose messages wait in two queues, each in order."""

    def __init__(self, net: StepNet, member: int, upstream: Upstream) -> None:
        self.lost = False
        self.said: deque[tuple[str, tuple[Any, ...], dict[str, Any]]] = deque()
        self.answers: deque[tuple[int, Any]] = deque()
        self.member = member
        self._net = net
        self._upstream = upstream
        net.links[member] = self

    def begin(self, *args: Any) -> None:
        self.said.append(("begin", args, {}))

    def claim(self, *args: Any, **how: Any) -> None:
        self.said.append(("claim", args, how))

    def publish(self, *args: Any, **where: Any) -> None:
        self.said.append(("publish", args, where))

    def absent(self, *args: Any) -> None:
        self.said.append(("absent", args, {}))

    def unstored(self, *args: Any) -> None:
        self.said.append(("unstored", args, {}))

    def release(self, *args: Any) -> None:
        self.said.append(("release", args, {}))

    def stored(self, *args: Any) -> None:
        self.said.append(("stored", args, {}))

    def hear(self) -> None:
        """The coordinator takes the next message."""
        name, args, how = self.said.popleft()
        claims = self._net.claims
        if name == "publish":
            number, *rest = args
            counts, replies = claims.publish(self.member, *rest, **how)
            self.answers.append((number, Published(counts)))
        else:
            replies = getattr(claims, name)(self.member, *args, **how)
        self._net.deliver(replies or [])

    def answer(self) -> None:
        """The host takes the next answer."""
        self._upstream.answered(*self.answers.popleft())

    def lose(self) -> None:
        self.lost = True
        self.said.clear()
        self.answers.clear()
        self._net.deliver(self._net.claims.gone(self.member))
        self._upstream.lost()


class StepNet:
    """The coordinator."""

    def __init__(self) -> None:
        self.claims = Claims()
        self.links: dict[int, StepLink] = {}

    def deliver(self, replies: Iterable[Reply]) -> None:
        for reply in replies:
            link = self.links[reply.member]
            if not link.lost:
                link.answers.append((reply.request, reply.answer))


class StepWorker:
    """One process: asks, compiles, publishes or gives up, and may die."""

    def __init__(self, host: StepHost, index: int) -> None:
        self.host = host
        self.index = index
        self.asked: dict[int, tuple[str, str]] = {}
        self.failed: list[list[str]] = []
        self.leased: str | None = None
        self.got: list[str] = []
        self.number = 0

    @property
    def is_idle(self) -> bool:
        return not self.asked and self.leased is None

    def ask(self, ask: str, key: str, **fields: Any) -> None:
        self.number += 1
        self.asked[self.number] = ask, key
        message = {"request": self.number, "ask": ask, "key": key, **fields}
        self.host.cache.ask(self.index, message)

    def resolve(self, key: str) -> None:
        self.ask("resolve", key, failed=self.failed)

    def hear(self, message: dict[str, Any]) -> None:
        assert self.host.has_no_lock
        ask, key = self.asked.pop(message["request"])  # KeyError: never asked by this worker
        if ask == "publish":
            self.got.append(key)
            return
        if message["answer"] == "compile":
            self.failed = []
            if message["leased"]:
                self.leased = key
            else:
                self.publish(key)
            return
        data = self.host.store.near.get(entry_name(key))
        if data is not None and entry_digest(data).hex() == message["digest"]:
            self.failed = []
            self.got.append(key)
            return
        self.failed = [*self.failed, [message["answer"], message["digest"]]]
        assert len(self.failed) < 8, "the request does not end"
        self.host.after.append(lambda: self.resolve(key))

    def publish(self, key: str) -> None:
        self.leased = None
        payload = b"by %d in %d" % (self.index, self.host.attempt)
        data = encode(key, payload, EntryMeta())
        near = self.host.store.near
        near.create(entry_name(key), data)
        digest = entry_digest(near.get(entry_name(key)) or b"")
        fields = {"digest": digest.hex(), "size_bytes": len(data), "in_node": True}
        self.host.after.append(lambda: self.ask("publish", key, **fields))

    def give_up(self) -> None:
        key, self.leased = self.leased, None
        self.host.cache.ask(self.index, {"ask": "release", "key": key})


class StepHost:
    """One agent; `after` holds what its workers do next."""

    def __init__(self, net: StepNet, index: int, far: MemoryStore, world: World) -> None:
        self.index = index
        self.pools: list[StepExecutor] = []
        self.after: deque[Callable[[], None]] = deque()
        self.attempt, self.ending = 0, False
        self.workers: dict[int, StepWorker] = {}
        near: Any = MemoryNear()
        self.store = HostStore(CacheConfig("memory://far", mode="read-only"), near, far)
        self.upstream = Upstream(self.store, index, world.fetch, make_pool=self._make_pool)
        self.cache = HostCache(self.store, self.upstream)
        self._net = net
        self.connect()

    def connect(self) -> None:
        self.link = StepLink(self._net, self.index, self.upstream)
        self.upstream.connect(self.link)

    def begin(self, attempt: int) -> None:
        self.attempt, self.ending = attempt, False
        self.after.clear()
        self.workers = {i: StepWorker(self, i) for i in (2 * self.index, 2 * self.index + 1)}
        self.cache.begin(attempt, {i: worker.hear for i, worker in self.workers.items()})

    @property
    def has_no_lock(self) -> bool:
        """Nothing may be sent, stored or fetched under one: there is one thread here."""
        return not (self.cache._lock.locked() or self.upstream._gang._lock.locked())

    def _make_pool(self, threads: int, name: str) -> Any:
        self.pools.append(StepExecutor())
        return self.pools[-1]


class MemoryNear(MemoryStore):
    """A node directory in memory."""

    def read_head(self, name: str, size_bytes: int) -> bytes | None:
        data = self.get(name)
        return None if data is None else data[:size_bytes]


class World:
    """A gang and its random schedule."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.net = StepNet()
        self.far = MemoryStore()
        if self.random.random() < 0.5:
            self.far.create(entry_name(KEYS[0]), encode(KEYS[0], b"stored", EntryMeta()))
        self.hosts = [StepHost(self.net, i, self.far, self) for i in range(3)]
        self.lossy = self.random.random() < 0.3

    def fetch(self, source: int, key: str, digest: bytes) -> bytes | None:
        assert all(host.has_no_lock for host in self.hosts)
        if self.random.random() < 0.2:
            raise RuntimeError("the object is lost")
        return self.hosts[source].store.hand_out(key, digest)

    def moves(self) -> list[Callable[[], None]]:
        """What may happen next by itself."""
        found: list[Callable[[], None]] = []
        for host in self.hosts:
            found += [lambda pool=pool: pool.tasks.popleft()() for pool in host.pools if pool.tasks]
            found += [lambda host=host: host.after.popleft()()] if host.after else []
            found += [host.link.hear] if host.link.said else []
            found += [host.link.answer] if host.link.answers else []
        return found

    def act(self, host: StepHost) -> None:
        """A worker, or its host, does something."""
        worker = self.random.choice(list(host.workers.values()))
        draw = self.random.random()
        if draw < 0.08:
            host.cache.gone(worker.index)
            del host.workers[worker.index]
            if not host.workers:
                host.begin(host.attempt + 1)
        elif draw < 0.11:
            host.begin(host.attempt + 1)
        elif draw < 0.14:
            host.cache.read_ahead(host.attempt + 1, KEYS)  # its workers are being ended
            host.ending = True
        elif draw < 0.16 and self.lossy:
            if host.link.lost:
                host.connect()
            else:
                host.link.lose()
        elif worker.leased is not None:
            if draw < 0.3:
                worker.give_up()
            elif draw < 0.4:
                worker.publish(worker.leased)
        elif worker.is_idle and not host.after:
            worker.resolve(self.random.choice(KEYS))

    def settle(self) -> None:
        """Until nothing moves any more; who has a lease uses it."""
        for _ in range(20_000):
            moves = self.moves()
            if moves:
                self.random.choice(moves)()
                continue
            leased = [w for h in self.hosts for w in h.workers.values() if w.leased]
            if not leased:
                return
            worker = self.random.choice(leased)
            assert worker.leased is not None
            worker.publish(worker.leased)
        raise AssertionError("it does not come to rest")


@pytest.mark.parametrize("seed", range(300))
def test_upstream_in_any_order_answers_every_question_and_leaks_no_lease(seed: int) -> None:
    world = World(seed)
    for host in world.hosts:
        host.begin(1)
    for _ in range(300):
        moves = world.moves()
        if moves and world.random.random() < 0.75:
            world.random.choice(moves)()
        else:
            world.act(world.random.choice(world.hosts))
    for host in world.hosts:
        if host.ending:
            host.begin(host.attempt + 1)
    world.settle()
    workers = [worker for host in world.hosts for worker in host.workers.values()]
    assert [worker.asked for worker in workers] == [{}] * len(workers)
    for key in KEYS:  # every lease can still be had, or its entry
        for worker in workers:
            worker.got = []
            worker.resolve(key)
        world.settle()
        assert [worker.got for worker in workers] == [[key]] * len(workers)


@pytest.mark.parametrize("seed", range(100))
def test_upstream_undisturbed_gang_compiles_each_key_once(seed: int) -> None:
    world = World(seed)
    world.fetch = lambda source, key, digest: None  # type: ignore[method-assign]
    compiled: list[str] = []
    for host in world.hosts:
        host.begin(1)
        for worker in host.workers.values():
            publish = worker.publish
            worker.publish = lambda key, publish=publish: (  # type: ignore[method-assign]
                compiled.append(key),
                publish(key),
            )
    world.hosts[0].upstream._sources._peers = lambda source, key, digest: world.hosts[
        source
    ].store.hand_out(key, digest)
    for host in world.hosts[1:]:
        host.upstream._sources._peers = world.hosts[0].upstream._sources._peers
    workers = [worker for host in world.hosts for worker in host.workers.values()]
    for key in KEYS:
        world.random.shuffle(workers)
        for worker in workers:
            worker.resolve(key)
        world.settle()
        assert [worker.got.pop() for worker in workers] == [key] * len(workers)
    stored = world.far.stat(entry_name(KEYS[0])) is not None
    assert sorted(compiled) == sorted(KEYS[1:] if stored else KEYS)


# One host by itself.


def _upstream(far: FarStore, near: Any = None, **how: Any) -> tuple[Upstream, StepExecutor]:
    pools: list[StepExecutor] = []

    def make_pool(threads: int, name: str) -> Any:
        pools.append(StepExecutor())
        return pools[-1]

    store = HostStore(CacheConfig("memory://far"), near or MemoryNear(), far)
    return Upstream(store, make_pool=make_pool, **how), pools[0]


def test_upstream_defect_in_a_step_lets_the_lease_go_and_the_worker_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net = StepNet()
    upstream, pool = _upstream(FarStore())
    link = StepLink(net, 0, upstream)
    upstream.connect(link)
    upstream.begin(1)
    outcomes: list[Any] = []
    monkeypatch.setattr(upstream._sources, "read_store", lambda wanted: 1 / 0)
    upstream.resolve(Wanted(KEY, may_compile=True), lambda outcome: not outcomes.append(outcome))
    pool.run_all()
    while link.said:
        link.hear()
    while link.answers:
        link.answer()
    pool.run_all()
    while link.said:
        link.hear()
    assert outcomes == [Alone()]
    assert net.claims.claim(1, 1, KEY) == [Reply(1, 1, Granted(False, None))]


def test_upstream_after_close_resolves_nothing_and_raises_nothing() -> None:
    upstream, pool = _upstream(FarStore())
    outcomes: list[Any] = []
    upstream.close()
    upstream.resolve(Wanted(KEY, may_compile=True), lambda outcome: not outcomes.append(outcome))
    pool.run_all()
    assert outcomes == []


def test_upstream_alone_reads_the_store_then_may_compile() -> None:
    far = FarStore()
    upstream, pool = _upstream(far)
    outcomes: list[Any] = []

    def then(outcome: Any) -> bool:
        outcomes.append(outcome)
        return True

    upstream.resolve(Wanted(KEY, may_compile=True), then)
    upstream.resolve(Wanted(KEY, may_compile=False), then)
    upstream.resolve(Wanted(KEY, may_compile=True, absent=True), then)
    pool.run_all()
    far.create(entry_name(KEY), entry())
    upstream.resolve(Wanted(KEY, may_compile=True), then)
    pool.run_all()
    assert outcomes == [
        MayCompile(absent=True),
        Nothing(absent=True),
        MayCompile(absent=True),
        Here(DIGEST, len(entry()), in_node=True, in_store=True),
    ]
    assert far.reads() == 3


def test_upstream_publication_is_answered_where_an_attempt_begins_before() -> None:
    upstream, _ = _upstream(FarStore())
    link = StepLink(StepNet(), 0, upstream)
    upstream.connect(link)
    upstream.begin(1)
    answers: list[bytes] = []
    upstream.publish(KEY, DIGEST, 1, in_node=True, then=answers.append)
    upstream.begin(2)
    upstream._settling.run_all()  # type: ignore[attr-defined]
    assert answers == [DIGEST]


def test_gang_link_loss_of_an_old_link_leaves_the_new_one() -> None:
    upstream, _ = _upstream(FarStore())
    net = StepNet()
    old, new = StepLink(net, 0, upstream), StepLink(net, 1, upstream)
    gang = GangLink()
    gang.begin(1)
    gang.connect(old)
    answers: list[Any] = []
    gang.ask(gang.term, lambda link, number: None, answers.append)
    old.lost = True
    gang.connect(new)
    assert (gang.lost(), answers) == (False, [None])
    assert gang.ask(gang.term, lambda link, number: None, answers.append) is True
    assert [message[0] for message in new.said] == ["begin"]


def test_gang_link_question_to_a_link_that_is_lost_by_then_is_not_asked() -> None:
    upstream, _ = _upstream(FarStore())
    link = StepLink(StepNet(), 0, upstream)
    gang = GangLink()
    gang.connect(link)
    gang.begin(1)
    link.lost = True
    answers: list[Any] = []
    assert gang.ask(gang.term, lambda link, number: None, answers.append) is False
    assert answers == []


def test_gang_link_of_an_old_term_sends_nothing() -> None:
    upstream, _ = _upstream(FarStore())
    link = StepLink(StepNet(), 0, upstream)
    gang = GangLink()
    gang.connect(link)
    gang.begin(1)
    old = gang.term
    gang.begin(2)
    link.said.clear()
    gang.ask(old, lambda link, number: link.claim(number, KEY), lambda answer: None)
    gang.tell(old, lambda link: link.release(KEY))
    assert list(link.said) == []


def test_upstream_of_a_node_directory_uses_its_bytes_only_where_they_verify(
    tmp_path: Path,
) -> None:
    far = FarStore()
    near = DirectoryStore(tmp_path)
    near.create(entry_name(KEY), entry())
    upstream, pool = _upstream(far, near)
    outcomes: list[Any] = []
    wanted = Wanted(KEY, may_compile=True, replaces=DIGEST)
    upstream.resolve(wanted, lambda outcome: not outcomes.append(outcome))
    pool.run_all()
    assert outcomes == [Here(DIGEST, 0, in_node=True, in_store=False)]
    assert far.reads() == 0
