"""What only a directory does: eviction, temporary files, names that are folders, full disks."""

from __future__ import annotations

import errno
import multiprocessing
import os
from pathlib import Path

import pytest

from hotstart.cache.directory import STALE_AFTER_S, DirectoryStore
from hotstart.cache.errors import AccessDenied, RejectedRequest, StoreError, StoreMissing

pytestmark = pytest.mark.contract


def names(store: DirectoryStore) -> list[str]:
    return [found.name for found in store.list("")]


def used_at(root: Path, name: str, seconds: int) -> None:
    modified_ns = (root / name).stat().st_mtime_ns
    os.utime(root / name, ns=(seconds * 10**9, modified_ns))


def bounded_store(root: Path, *, max_size_bytes: int, last_use: dict[str, int]) -> DirectoryStore:
    """A store of 100-byte objects with the given times of last use."""
    store = DirectoryStore(root, max_size_bytes=max_size_bytes)
    for name, seconds in last_use.items():
        assert store.create(name, bytes(100))
        used_at(root, name, seconds)
    return store


def test_eviction_above_the_bound_removes_least_recently_used_down_to_90_percent(
    tmp_path: Path,
) -> None:
    last_use = {f"e{index}": 1000 - index for index in range(10)}
    store = bounded_store(tmp_path, max_size_bytes=1000, last_use=last_use)

    store.create("new", bytes(100))

    assert names(store) == ["e0", "e1", "e2", "e3", "e4", "e5", "e6", "e7", "new"]


def test_eviction_object_that_was_read_survives(tmp_path: Path) -> None:
    last_use = {f"e{index}": index + 1 for index in range(10)}
    store = bounded_store(tmp_path, max_size_bytes=1000, last_use=last_use)

    store.get("e0")
    store.create("new", bytes(100))

    assert names(store) == ["e0", "e3", "e4", "e5", "e6", "e7", "e8", "e9", "new"]


def test_eviction_total_at_the_bound_removes_nothing(tmp_path: Path) -> None:
    last_use = {f"e{index}": index + 1 for index in range(9)}
    store = bounded_store(tmp_path, max_size_bytes=1000, last_use=last_use)

    store.create("new", bytes(100))

    assert len(names(store)) == 10


def test_eviction_object_larger_than_the_bound_goes_alone(tmp_path: Path) -> None:
    store = bounded_store(tmp_path, max_size_bytes=1000, last_use={"old": 1, "older": 0})

    assert store.create("huge", bytes(1001)) is True
    assert names(store) == ["old", "older"]


def test_eviction_large_object_within_the_bound_stays(tmp_path: Path) -> None:
    store = bounded_store(tmp_path, max_size_bytes=1000, last_use={"old": 1})

    store.create("large", bytes(1000))

    assert names(store) == ["large"]


def test_eviction_counts_what_other_processes_created(tmp_path: Path) -> None:
    first = bounded_store(tmp_path, max_size_bytes=1000, last_use={"a": 1, "b": 2})
    second = DirectoryStore(tmp_path, max_size_bytes=1000)
    second.create("c", bytes(700))
    used_at(tmp_path, "c", 3)

    first.create("d", bytes(200))

    assert names(first) == ["c", "d"]


def test_eviction_while_another_process_evicts_is_skipped(tmp_path: Path) -> None:
    store = bounded_store(tmp_path, max_size_bytes=1000, last_use={"a": 1})
    with store._locked("eviction.lock"):
        store.create("b", bytes(950))
        assert names(store) == ["a", "b"]

    store.create("c", bytes(10))

    assert names(store) == ["c"]


def _create_many(root: Path, process: int) -> None:
    store = DirectoryStore(root, max_size_bytes=20_000)
    for index in range(100):
        assert store.create(f"p{process}/{index}", bytes(1000))


def test_eviction_4_processes_create_at_once_bound_holds(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_create_many, args=(tmp_path, i)) for i in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
    assert [process.exitcode for process in processes] == [0, 0, 0, 0]

    store = DirectoryStore(tmp_path, max_size_bytes=20_000)
    store.create("last", bytes(1000))

    assert sum(found.size_bytes for found in store.list("")) <= 20_000
    assert list((tmp_path / ".hotstart" / "tmp").iterdir()) == []


def test_temporary_file_of_a_dead_writer_is_removed_once_stale(tmp_path: Path) -> None:
    DirectoryStore(tmp_path).create("a", b"")
    folder = tmp_path / ".hotstart" / "tmp"
    stale, fresh = folder / "stale", folder / "fresh"
    for path in (stale, fresh):
        path.write_bytes(b"half an ent")
    long_ago = fresh.stat().st_mtime - STALE_AFTER_S - 10
    os.utime(stale, (long_ago, long_ago))

    DirectoryStore(tmp_path).create("b", b"")

    assert list(folder.iterdir()) == [fresh]


def test_create_failed_link_leaves_no_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_hard_links(source: Path, target: Path) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM), str(source), None, str(target))

    monkeypatch.setattr("os.link", no_hard_links)
    store = DirectoryStore(tmp_path)

    with pytest.raises(RejectedRequest, match="hard links"):
        store.create("name", b"data")
    assert list((tmp_path / ".hotstart" / "tmp").iterdir()) == []


@pytest.mark.parametrize(
    ("number", "expected", "words"),
    [
        (errno.ENOSPC, StoreError, "full"),
        (errno.EDQUOT, StoreError, "full"),
        (errno.EACCES, AccessDenied, "permissions"),
        (errno.EROFS, AccessDenied, "can be written"),
        (errno.EIO, StoreError, "file system"),
    ],
)
def test_create_failing_write_raises_an_error_that_names_the_path(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    expected: type[StoreError],
    words: str,
) -> None:
    store = DirectoryStore(tmp_path)

    def fail(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("os.open", fail)

    with pytest.raises(StoreError, match=words) as raised:
        store.create("name", b"data")
    assert type(raised.value) is expected
    assert str(tmp_path / "name") in str(raised.value)


def test_create_name_that_is_a_folder_is_refused(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    store.create("a/b", b"")

    with pytest.raises(RejectedRequest, match="at once"):
        store.create("a", b"")
    assert store.get("a") is None


def test_create_name_under_an_object_is_refused(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    store.create("a", b"")

    with pytest.raises(RejectedRequest, match="at once"):
        store.create("a/b", b"")
    assert store.get("a/b") is None


def test_create_where_the_root_is_a_file_raises_store_missing(tmp_path: Path) -> None:
    root = tmp_path / "file"
    root.write_text("in the way")

    with pytest.raises(StoreMissing, match="is a file"):
        DirectoryStore(root).create("name", b"")


def test_create_after_the_directory_was_removed_makes_it_again(tmp_path: Path) -> None:
    root = tmp_path / "store"
    store = DirectoryStore(root, max_size_bytes=1000)
    store.create("a", b"1")
    root.rename(tmp_path / "moved")

    assert store.create("b", b"2") is True
    assert names(store) == ["b"]


def test_name_in_the_store_own_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="invalid object name"):
        DirectoryStore(tmp_path).create(".hotstart/total", b"1")


def test_directory_that_exists_keeps_its_mode(tmp_path: Path) -> None:
    root = tmp_path / "shared"
    root.mkdir(mode=0o755)
    root.chmod(0o755)

    DirectoryStore(root).create("name", b"")

    assert root.stat().st_mode & 0o777 == 0o755


def test_max_size_below_one_raises_value_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="max_size_bytes is 0"):
        DirectoryStore(tmp_path, max_size_bytes=0)
