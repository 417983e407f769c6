"""A collector over every store: what goes, what stays, and what comes in between."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hotstart.cache.collect import Collected, collect, list_stored, store_now_s, with_uses
from hotstart.cache.directory import DirectoryStore
from hotstart.cache.entry import EntryMeta, encode, entry_name
from hotstart.cache.errors import AccessDenied
from hotstart.cache.eviction import eviction_order
from hotstart.cache.janitor import Condemned
from hotstart.cache.pins import BY_KEY, PinFacts, list_pins, pin, source_of_run, unpin
from hotstart.cache.repair import find_entry
from hotstart.cache.signing import Key, Keyring, Seal, SealedStore
from hotstart.cache.store import Store, open_store
from tests.support.memory_store import MemoryStore

pytestmark = pytest.mark.contract

KEYS = [f"jit_step-{digit * 64}" for digit in "abcdef"]
NAMES = [entry_name(key) for key in KEYS]
FACTS = PinFacts("me@here", 12.0, "the release")


def entry(index: int) -> bytes:
    return encode(KEYS[index], b"payload" * 10, EntryMeta())


def fill(store: Store, *indices: int) -> None:
    for index in indices:
        assert store.create(NAMES[index], entry(index))


def fates(found: list[Collected]) -> dict[str, str]:
    return {one.name: one.fate for one in found}


def run(store: Store, *indices: int) -> list[Collected]:
    condemned = [Condemned(NAMES[index], "old") for index in indices]
    return list(collect(store, list_stored(store), condemned))


def test_list_stored_groups_replacements_and_leaves_others_out(store: Store) -> None:
    fill(store, 0, 1)
    store.create(f"{NAMES[0]}~1", b"12345")
    store.create("entries/v1/notes.txt", b"not an entry")
    store.create("manifests/v1/a/b", b"not an entry")
    stored = list_stored(store)
    assert list(stored) == [NAMES[0], NAMES[1]]
    assert [stat.name for stat in stored[NAMES[0]].objects] == [NAMES[0], f"{NAMES[0]}~1"]
    assert stored[NAMES[0]].candidate.size_bytes == len(entry(0)) + 5


def test_collect_deletes_what_was_condemned_with_its_replacements_alone(store: Store) -> None:
    fill(store, 0, 1)
    store.create(f"{NAMES[0]}~1", entry(0))
    [gone] = run(store, 0)
    assert gone == Collected(NAMES[0], 2 * len(entry(0)), "old", "deleted")
    assert [stat.name for stat in store.list("entries/")] == [NAMES[1]]


def test_collect_leaves_what_was_created_anew_since_the_listing(store: Store) -> None:
    fill(store, 0)
    stored = list_stored(store)
    stat = store.stat(NAMES[0])
    assert stat is not None and store.delete(NAMES[0], stat.generation)
    fill(store, 0)
    found = list(collect(store, stored, [Condemned(NAMES[0], "old")]))
    assert fates(found) == {NAMES[0]: "gone or replaced meanwhile"}
    assert store.get(NAMES[0]) == entry(0)


def test_collect_leaves_what_was_pinned_since_it_was_chosen(store: Store) -> None:
    fill(store, 0, 1)
    stored = list_stored(store)
    pin(store, NAMES[0], BY_KEY, FACTS)
    found = list(collect(store, stored, [Condemned(name, "old") for name in NAMES[:2]]))
    assert fates(found) == {NAMES[0]: "pinned meanwhile", NAMES[1]: "deleted"}


def test_collect_of_two_at_once_deletes_each_once(store: Store) -> None:
    fill(store, 0, 1, 2)
    stored, condemned = list_stored(store), [Condemned(name, "old") for name in NAMES[:3]]
    first, second = collect(store, stored, condemned), collect(store, stored, condemned)
    both = list(first) + list(second)
    assert sum(one.is_deleted for one in both) == 3
    assert list(store.list("entries/")) == []


def test_collect_that_ends_in_the_middle_leaves_a_chain_that_readers_walk() -> None:
    class Crash(BaseException):
        pass

    class Crashing(MemoryStore):
        deletions = 0

        def delete(self, name: str, generation: int) -> bool:
            self.deletions += 1
            if self.deletions == 2:
                raise Crash
            return super().delete(name, generation)

    store = Crashing()
    store.create(NAMES[0], b"bad")
    store.create(f"{NAMES[0]}~1", b"bad too")
    store.create(f"{NAMES[0]}~2", entry(0))
    with pytest.raises(Crash):
        run(store, 0)
    assert [stat.name for stat in store.list("entries/")] == [NAMES[0], f"{NAMES[0]}~1"]
    assert len(list(store.list("collections/"))) == 1  # it can't know what goes on still
    store.create(f"{NAMES[0]}~2", entry(0))  # as the next writer does
    assert find_entry(store, KEYS[0]).entry is not None


def test_collect_goes_on_past_what_it_may_not_delete() -> None:
    class Denied(MemoryStore):
        def delete(self, name: str, generation: int) -> bool:
            if name == NAMES[0]:
                raise AccessDenied("not yours")
            return super().delete(name, generation)

    store = Denied()
    fill(store, 0, 1)
    assert fates(run(store, 0, 1)) == {NAMES[0]: "not deleted: not yours", NAMES[1]: "deleted"}


def test_collect_from_a_directory_leaves_what_was_read_since_the_listing(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "store")
    fill(store, 0, 1)
    stored = list_stored(store)
    assert store.get(NAMES[0]) == entry(0)
    found = list(collect(store, stored, [Condemned(name, "old") for name in NAMES[:2]]))
    assert fates(found) == {NAMES[0]: "used meanwhile", NAMES[1]: "deleted"}


def test_list_stored_of_a_directory_has_its_access_times(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "store")
    fill(store, 0)
    os.utime(tmp_path / "store" / NAMES[0], (5000, 1000))
    [there] = list_stored(store).values()
    assert (there.candidate.created_s, there.candidate.used_s) == (1000, 5000)


def test_with_uses_takes_the_later_of_two() -> None:
    store = MemoryStore()
    fill(store, 0, 1)
    stored = list_stored(store)
    made_s = stored[NAMES[0]].candidate.created_s
    known = with_uses(stored, {NAMES[0]: made_s + 9, NAMES[1]: 1.0, "entries/v1/gone": 3.0})
    assert known[NAMES[0]].candidate.used_s == made_s + 9
    assert known[NAMES[1]] == stored[NAMES[1]]


def test_store_now_is_the_stores_clock_and_leaves_nothing(store: Store) -> None:
    fill(store, 0)
    made = store.stat(NAMES[0])
    assert made is not None
    assert 0 <= store_now_s(store) - made.modified_s < 60
    assert [stat.name for stat in store.list("")] == [NAMES[0]]


def test_pin_is_one_a_source_and_goes_alone(store: Store) -> None:
    fill(store, 0, 1)
    run_pin = source_of_run("a-run-1")
    assert pin(store, NAMES[0], BY_KEY, FACTS)
    assert not pin(store, NAMES[0], BY_KEY, FACTS)
    assert pin(store, NAMES[0], run_pin, FACTS)
    [(_, sources)] = list_pins(store).items()
    assert sorted(sources) == [BY_KEY, run_pin]
    assert unpin(store, NAMES[0], BY_KEY)
    assert not unpin(store, NAMES[0], BY_KEY)
    assert [list(sources) for sources in list_pins(store, NAMES[0]).values()] == [[run_pin]]
    assert list_pins(store, NAMES[1]) == {}


def test_pin_is_no_entry_to_a_reader_nor_to_the_collector(store: Store) -> None:
    fill(store, 0)
    pin(store, NAMES[0], BY_KEY, FACTS)
    assert list(list_stored(store)) == [NAMES[0]]
    assert find_entry(store, KEYS[0]).entry is not None


def test_pin_is_signed_where_there_is_a_key(store: Store) -> None:
    seal = Seal(Keyring((Key(b"\x01" * 32),)), store.url)
    sealed = SealedStore(store, seal)
    pin(sealed, NAMES[0], BY_KEY, FACTS)
    [(_, sources)] = list_pins(store).items()
    data = sealed.get(sources[BY_KEY].name)
    assert data is not None and PinFacts.from_json(data) == FACTS
    raw = store.get(sources[BY_KEY].name)
    assert raw is not None and raw.startswith(data) and b"hotstart-signed" in raw


@pytest.mark.parametrize("data", [b"", b"[]", b'{"who": 1}', b"\xff", b"[" * 100_000])
def test_pin_facts_of_other_bytes_are_none(data: bytes) -> None:
    assert PinFacts.from_json(data) is None


def test_eviction_order_leaves_pinned_ones_out() -> None:
    last_use = {NAMES[0]: 1, f"{NAMES[0]}~1": 2, NAMES[1]: 3, NAMES[2]: 4}
    store = MemoryStore()
    pin(store, NAMES[0], BY_KEY, FACTS)
    pinned = list_pins(store)
    order = eviction_order(last_use, created="new", is_created_too_large=False, pinned=pinned)
    assert order == [NAMES[1], NAMES[2]]


def test_bound_of_a_directory_evicts_around_a_pinned_entry(tmp_path: Path) -> None:
    size = len(entry(0))
    store = open_store(str(tmp_path / "store"), max_size_bytes=3 * size)
    fill(store, 0, 1, 2)
    pin(store, NAMES[0], BY_KEY, FACTS)
    for index in range(3):
        os.utime(tmp_path / "store" / NAMES[index], (1000 + index, 1000))
    fill(store, 3)
    left = [stat.name for stat in store.list("entries/")]
    assert left == [NAMES[0], NAMES[3]]  # down to 90 % of three
    unpin(store, NAMES[0], BY_KEY)
    fill(store, 1, 2)
    assert NAMES[0] not in [stat.name for stat in store.list("entries/")]
