"""One suite over every store: in memory, in a directory, in a bucket of the emulator."""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hotstart.cache.announcements import Renewing
from hotstart.cache.errors import StoreMissing
from hotstart.cache.store import Store, open_store

pytestmark = pytest.mark.contract

ODD_NAMES = [
    "a b/c#d?e&f=g",
    "100%/%2F/%25",
    ".hidden/..two/...",
    "ünïcode/名前/🚀",
    "quotes\"'\\back`slash",
    "jit_step-" + "0123456789abcdef" * 4,
    "x" * 200 + "/" + "y" * 200,
    "trailing. /~tilde/+plus/[x]{y}",
    "gs::odd/gs:/also",
]


def created_generation(store: Store, name: str, data: bytes) -> int:
    assert store.create(name, data)
    found = store.stat(name)
    assert found is not None
    return found.generation


def listed(store: Store, prefix: str) -> list[str]:
    return [found.name for found in store.list(prefix)]


def at_once(count: int, function: Callable[[int], bool]) -> list[bool]:
    barrier = threading.Barrier(count)

    def run(index: int) -> bool:
        barrier.wait(timeout=30)
        return function(index)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


def test_get_absent_returns_none(store: Store) -> None:
    assert store.get("absent") is None


def test_stat_absent_returns_none(store: Store) -> None:
    assert store.stat("folder/absent") is None


def test_list_empty_store_yields_nothing(store: Store) -> None:
    assert listed(store, "") == []


def test_create_new_name_stores_the_bytes(store: Store) -> None:
    assert store.create("folder/name", b"data") is True
    assert store.get("folder/name") == b"data"


def test_create_taken_name_keeps_the_first_bytes(store: Store) -> None:
    store.create("name", b"first")

    assert store.create("name", b"second") is False
    assert store.get("name") == b"first"


def test_create_16_racing_threads_one_wins_and_its_bytes_stay(store: Store) -> None:
    outcomes = at_once(16, lambda index: store.create("raced", b"%d" % index * 1000))

    assert outcomes.count(True) == 1
    assert store.get("raced") == b"%d" % outcomes.index(True) * 1000
    assert listed(store, "") == ["raced"]


@pytest.mark.parametrize("size_bytes", [0, 1, 70_000, 5_000_000])
def test_get_random_bytes_come_back_unchanged(store: Store, size_bytes: int) -> None:
    data = random.Random(size_bytes).randbytes(size_bytes)
    store.create("binary", data)

    found = store.get("binary")

    assert found is not None
    assert hashlib.sha256(found).digest() == hashlib.sha256(data).digest()


def test_get_bytes_like_a_multipart_boundary_come_back_unchanged(store: Store) -> None:
    data = b"\r\n--==0==\r\nContent-Type: text/plain\r\n\r\n\n--==0==--\r\n\0\r\n"
    store.create("boundary", data)

    assert store.get("boundary") == data


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_name_is_created_read_listed_and_deleted(store: Store, name: str) -> None:
    generation = created_generation(store, name, b"odd")

    assert store.get(name) == b"odd"
    assert listed(store, "") == [name]
    assert listed(store, name) == [name]
    assert store.delete(name, generation) is True
    assert listed(store, "") == []


@pytest.mark.parametrize("name", ["", "/a", "a/", "a//b", "a/../b", ".", "x" * 1025])
def test_create_invalid_name_raises_value_error(store: Store, name: str) -> None:
    with pytest.raises(ValueError, match="invalid object name"):
        store.create(name, b"")


def test_stat_existing_object_knows_name_size_and_a_steady_generation(store: Store) -> None:
    store.create("folder/name", b"12345")

    found = store.stat("folder/name")
    store.get("folder/name")

    assert found is not None
    assert (found.name, found.size_bytes) == ("folder/name", 5)
    assert store.stat("folder/name") == found
    assert list(store.list("")) == [found]


