"""What only a directory does: eviction, temporary files, names that are folders, full disks."""

from __future__ import annotations

import errno
import hashlib
import multiprocessing
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from hotstart.cache.directory import STALE_AFTER_S, DirectoryStore
from hotstart.cache.entry import entry_name
from hotstart.cache.errors import AccessDenied, RejectedRequest, StoreError, StoreMissing
from hotstart.cache.eviction import eviction_order, is_entry, pin_folder
from hotstart.cache.folders import locked
from hotstart.cache.store import ObjectStat

pytestmark = pytest.mark.contract


HASH = "0123456789abcdef" * 4


def names(store: DirectoryStore) -> list[str]:
    return [found.name for found in store.list("")]


def entry(label: str) -> str:
    """An entry's name; `labels` gives the label back."""
    return f"entries/v1/{hashlib.sha256(label.encode()).hexdigest()}-{label}"


def labels(store: DirectoryStore) -> list[str]:
    return sorted(name.partition("-")[2] for name in names(store))


def used_at(root: Path, label: str, seconds: int) -> None:
    path = root / entry(label)
    os.utime(path, ns=(seconds * 10**9, path.stat().st_mtime_ns))


def bounded_store(root: Path, *, max_size_bytes: int, last_use: dict[str, int]) -> DirectoryStore:
    """A store of 100-byte entries with the given times of last use."""
    store = DirectoryStore(root, max_size_bytes=max_size_bytes)
    for label, seconds in last_use.items():
        assert store.create(entry(label), bytes(100))
        used_at(root, label, seconds)
    return store


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users reach, which those of `tmp_path` are not."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


def as_user(uid: int, function: Callable[[], None], *, groups: tuple[int, ...] = ()) -> int:
    """The exit code of a process of another user, with umask 022, that calls `function`."""

    def run() -> None:
        os.umask(0o022)
        os.setgroups(list(groups))
        os.setgid(uid)
        os.setuid(uid)
        function()

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join(timeout=60)
    assert process.exitcode is not None
    return process.exitcode


def test_eviction_above_the_bound_removes_least_recently_used_down_to_90_percent(
    tmp_path: Path,
) -> None:
    last_use = {f"e{index}": 1000 - index for index in range(10)}
    store = bounded_store(tmp_path, max_size_bytes=1000, last_use=last_use)

    store.create(entry("new"), bytes(100))

    assert labels(store) == ["e0", "e1", "e2", "e3", "e4", "e5", "e6", "e7", "new"]


def test_eviction_object_that_was_read_survives(tmp_path: Path) -> None:
    last_use = {f"e{index}": index + 1 for index in range(10)}
    store = bounded_store(tmp_path, max_size_bytes=1000, last_use=last_use)

    store.get(entry("e0"))
    store.create(entry("new"), bytes(100))

    assert labels(store) == ["e0", "e3", "e4", "e5", "e6", "e7", "e8", "e9", "new"]


def test_eviction_total_at_the_bound_removes_nothing(tmp_path: Path) -> None:
    last_use = {f"e{index}": index + 1 for index in range(9)}
    store = bounded_store(tmp_path, max_size_bytes=1000, last_use=last_use)

    store.create(entry("new"), bytes(100))

    assert len(names(store)) == 10


def test_eviction_after_a_deletion_that_made_room_removes_nothing(tmp_path: Path) -> None:
    last_use = {f"e{index}": index + 1 for index in range(10)}
    store = bounded_store(tmp_path, max_size_bytes=1000, last_use=last_use)
    found = store.stat(entry("e9"))
    assert found is not None

    assert store.delete(found.name, found.generation) is True
    store.create(entry("new"), bytes(100))

    assert len(names(store)) == 10


def test_eviction_object_larger_than_the_bound_goes_alone(tmp_path: Path) -> None:
    store = bounded_store(tmp_path, max_size_bytes=1000, last_use={"old": 1, "older": 0})

    assert store.create(entry("huge"), bytes(1001)) is True
    assert labels(store) == ["old", "older"]


