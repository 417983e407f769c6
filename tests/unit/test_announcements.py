"""A pin against a collector: every order of their operations, and what is left by killed ones."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest

from hotstart.cache.announcements import COLLECTIONS, Settled, announced, settle
from hotstart.cache.collect import collect, list_stored
from hotstart.cache.entry import EntryMeta, encode, entry_name
from hotstart.cache.errors import AccessDenied, TransientError
from hotstart.cache.janitor import Condemned
from hotstart.cache.pins import BY_KEY, PinFacts, pin
from hotstart.cache.store import Store
from tests.support.interleavings import Actor, View, every_order
from tests.support.memory_store import MemoryStore

pytestmark = pytest.mark.unit

KEY = f"jit_step-{'a' * 64}"
NAME = entry_name(KEY)
FACTS = PinFacts("me@here", 12.0)


def filled() -> MemoryStore:
    store = MemoryStore()
    store.create(NAME, encode(KEY, b"payload", EntryMeta()))
    return store


def collecting() -> Actor:
    """A collector that chose the entry before anything else happened."""
    stored = list_stored(filled())  # generations are the same in each new store

    def run(view: View) -> list[str]:
        found = collect(view, stored, [Condemned(NAME, "old")], threads=1, clock=view.clock)
        return [one.fate for one in found]

    return run


def pinning(wait_s: float) -> Actor:
    """Whether a pin is told to hold, and whether its entry was there when that was told."""

    def run(view: View) -> bool:
        pin(view, NAME, BY_KEY, FACTS)
        settled = settle(view, [NAME], wait_s=wait_s, clock=view.clock, sleep=view.sleep)
        return NAME not in settled.unsure and view.stat(NAME) is not None

    return run


@pytest.mark.parametrize("wait_s", [0.0, 0.2])
def test_pin_that_is_told_to_hold_holds_in_every_order(wait_s: float) -> None:
    told: set[tuple[bool, str]] = set()
    for store, (holds, fates), order in every_order(filled, (pinning(wait_s), collecting())):
        there = store.stat(NAME) is not None
        assert isinstance(holds, bool) and isinstance(fates, list), (order, holds, fates)
        assert holds == there, order
        told.add((holds, fates[0]))
    assert told == {
        (True, "pinned meanwhile"),
        (False, "deleted"),
        (True, "gone or replaced meanwhile"),
    }


def test_pin_without_looking_for_collections_is_lost_in_some_order() -> None:
    def careless(view: View) -> bool:
        pin(view, NAME, BY_KEY, FACTS)
        return view.stat(NAME) is not None

    orders = every_order(filled, (careless, collecting()))
    assert any(holds and store.stat(NAME) is None for store, (holds, _), _ in orders)


def test_settle_costs_one_listing_where_nobody_collects() -> None:
    class Counting(MemoryStore):
        listings = 0

        def list(self, prefix: str):  # type: ignore[no-untyped-def]
            self.listings += 1
            return super().list(prefix)

    store = Counting()
    assert settle(store, [NAME]) == Settled()
    assert store.listings == 1


def left_behind(store: Store, said: Mapping[str, object] | None = None) -> None:
    data = b"\xff" if said is None else json.dumps(said).encode()
    assert store.create(f"{COLLECTIONS}dead", data)


@pytest.mark.parametrize("said", [{"who": "her@there, pid 7", "at_s": 1, "names": [NAME]}, None])
def test_settle_takes_an_entry_out_of_reach_of_a_killed_collector(
    said: Mapping[str, object] | None,
) -> None:
    store = filled()
    [listed] = store.list(NAME)
    left_behind(store, said)
    assert settle(store, [NAME], wait_s=0) == Settled(frozenset({NAME}))
    assert not store.delete(NAME, listed.generation)
    assert store.get(NAME) is not None


def test_settle_does_not_wait_for_a_collection_of_other_entries() -> None:
    store = filled()
    left_behind(store, {"who": "her@there", "names": ["entries/v1/other"]})
    assert settle(store, [NAME], sleep=lambda s: pytest.fail("waited")) == Settled()


def test_settle_of_a_role_that_may_not_delete_is_unsure() -> None:
    class Denied(MemoryStore):
        def renew(self, name: str, generation: int) -> bool:
            raise AccessDenied("not yours")

    store = Denied()
    store.create(NAME, b"")
    left_behind(store, {"who": "her@there, pid 7", "names": [NAME]})
    assert settle(store, [NAME], wait_s=0).unsure == {
        NAME: "her@there, pid 7 announced to delete it, in collections/v1/dead, and it can't be "
        "taken out of reach: not yours"
    }


def test_announcement_goes_with_its_collection_and_stays_where_a_deletion_is_unsure() -> None:
    store = MemoryStore()
    with announced(store, [NAME]):
        [listed] = store.list(COLLECTIONS)
        said = json.loads(store.get(listed.name) or b"")
        assert said["names"] == [NAME] and "pid" in said["who"]
    assert list(store.list("")) == []
    with announced(store, [NAME]) as announcement:
        announcement.unsure()
    assert len(list(store.list(COLLECTIONS))) == 1


def test_collect_whose_deletion_has_no_answer_leaves_its_announcement() -> None:
    class Silent(MemoryStore):
        def delete(self, name: str, generation: int) -> bool:
            raise TransientError("no full answer")

    store = Silent()
    store.create(NAME, b"")
    [one] = collect(store, list_stored(store), [Condemned(NAME, "old")])
    assert one.fate == "not deleted: no full answer"
    assert len(list(store.list(COLLECTIONS))) == 1


def test_collect_that_was_stopped_for_long_deletes_nothing_more() -> None:
    store = filled()
    times = iter([0.0, 601.0])
    [one] = collect(store, list_stored(store), [Condemned(NAME, "old")], clock=lambda: next(times))
    assert one.fate == "not deleted: too long after it was announced; run it again"
    assert store.get(NAME) is not None
