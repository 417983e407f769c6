"""Node directory and store of one host: reads, keeping, uploads and their marks."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hotstart.cache.config import CacheConfig
from hotstart.cache.directory import DirectoryStore
from hotstart.cache.entry import PENDING, entry_digest, entry_name, pending_name
from hotstart.cache.errors import AccessDenied, StoreError, TransientError
from hotstart.cache.guarded import GuardedStore
from hotstart.launcher.host_store import HostStats, HostStore
from hotstart.launcher.host_uploads import HostUploads
from tests.support.host_lab import KEY, FarStore, entry, flipped, until

pytestmark = pytest.mark.unit

NAME = entry_name(KEY)
DIGEST = entry_digest(entry())
OTHER = entry(payload=b"another")


class SlowFar(FarStore):
    """Holds creates back until `may_create`."""

    def __init__(self) -> None:
        super().__init__()
        self.may_create = threading.Event()
        self.creating = threading.Event()

    def create(self, name: str, data: bytes) -> bool:
        self.creating.set()
        assert self.may_create.wait(20)
        return super().create(name, data)


@pytest.fixture
def far() -> FarStore:
    return FarStore()


@pytest.fixture
def near(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "near")


@pytest.fixture
def store(near: DirectoryStore, far: FarStore) -> Iterator[HostStore]:
    made = HostStore(CacheConfig("memory://far"), near, far)
    yield made
    made.close()


def test_read_far_gives_the_verified_entry_and_counts_it(store: HostStore, far: FarStore) -> None:
    far.create(NAME, entry())
    read = store.read_far(KEY)
    assert read is not None
    assert (read[0].digest, read[1]) == (DIGEST, entry())
    assert store.stats() == HostStats(reads=1, read_bytes=len(entry()))


def test_read_far_of_an_outage_raises_at_once_until_an_upload_has_arrived(
    near: DirectoryStore, far: FarStore
) -> None:
    store = HostStore(CacheConfig("memory://far"), near, GuardedStore(far))
    far.fail()
    for _ in range(5):
        with pytest.raises(TransientError):
            store.read_far(KEY)
    assert (far.reads(), store.stats().errors) == (2, 5)
    far.error = None
    near.create(NAME, entry())
    store.upload(KEY)
    assert store.flush(20)
    assert store.read_far(KEY) is not None
    store.close()


def test_strict_upload_that_an_outage_keeps_out_is_told_to_workers(
    near: DirectoryStore, far: FarStore
) -> None:
    store = HostStore(CacheConfig("memory://far", strict=True), near, GuardedStore(far))
    near.create(NAME, entry())
    far.fail()
    store.upload(KEY)
    assert store.flush(20) is False
    assert store.required == ("the cache is required and cannot be used: 503 from the far store")
    store.close()


def test_read_far_that_is_denied_raises_but_pauses_nothing(store: HostStore, far: FarStore) -> None:
    far.error = AccessDenied("403")
    for _ in range(2):
        with pytest.raises(AccessDenied):
            store.read_far(KEY)
    assert far.reads() == 2


def test_read_far_of_bad_bytes_is_nothing_and_the_next_upload_replaces_them(
    store: HostStore, far: FarStore, near: DirectoryStore
) -> None:
    far.create(NAME, flipped(entry()))
    assert store.read_far(KEY) is None
    near.create(NAME, entry())
    store.upload(KEY)
    assert store.flush(20)
    assert far.get(NAME) == entry()
    assert store.stats().errors == 1


def test_upload_replaces_bad_bytes_that_only_another_host_has_read(
    store: HostStore, far: FarStore, near: DirectoryStore
) -> None:
    far.create(NAME, flipped(entry()))
    near.create(NAME, entry())
    store.upload(KEY)
    assert store.flush(20)
    assert far.get(NAME) == entry()


def test_upload_after_a_peer_has_repaired_the_store_keeps_the_peers(
    store: HostStore, far: FarStore, near: DirectoryStore
) -> None:
    far.create(NAME, flipped(entry()))
    assert store.read_far(KEY) is None
    bad = far.stat(NAME)
    assert bad is not None
    far.delete(NAME, bad.generation)
    far.create(NAME, OTHER)
    near.create(NAME, entry())
    store.upload(KEY)
    assert store.flush(20)
    assert far.get(NAME) == OTHER


@pytest.mark.parametrize("there", [None, OTHER, flipped(entry()), entry()])
def test_keep_leaves_exactly_its_bytes(
    store: HostStore, near: DirectoryStore, there: bytes | None
) -> None:
    if there is not None:
        near.create(NAME, there)
    assert store.keep(KEY, entry()) is True
    assert near.get(NAME) == entry()


def test_verifies_tells_sound_bytes_from_flipped_ones(
    store: HostStore, near: DirectoryStore
) -> None:
    assert store.verifies(KEY) is False
    near.create(NAME, flipped(entry()))
    assert (store.verifies(KEY), store.digest_here(KEY)) == (False, DIGEST)
    store.keep(KEY, entry())
    assert store.verifies(KEY) is True


def test_hand_out_gives_only_the_digest_that_was_asked_for(
    store: HostStore, near: DirectoryStore
) -> None:
    near.create(NAME, entry())
    assert store.hand_out(KEY, DIGEST) == entry()
    assert store.hand_out(KEY, entry_digest(OTHER)) is None
    store.discard(KEY)
    assert store.hand_out(KEY, DIGEST) is None


def test_upload_of_a_killed_agent_is_resumed_by_the_next(
    near: DirectoryStore,
) -> None:
    far = SlowFar()
    near.create(NAME, entry())
    killed = HostStore(CacheConfig("memory://far"), near, far, threads=1)
    keys = [KEY, *(f"jit_{i}-" + "1" * 64 for i in range(3))]
    for key in keys:
        near.create(entry_name(key), entry(key))
        killed.upload(key)
    assert far.creating.wait(20)
    killed.close()  # as far as the marks go, a kill does no more
    assert len(list(near.list("pending/"))) == 4
    far.may_create.set()
    following = HostStore(CacheConfig("memory://far"), near, far)
    following.resume_uploads()
    assert following.flush(20)
    assert [far.get(entry_name(key)) == entry(key) for key in keys] == [True] * 4
    assert until(lambda: not list(near.list("pending/")))
    following.close()


def test_mark_without_an_entry_is_removed_and_is_no_failure(
    store: HostStore, far: FarStore, near: DirectoryStore
) -> None:
    near.create(pending_name(KEY), KEY.encode())
    store.resume_uploads()
    assert (store.flush(20), list(near.list(PENDING))) == (True, [])
    assert (far.creates[NAME], store.stats().errors) == (0, 0)


def test_upload_that_fails_keeps_its_mark_and_says_so(
    store: HostStore, far: FarStore, near: DirectoryStore
) -> None:
    near.create(NAME, entry())
    far.fail()
    told: list[bool] = []
    store.upload(KEY, told.append)
    assert store.flush(20) is False
    assert until(lambda: told == [False])
    assert [mark.name for mark in near.list("pending/")] == [f"pending/{NAME}"]
    far.error = None
    store.resume_uploads()
    assert store.flush(20) is True
    assert (far.get(NAME), list(near.list("pending/"))) == (entry(), [])


@pytest.fixture
def uploads(near: DirectoryStore, far: FarStore) -> Iterator[Callable[..., HostUploads]]:
    with contextlib.ExitStack() as stack:

        def make(**how: Any) -> HostUploads:
            made = HostUploads(near, far, lambda size: None, lambda *trouble: None, **how)
            stack.callback(made.close)
            return made

        yield make


def test_upload_that_an_outage_keeps_out_is_tried_until_the_outage_is_over(
    uploads: Callable[..., HostUploads], far: FarStore, near: DirectoryStore
) -> None:
    near.create(NAME, entry())
    far.fail()
    told: list[bool] = []
    uploads(again_s=(0.01, 0.02)).upload(KEY, told.append)
    assert until(lambda: far.creates[NAME] >= 4)
    far.error = None
    assert until(lambda: not list(near.list("pending/")))
    assert (far.get(NAME), told) == (entry(), [False])


def test_upload_that_an_outage_keeps_out_is_tried_by_a_flush(
    uploads: Callable[..., HostUploads], far: FarStore, near: DirectoryStore
) -> None:
    near.create(NAME, entry())
    far.fail()
    host = uploads(again_s=(600.0,))
    told: list[bool] = []
    host.upload(KEY, told.append)
    assert until(lambda: told == [False])
    assert (host.flush(20), host.flush(20), far.creates[NAME]) == (False, False, 3)
    far.error = None
    assert (host.flush(20), far.get(NAME)) == (True, entry())


def test_upload_that_is_refused_is_not_tried_again(
    uploads: Callable[..., HostUploads], far: FarStore, near: DirectoryStore
) -> None:
    near.create(NAME, entry())
    far.error = AccessDenied("403")
    host = uploads()
    host.upload(KEY, lambda in_store: None)
    assert (host.flush(20), host.flush(20), far.creates[NAME]) == (False, False, 1)


def test_upload_asked_twice_makes_one_object_and_tells_both(near: DirectoryStore) -> None:
    far = SlowFar()
    store = HostStore(CacheConfig("memory://far"), near, far)
    near.create(NAME, entry())
    told: list[bool] = []
    store.upload(KEY, told.append)
    assert far.creating.wait(20)
    store.upload(KEY, told.append)
    far.may_create.set()
    assert store.flush(20)
    assert until(lambda: told == [True, True])
    assert far.creates[NAME] == 1
    store.close()


def test_upload_of_what_has_been_evicted_is_given_up(
    store: HostStore, far: FarStore, near: DirectoryStore
) -> None:
    told: list[bool] = []
    store.upload(KEY, told.append)
    assert until(lambda: told == [False])
    assert (store.flush(20), far.creates[NAME], list(near.list("pending/"))) == (False, 0, [])


def test_upload_of_bad_bytes_is_refused(
    store: HostStore, far: FarStore, near: DirectoryStore
) -> None:
    near.create(NAME, flipped(entry()))
    told: list[bool] = []
    store.upload(KEY, told.append)
    assert until(lambda: told == [False])
    assert (far.creates[NAME], store.stats().errors) == (0, 1)


@pytest.mark.parametrize("mode,in_store", [("read-only", False), ("read-write", True)])
def test_upload_where_there_is_nothing_to_do_says_whether_it_is_stored(
    near: DirectoryStore, far: FarStore, mode: str, in_store: bool
) -> None:
    config = CacheConfig("memory://far", mode=mode)  # type: ignore[arg-type]
    store = HostStore(config, near, far if mode == "read-only" else None)
    told: list[bool] = []
    store.upload(KEY, told.append)
    store.resume_uploads()
    assert (told, store.flush(0.0), sum(far.creates.values())) == ([in_store], True, 0)
    store.close()


def test_flush_ends_at_its_timeout_and_at_close(near: DirectoryStore) -> None:
    far = SlowFar()
    store = HostStore(CacheConfig("memory://far"), near, far)
    near.create(NAME, entry())
    store.upload(KEY)
    assert store.flush(0.05) is False
    flushed: list[bool] = []
    waiting = threading.Thread(target=lambda: flushed.append(store.flush(60.0)))
    waiting.start()
    store.close()
    waiting.join(20)
    assert flushed == [False]
    far.may_create.set()


def test_upload_after_close_is_marked_for_the_next_agent(
    store: HostStore, near: DirectoryStore
) -> None:
    near.create(NAME, entry())
    store.close()
    told: list[bool] = []
    store.upload(KEY, told.append)
    assert (told, len(list(near.list("pending/")))) == ([False], 1)


def test_trouble_warns_once_and_counts_each_time(
    store: HostStore, far: FarStore, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        store.trouble("read", far, NAME, StoreError("it failed"))
    warnings = [r for r in caplog.records if r.levelname == "WARNING"]
    assert (len(warnings), store.stats().errors) == (1, 3)