def test_eviction_large_object_within_the_bound_stays(tmp_path: Path) -> None:
    store = bounded_store(tmp_path, max_size_bytes=1000, last_use={"old": 1})

    store.create(entry("large"), bytes(1000))

    assert labels(store) == ["large"]


def test_eviction_counts_what_other_processes_created(tmp_path: Path) -> None:
    first = bounded_store(tmp_path, max_size_bytes=1000, last_use={"a": 1, "b": 2})
    second = DirectoryStore(tmp_path, max_size_bytes=1000)
    second.create(entry("c"), bytes(700))
    used_at(tmp_path, "c", 3)

    first.create(entry("d"), bytes(200))

    assert labels(first) == ["c", "d"]


def test_eviction_while_another_process_evicts_is_skipped(tmp_path: Path) -> None:
    store = bounded_store(tmp_path, max_size_bytes=1000, last_use={"a": 1})
    with locked(tmp_path / ".hotstart" / "eviction.lock"):
        store.create(entry("b"), bytes(950))
        assert labels(store) == ["a", "b"]

    store.create(entry("c"), bytes(10))

    assert labels(store) == ["c"]


def test_eviction_files_that_are_not_entries_neither_count_nor_go(tmp_path: Path) -> None:
    foreign = [
        "data.bin",
        "run/checkpoints/7/params",
        f"jit_step-{HASH}-cache",
        f"{HASH}-beside",
        f"other/{HASH}",
        "entries/notes.txt",
        f"entries/jit_step-{HASH}-cache",
        f"entries/v1/{HASH[:-1]}-short",
        f"entries/{HASH}-a/b",
        f"entries/{HASH}-odd~name",
    ]
    for name in foreign:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(bytes(5000))
        os.utime(tmp_path / name, (0, 0))
    last_use = {f"e{index}": index + 1 for index in range(9)}
    store = bounded_store(tmp_path, max_size_bytes=1000, last_use=last_use)
    store.create("record/job.yaml", bytes(5000))

    store.create(entry("e9"), bytes(100))
    at_the_bound = {name for name in names(store) if is_entry(name)}
    used_at(tmp_path, "e9", 10)
    store.create(entry("e10"), bytes(100))

    assert at_the_bound == {entry(f"e{index}") for index in range(10)}
    left = {entry(f"e{index}") for index in range(2, 11)}
    assert set(names(store)) == {*foreign, "record/job.yaml", *left}


@pytest.mark.parametrize(
    "name",
    [
        f"entries/{HASH}",
        f"entries/{HASH}-jit_f",
        f"entries/v1/{HASH}-jit_f.2",
        f"entries/v12/{HASH}",
    ],
)
def test_is_entry_name_of_any_format_version_is_one(name: str) -> None:
    assert is_entry(name) is True


@pytest.mark.parametrize("key", [f"jit_step-{HASH}", f"jit_a/b c-{HASH}", "no hash", ""])
def test_is_entry_name_that_entry_name_gives_is_one(key: str) -> None:
    assert is_entry(entry_name(key)) is True


def test_eviction_order_is_by_last_use_without_the_created_one() -> None:
    last_use = {"new": 1, "b": 3, "a": 2}

    assert eviction_order(last_use, created="new", is_created_too_large=False) == ["a", "b"]
    assert eviction_order(last_use, created="new", is_created_too_large=True) == ["new", "a", "b"]


