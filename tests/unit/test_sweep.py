"""What lies beside the entries and goes by age."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from hotstart.cache.autotune import pack
from hotstart.cache.directory import DirectoryStore
from hotstart.cache.errors import AccessDenied
from hotstart.cache.janitor import DAY_S, Limits
from hotstart.cache.store import Store
from hotstart.cache.sweep import find_litter, sweep
from tests.support.memory_store import MemoryStore

pytestmark = pytest.mark.unit

SIZES_ALONE = Limits(max_size_bytes=1)


def tuned(store: Store, text: str, identity: str = "a" * 32) -> str:
    name, data = pack(identity, {"fusion.textproto": text})
    assert store.create(name, data)
    return name


def why(store: Store, limits: Limits, *, in_days: float) -> dict[str, str]:
    found = find_litter(store, limits, time.time() + in_days * DAY_S)
    return {one.stat.name: one.why for one in found}


def test_litter_of_autotuning_goes_by_age_and_not_by_size() -> None:
    store = MemoryStore()
    name = tuned(store, "1")
    assert why(store, Limits(max_age_s=10 * DAY_S), in_days=9) == {}
    assert why(store, Limits(max_age_s=10 * DAY_S), in_days=12) == {name: "12.0 days old"}
    assert why(store, SIZES_ALONE, in_days=400) == {}
    assert why(store, Limits(unused_for_s=DAY_S), in_days=400) == {}  # no last use is kept


def test_litter_of_autotuning_in_a_directory_goes_by_last_use(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    used, unused = tuned(store, "1"), tuned(store, "2")
    now_s = time.time()
    os.utime(tmp_path / used, (now_s - 1 * DAY_S, now_s - 30 * DAY_S))
    os.utime(tmp_path / unused, (now_s - 8 * DAY_S, now_s - 30 * DAY_S))
    limits = Limits(unused_for_s=5 * DAY_S)
    assert why(store, limits, in_days=0) == {unused: "not used for 8.0 days"}


def test_litter_of_autotuning_that_nobody_reads_any_more_goes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("hotstart.cache.sweep.MAX_BUNDLES", 2)
    store = MemoryStore()
    first, *_ = [tuned(store, str(number)) for number in range(3)]
    tuned(store, "of another kind", "b" * 32)
    assert why(store, SIZES_ALONE, in_days=0) == {first: "only the newest 2 of its kind are read"}


def test_litter_of_killed_collectors_goes_after_a_day() -> None:
    store = MemoryStore()
    names = ["clocks/v1/a", "collections/v1/b"]
    for name in names:
        store.create(name, b"")
    assert why(store, SIZES_ALONE, in_days=0.9) == {}
    left = why(store, SIZES_ALONE, in_days=2)
    assert left == dict.fromkeys(names, "a collector left it 2.0 days ago")


def test_sweep_deletes_what_is_as_it_was_found_and_goes_on_past_trouble() -> None:
    class Denied(MemoryStore):
        def delete(self, name: str, generation: int) -> bool:
            if name.endswith("a"):
                raise AccessDenied("not yours")
            return super().delete(name, generation)

    store = Denied()
    for name in "abc":
        store.create(f"collections/v1/{name}", b"")
    litter = find_litter(store, SIZES_ALONE, time.time() + 2 * DAY_S)
    store.renew("collections/v1/b", litter[1].stat.generation)
    assert [one.fate for one in sweep(store, litter)] == [
        "not deleted: not yours",
        "gone or replaced meanwhile",
        "deleted",
    ]
    assert len(list(store.list(""))) == 2
