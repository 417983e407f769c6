"""`verify` over every store: what it finds, what it deletes, and what it leaves alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hotstart.cache.directory import DirectoryStore
from hotstart.cache.entry import EntryMeta, encode, entry_name
from hotstart.cache.errors import AccessDenied
from hotstart.cache.repair import find_entry
from hotstart.cache.signing import UNSEALED, Key, Keyring, Seal
from hotstart.cache.store import Store
from hotstart.cache.verify import Looked, verify
from tests.support.memory_store import MemoryStore

pytestmark = pytest.mark.contract

KEYS = [f"jit_step-{digit * 64}" for digit in "abcdef"]
NAMES = [entry_name(key) for key in KEYS]
OURS, OTHER = Key(b"\x01" * 32), Key(b"\x02" * 32)


def entry(index: int, seal: Seal = UNSEALED) -> bytes:
    return encode(KEYS[index], b"payload" * 100, EntryMeta(), seal)


def problems(found: list[Looked]) -> dict[str, str]:
    return {looked.name: looked.problem for looked in found if looked.problem is not None}


def test_verify_sound_entries_are_counted_and_nothing_is_said(store: Store) -> None:
    for index in range(3):
        store.create(NAMES[index], entry(index))
    store.create(f"{NAMES[0]}~1", entry(0))
    store.create("manifests/v1/other", b"not looked at")
    found = list(verify(store))
    assert [looked.name for looked in found] == [NAMES[0], f"{NAMES[0]}~1", NAMES[1], NAMES[2]]
    assert problems(found) == {}
    assert sum(looked.size_bytes for looked in found) == 4 * len(entry(0))


def damage(store: Store) -> dict[str, str]:
    flipped = bytearray(entry(1))
    flipped[-9] ^= 4
    store.create(NAMES[0], entry(0))
    store.create(NAMES[1], bytes(flipped))
    store.create(NAMES[2], entry(2)[:-1])
    store.create(NAMES[3], entry(4))
    store.create(f"{NAMES[4]}~1", entry(5))
    store.create("entries/v1/notes.txt", entry(4))
    store.create(NAMES[5], b"")
    return {
        NAMES[1]: "damaged",
        NAMES[2]: "damaged",
        NAMES[3]: "misplaced",
        f"{NAMES[4]}~1": "misplaced",
        NAMES[5]: "damaged",
        "entries/v1/notes.txt": "misplaced",
    }


def test_verify_finds_each_kind_of_damage_and_changes_nothing(store: Store) -> None:
    expected = damage(store)
    found = list(verify(store))
    assert problems(found) == expected
    assert all(looked.detail for looked in found if looked.problem)
    assert len(list(store.list(""))) == len(found) == 7


def test_verify_with_delete_takes_out_what_is_not_sound_and_no_more(store: Store) -> None:
    expected = damage(store)
    found = list(verify(store, delete=True))
    assert problems(found) == expected
    assert {looked.deletion for looked in found if looked.problem} == {"gone"}
    assert [stat.name for stat in store.list("")] == [NAMES[0]]
    assert problems(list(verify(store))) == {}


def test_verify_with_a_key_finds_what_it_refuses(store: Store) -> None:
    seal = Seal(Keyring((OURS,)), store.url)
    store.create(NAMES[0], entry(0, seal))
    store.create(NAMES[1], entry(1))
    store.create(NAMES[2], entry(2, Seal(Keyring((OTHER,)), store.url)))
    store.create(NAMES[3], entry(3, Seal(Keyring((OURS,)), "gs://elsewhere")))
    store.create(NAMES[4], entry(0, seal))
    expected = {name: "bad-signature" for name in NAMES[2:5]} | {NAMES[1]: "unsigned"}
    assert problems(list(verify(store, seal))) == expected
    assert set(problems(list(verify(store)))) == {NAMES[4]}


def test_verify_with_delete_keeps_a_bad_entry_that_leads_to_its_replacement(store: Store) -> None:
    store.create(NAMES[0], b"bad")
    store.create(f"{NAMES[0]}~1", entry(0))
    looked = [one for one in verify(store, delete=True) if one.problem]
    assert [one.deletion for one in looked] == [f"kept: readers go by it to {NAMES[0]}~1"]
    found = find_entry(store, KEYS[0]).entry
    assert found is not None


def test_verify_with_delete_leaves_what_only_lacks_a_signature(store: Store) -> None:
    store.create(NAMES[0], entry(0))
    [looked] = verify(store, Seal(Keyring((OURS,)), store.url), delete=True)
    assert (looked.problem, looked.deletion) == ("unsigned", None)
    assert store.get(NAMES[0]) == entry(0)


def test_verify_goes_on_past_an_object_that_can_not_be_read() -> None:
    class Denied(MemoryStore):
        def get(self, name: str) -> bytes | None:
            if name == NAMES[1]:
                raise AccessDenied("not yours")
            return super().get(name)

    store = Denied()
    for index in range(3):
        store.create(NAMES[index], entry(index))
    assert problems(list(verify(store, delete=True))) == {NAMES[1]: "unreadable"}
    assert len(list(store.list(""))) == 3


def test_verify_leaves_a_successor_alone() -> None:
    class Replaced(MemoryStore):
        """Somebody repairs an entry between the look at it and its deletion."""

        def delete(self, name: str, generation: int) -> bool:
            super().delete(name, generation)
            self.create(name, entry(0))
            return super().delete(name, generation)

    store = Replaced()
    store.create(NAMES[0], b"bad")
    [looked] = verify(store, delete=True)
    assert (looked.problem, looked.deletion) == ("damaged", "replaced meanwhile")
    assert store.get(NAMES[0]) == entry(0)


def test_verify_entry_that_goes_meanwhile_is_left_out() -> None:
    class Evicted(MemoryStore):
        def get(self, name: str) -> bytes | None:
            return None if name == NAMES[1] else super().get(name)

    store = Evicted()
    for index in range(3):
        store.create(NAMES[index], entry(index))
    assert [looked.name for looked in verify(store)] == [NAMES[0], NAMES[2]]


def test_verify_of_a_directory_does_not_change_what_was_used_last(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "store")
    store.create(NAMES[0], entry(0))
    path = tmp_path / "store" / NAMES[0]
    written_ns = path.stat().st_mtime_ns
    os.utime(path, ns=(written_ns + 10**9, written_ns))  # later: the kernel leaves it alone then
    assert problems(list(verify(store))) == {}
    assert path.stat().st_atime_ns == written_ns + 10**9


def test_verify_holds_few_entries_at_once() -> None:
    class Counting(MemoryStore):
        listed = looked = most = 0

        def list(self, prefix: str):  # type: ignore[no-untyped-def]
            for stat in super().list(prefix):
                self.listed += 1
                yield stat

    store = Counting()
    for number in range(100):
        key = f"jit_step-{number:064x}"
        store.create(entry_name(key), encode(key, b"", EntryMeta()))
    for looked in verify(store, threads=2):
        assert isinstance(looked, Looked)
        store.looked += 1
        store.most = max(store.most, store.listed - store.looked)
    assert (store.looked, store.most) == (100, 3)


def test_verify_of_a_directory_leaves_a_time_alone_that_the_kernel_would_move(
    tmp_path: Path,
) -> None:
    store = DirectoryStore(tmp_path / "store")
    store.create(NAMES[0], entry(0))
    path = tmp_path / "store" / NAMES[0]
    day_s = 86400
    os.utime(path, (path.stat().st_mtime - 9 * day_s, path.stat().st_mtime))  # relatime moves it
    before_ns = path.stat().st_atime_ns
    assert problems(list(verify(store))) == {}
    assert path.stat().st_atime_ns == before_ns


def test_verify_entry_that_is_replaced_while_it_is_read_is_looked_at_again() -> None:
    class Replaced(MemoryStore):
        """Its reader gets the beginning of an entry in whose place a larger one is by then."""

        reads = 0

        def get(self, name: str) -> bytes | None:
            self.reads += 1
            if self.reads > 1:
                return super().get(name)
            found = self.stat(name)
            assert found is not None and self.delete(name, found.generation)
            larger = encode(KEYS[0], b"payload" * 200, EntryMeta())
            self.create(name, larger)
            return larger[: found.size_bytes + 1]

    store = Replaced()
    store.create(NAMES[0], entry(0))
    [looked] = verify(store, delete=True)
    assert (looked.problem, store.reads) == (None, 2)
    assert len(list(store.list(""))) == 1


def test_verify_entry_that_goes_after_it_was_read_damaged_is_left_out() -> None:
    class Repaired(MemoryStore):
        def get(self, name: str) -> bytes | None:
            data, found = super().get(name), self.stat(name)
            assert found is not None and self.delete(name, found.generation)
            return data

    store = Repaired()
    store.create(NAMES[0], b"bad")
    assert list(verify(store)) == []