def test_get_list_stat_and_delete_never_count_the_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bounded_store(tmp_path, max_size_bytes=1000, last_use={"a": 1})
    store = DirectoryStore(tmp_path, max_size_bytes=1000)
    walked: list[str] = []
    stock = DirectoryStore._walk

    def walk(self: DirectoryStore, folder: str, prefix: str) -> Iterator[ObjectStat]:
        walked.append(folder)
        return stock(self, folder, prefix)

    monkeypatch.setattr(DirectoryStore, "_walk", walk)

    assert store.get(entry("a")) == bytes(100)
    assert store.get(entry("b")) is None
    found = store.stat(entry("a"))
    assert found is not None
    assert store.delete(found.name, found.generation) is True
    assert walked == []


def _create_many(root: Path, process: int) -> None:
    store = DirectoryStore(root, max_size_bytes=20_000)
    for index in range(100):
        assert store.create(entry(f"p{process}_{index}"), bytes(1000))


def test_eviction_4_processes_create_at_once_bound_holds(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_create_many, args=(tmp_path, i)) for i in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
    assert [process.exitcode for process in processes] == [0, 0, 0, 0]

    store = DirectoryStore(tmp_path, max_size_bytes=20_000)
    store.create(entry("last"), bytes(1000))

    assert sum(found.size_bytes for found in store.list("")) <= 20_000
    assert list((tmp_path / ".hotstart" / "tmp").iterdir()) == []


@as_root
@pytest.mark.parametrize("mode", [0o1777, 0o2775], ids=["sticky", "setgid"])
def test_shared_directory_second_user_creates_counts_and_evicts(
    open_folder: Path, mode: int
) -> None:
    root = open_folder / "shared"
    root.mkdir()
    os.chown(root, 0, 4000)
    root.chmod(mode)

    def first() -> None:
        store = DirectoryStore(root, max_size_bytes=1000)
        assert store.create(entry("a"), bytes(600))

    def second() -> None:
        store = DirectoryStore(root, max_size_bytes=1000)
        assert store.create(entry("b"), bytes(300))
        assert (root / ".hotstart" / "total").read_text() == "900"
        assert store.create(entry("c"), bytes(300))

    assert as_user(4001, first, groups=(4000,)) == 0
    assert as_user(4002, second, groups=(4000,)) == 0

    # Where the folder is sticky nobody removes what another user made.
    left = {0o1777: ["a", "c"], 0o2775: ["b", "c"]}
    assert labels(DirectoryStore(root)) == left[mode]


@as_root
def test_shared_directory_whose_locks_only_their_owner_writes_can_be_used(
    open_folder: Path,
) -> None:
    root = open_folder / "shared"
    root.mkdir()
    root.chmod(0o1777)
    store = DirectoryStore(root, max_size_bytes=1000)
    store.create(entry("a"), bytes(600))
    with locked(root / ".hotstart" / "removal.lock"), locked(root / ".hotstart" / "eviction.lock"):
        pass
    for path in (root / ".hotstart").glob("*l*"):
        path.chmod(0o644)

    def second() -> None:
        other = DirectoryStore(root, max_size_bytes=1000)
        assert other.create(entry("b"), bytes(600))
        found = other.stat(entry("b"))
        assert found is not None
        assert other.delete(found.name, found.generation) is True

    assert as_user(4002, second) == 0
    assert labels(store) == ["a"]


def test_directory_of_one_user_keeps_to_the_umask(tmp_path: Path) -> None:
    root = tmp_path / "store"
    umask = os.umask(0o027)
    try:
        DirectoryStore(root, max_size_bytes=1000).create(entry("a"), b"")
    finally:
        os.umask(umask)

    def mode(name: str) -> int:
        return (root / name).stat().st_mode & 0o7777

    assert [mode(name) for name in ("", ".hotstart", "entries")] == [0o700, 0o750, 0o750]
    assert mode(".hotstart/total") == 0o640


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EIO])
def test_create_where_locks_and_total_cannot_be_written_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    stock = os.open

    def deny(path: Path, flags: int, mode: int = 0o777) -> int:
        if Path(path).parent.name == ".hotstart":
            raise OSError(number, os.strerror(number), str(path))
        return stock(path, flags, mode)

    monkeypatch.setattr("os.open", deny)
    store = DirectoryStore(tmp_path, max_size_bytes=100)

    assert store.create(entry("a"), bytes(1000)) is True
    assert labels(store) == ["a"]