def test_list_prefix_yields_its_names_in_order_of_bytes(store: Store) -> None:
    inside = ["p/a", "p/a.b", "p/a-/x", "p/b/c", "p/b/d/e", "p/b.c", "p/é", "p/\uffee", "p/🚀"]
    for name in [*reversed(inside), "p0", "o/a", "q"]:
        store.create(name, b"")

    assert listed(store, "p/") == sorted(inside, key=str.encode)
    assert listed(store, "p/b") == ["p/b.c", "p/b/c", "p/b/d/e"]
    assert listed(store, "p/b/d/e") == ["p/b/d/e"]
    assert listed(store, "nothing/here") == []


def test_list_more_than_one_page_yields_all(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hotstart.cache.gcs.LIST_PAGE_SIZE", 7)
    names = [f"page/{index:03}" for index in range(30)]
    for name in names:
        store.create(name, b"")

    assert listed(store, "page/") == names


def test_list_objects_deleted_meanwhile_are_left_out_without_an_error(store: Store) -> None:
    for index in range(10):
        store.create(f"f{index}/x", b"")

    iterator = store.list("")
    first = next(iterator)
    for found in list(store.list("")):
        store.delete(found.name, found.generation)
    rest = [found.name for found in iterator]

    assert first.name == "f0/x"
    assert set(rest) <= {f"f{index}/x" for index in range(1, 10)}


def test_delete_right_generation_removes_it(store: Store) -> None:
    generation = created_generation(store, "name", b"data")

    assert store.delete("name", generation) is True
    assert store.get("name") is None
    assert store.delete("name", generation) is False


def test_delete_absent_returns_false(store: Store) -> None:
    assert store.delete("folder/absent", 1) is False


def test_delete_stale_generation_keeps_the_successor(store: Store) -> None:
    stale = created_generation(store, "name", b"first")
    store.delete("name", stale)
    generation = created_generation(store, "name", b"second")

    assert generation != stale
    assert store.delete("name", stale) is False
    assert store.get("name") == b"second"


def test_delete_16_racing_threads_one_removes_it(store: Store) -> None:
    generation = created_generation(store, "raced", b"data")

    outcomes = at_once(16, lambda _: store.delete("raced", generation))

    assert outcomes.count(True) == 1
    assert store.get("raced") is None


def test_generation_100_lives_of_one_name_all_differ(store: Store) -> None:
    generations = set()
    for _ in range(100):
        generation = created_generation(store, "name", b"same")
        generations.add(generation)
        store.delete("name", generation)

    assert len(generations) == 100


def test_missing_directory_reads_as_empty_and_is_made_by_create(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "not" / "there"))

    assert store.get("name") is None
    assert listed(store, "") == []
    assert not (tmp_path / "not").exists()
    assert store.create("name", b"data") is True
    assert (tmp_path / "not" / "there").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("call", ["get", "create", "delete", "list", "stat"])
def test_missing_bucket_raises_store_missing_from_every_call(bucket: str, call: str) -> None:
    store = open_store(f"{bucket}-of-nobody/prefix")
    calls: dict[str, Callable[[], object]] = {
        "get": lambda: store.get("name"),
        "create": lambda: store.create("name", b""),
        "delete": lambda: store.delete("name", 1),
        "list": lambda: listed(store, ""),
        "stat": lambda: store.stat("name"),
    }

    with pytest.raises(StoreMissing, match=f"{bucket}-of-nobody"):
        calls[call]()


def test_renew_gives_another_generation_and_leaves_the_bytes(store: Store) -> None:
    assert isinstance(store, Renewing)
    assert not store.renew("entries/v1/none", 1)
    store.create("entries/v1/one", b"bytes")
    before = store.stat("entries/v1/one")
    assert before is not None
    assert store.renew(before.name, before.generation)
    after = store.stat(before.name)
    assert after is not None and after.generation != before.generation
    assert not store.renew(before.name, before.generation)
    assert not store.delete(before.name, before.generation)
    assert store.get(before.name) == b"bytes"
    assert store.delete(after.name, after.generation)
