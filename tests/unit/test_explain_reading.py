"""What is read of a store to explain a key, and which entries count as earlier ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from hotstart.cache.description import to_text
from hotstart.cache.entry import HEAD_BYTES, EntryMeta, encode, entry_name
from hotstart.cache.explain import MAX_READ, entries_of, find_keys, moment
from hotstart.cache.signing import UNSEALED, Key, Keyring, Seal
from hotstart.cache.store import ObjectStat
from hotstart.launcher.explained import explain_entry
from tests.unit.conftest import InMemoryStore
from tests.unit.test_differences import described, shaped

pytestmark = pytest.mark.unit


class Bucket(InMemoryStore):
    """Says what was asked of it."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def add(self, key: str, seal: Seal = UNSEALED, meta: EntryMeta | None = None) -> str:
        self.now_s += 1
        assert self.create(entry_name(key), encode(key, b"x" * 100_000, meta or EntryMeta(), seal))
        return key

    def get(self, name: str) -> bytes | None:
        self.asked.append("get")
        return super().get(name)

    def read_head(self, name: str, size_bytes: int) -> bytes | None:
        self.asked.append(f"head {size_bytes}")
        data = super().get(name)
        return None if data is None else data[:size_bytes]

    def list(self, prefix: str) -> Iterator[ObjectStat]:
        self.asked.append("list")
        return super().list(prefix)


def key(number: int, module: str = "jit_f") -> str:
    return f"{module}-{number:064x}"


def test_entries_of_a_module_are_read_to_their_heads_without_a_signing_key() -> None:
    bucket = Bucket()
    keys = [bucket.add(key(i)) for i in range(3)]
    bucket.add(key(9, "jit_g"))
    assert [one.key for one in entries_of(bucket, "jit_f")] == keys
    assert bucket.asked == ["list", *[f"head {HEAD_BYTES}"] * 3]


def test_entries_of_a_module_are_read_whole_where_there_is_a_signing_key() -> None:
    bucket, seal = Bucket(), Seal(Keyring((Key(b"s" * 32),)), "/runs")
    bucket.add(key(0))
    signed = bucket.add(key(1), seal)
    assert [one.key for one in entries_of(bucket, "jit_f", seal)] == [signed]
    assert bucket.asked == ["list", "get", "get"]


def test_entries_that_are_newer_or_known_take_no_place_of_earlier_ones() -> None:
    bucket = Bucket()
    keys = [bucket.add(key(i)) for i in range(2 * MAX_READ + 2)]
    stats = {stat.name: stat for stat in bucket.list("entries/")}
    target = moment(stats[entry_name(keys[1])])
    found = entries_of(bucket, "jit_f", always=[keys[1]], before=target)
    assert [one.key for one in found] == keys[:2]
    found = entries_of(bucket, "jit_f", always=keys[-5:], unread=keys[-30:-5])
    assert [one.key for one in found] == keys[-30 - MAX_READ :]
    program = explain_entry(found[0], found)
    assert program["status"] == "first"


def test_find_keys_of_a_module_reads_its_latest_entry_alone() -> None:
    bucket = Bucket()
    keys = [bucket.add(key(i, "jit_<lambda>")) for i in range(4)]
    for wanted in ("jit_<lambda>", "jit__lambda_"):
        bucket.asked.clear()
        assert [one.key for one in find_keys(bucket, wanted)] == [keys[-1]]
        assert bucket.asked == ["list", f"head {HEAD_BYTES}"]


def test_find_keys_takes_the_beginning_of_a_hash_of_that_module_alone() -> None:
    bucket = Bucket()
    mine = bucket.add("jit_feedback-" + "1f2e3d" + "0" * 58)
    others = bucket.add("jit_step-" + "1f2e3d" + "1" * 58)
    for wanted, keys in {
        "jit_feedback-1f2e3d": [mine],
        mine: [mine],
        entry_name(mine): [mine],
        "1f2e3d": [mine, others],
        "jit_stop-1f2e3d": [],
    }.items():
        assert [one.key for one in find_keys(bucket, wanted)] == keys, wanted


def test_explain_entry_of_several_shapes_names_the_flag_and_not_the_shape_beside_it() -> None:
    """By an older hotstart, of which the writer alone tells what one process made."""
    bucket = Bucket()
    flags = {"XLA_FLAGS": ["--xla_a"]}
    options = {**described().options, "debug.xla_a": "true"}
    parts_of: tuple[dict[str, Any], ...] = {}, {"flags": flags, "options": options}
    for start, parts in enumerate(parts_of):
        for i, rows in enumerate((4, 8, 16)):
            meta = EntryMeta(writer=f"host/{start}", parts=to_text(shaped(rows, **parts)))
            bucket.add(key(10 * start + i), meta=meta)
    entries = entries_of(bucket, "jit_f")
    for i in (3, 4, 5):
        found = explain_entry(entries[i], entries)
        assert found["summary"] == "XLA_FLAGS: --xla_a is on and was not set"
        assert found["nearest"]["key"] == entries[i - 3].key
    assert explain_entry(entries[1], entries)["summary"] == (
        "the shape of argument 0 (w) is [8,4] and was [4,4]"
    )