def test_lock_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("a thesis")
    root = tmp_path / "store"
    (root / ".hotstart").mkdir(parents=True)
    (root / ".hotstart" / "total").symlink_to(precious)

    assert DirectoryStore(root, max_size_bytes=100).create(entry("a"), b"1") is True
    assert precious.read_text() == "a thesis"


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


NO_HARD_LINKS = [errno.EOPNOTSUPP, errno.ENOTSUP, errno.EPERM, errno.ENOSYS, errno.EMLINK]


def without_hard_links(monkeypatch: pytest.MonkeyPatch, number: int = errno.EPERM) -> None:
    def no_hard_links(source: Path, target: Path) -> None:
        raise OSError(number, os.strerror(number), str(source), None, str(target))

    monkeypatch.setattr("os.link", no_hard_links)


@pytest.mark.parametrize("number", NO_HARD_LINKS)
def test_create_without_hard_links_creates_once_and_leaves_no_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    without_hard_links(monkeypatch, number)
    store = DirectoryStore(tmp_path)

    assert store.create("folder/name", b"first") is True
    assert store.create("folder/name", b"second") is False
    assert store.get("folder/name") == b"first"
    assert list((tmp_path / ".hotstart" / "tmp").iterdir()) == []


def test_create_without_hard_links_8_at_once_one_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_hard_links(monkeypatch)
    barrier = Barrier(8)

    def create(index: int) -> bool:
        store = DirectoryStore(tmp_path)
        barrier.wait(timeout=30)
        return store.create("name", str(index).encode())

    with ThreadPoolExecutor(8) as pool:
        created = list(pool.map(create, range(8)))

    assert created.count(True) == 1
    assert DirectoryStore(tmp_path).get("name") == str(created.index(True)).encode()


def test_create_without_hard_links_another_came_first_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def another_creates(source: Path, target: Path) -> None:
        Path(target).write_bytes(b"another's")
        raise OSError(errno.EPERM, os.strerror(errno.EPERM), str(source), None, str(target))

    monkeypatch.setattr("os.link", another_creates)
    store = DirectoryStore(tmp_path)

    assert store.create("name", b"mine") is False
    assert store.get("name") == b"another's"


def test_create_without_hard_links_and_locks_is_refused_without_a_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    without_hard_links(monkeypatch)
    monkeypatch.setattr("fcntl.flock", no_locks)
    store = DirectoryStore(tmp_path)

    with pytest.raises(RejectedRequest, match="locks"):
        store.create("name", b"data")
    assert names(store) == []
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


def test_eviction_leaves_what_was_pinned_after_it_had_looked_at_the_pins(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "store", max_size_bytes=200)
    for at_s, label in enumerate("ab"):
        store.create(entry(label), b"x" * 100)
        used_at(tmp_path / "store", label, at_s)
    bound = store._bound
    assert bound is not None
    look = bound._list_pins

    def look_and_pin() -> list[ObjectStat]:
        seen = list(look())
        store.create(f"{pin_folder(entry('a'))}key", b"")
        return seen

    bound._list_pins = look_and_pin
    store.create(entry("c"), b"x" * 100)
    left = [stat.name for stat in store.list("entries/")]
    assert sorted(left) == sorted([entry("a"), entry("c")])


def test_await_evictions_blocks_while_an_eviction_removes(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "store")
    store.await_evictions()  # there has been none
    store.create("entries/v1/one", b"")
    waited = threading.Thread(target=store.await_evictions)
    with locked(tmp_path / "store" / ".hotstart" / "removal.lock"):
        waited.start()
        waited.join(0.2)
        assert waited.is_alive()
    waited.join(10)
    assert not waited.is_alive()
