"""What is used in a node directory is told to the directory behind it."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from hotstart.cache.collect import list_stored
from hotstart.cache.config import CacheConfig
from hotstart.cache.counters import Counters
from hotstart.cache.directory import DirectoryStore
from hotstart.cache.entry import EntryMeta, encode, entry_name
from hotstart.cache.last_use import EVERY_S, LastUses
from hotstart.cache.shared import SharedCache, Tiers
from hotstart.launcher.agent_cache import AgentCache
from hotstart.launcher.host_store import HostStore
from tests.support.memory_store import MemoryStore

pytestmark = pytest.mark.unit

KEY = f"jit_step-{'a' * 64}"
NAME = entry_name(KEY)
DAY_S = 86_400.0


@pytest.fixture
def far(tmp_path: Path) -> DirectoryStore:
    """A directory with one entry that was made and last used 40 days ago."""
    store = DirectoryStore(tmp_path / "far")
    store.create(NAME, encode(KEY, b"payload", EntryMeta()))
    set_used(store, 40)
    return store


def set_used(store: DirectoryStore, days_ago: float) -> None:
    now_s = time.time()
    os.utime(Path(store.url) / NAME, (now_s - days_ago * DAY_S, now_s - 40 * DAY_S))


def idle_days(store: DirectoryStore) -> float:
    return (time.time() - list_stored(store)[NAME].candidate.used_s) / DAY_S


def test_note_use_moves_the_time_of_what_was_not_used_for_long_alone(far: DirectoryStore) -> None:
    before = far.stat(NAME)
    assert far.note_use(NAME, unless_within_s=DAY_S)
    assert idle_days(far) < 0.1
    assert far.stat(NAME) == before  # it is no other generation
    assert not far.note_use(NAME, unless_within_s=DAY_S)
    set_used(far, 0.5)
    assert not far.note_use(NAME, unless_within_s=DAY_S)
    assert idle_days(far) == pytest.approx(0.5, abs=0.1)
    assert not far.note_use("entries/v1/none", unless_within_s=DAY_S)


def test_note_use_of_another_users_file_reads_a_byte(
    far: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*arguments: Any, **more: Any) -> None:
        raise PermissionError

    monkeypatch.setattr("hotstart.cache.directory.os.utime", denied)
    assert far.note_use(NAME, unless_within_s=DAY_S)


def test_last_uses_looks_once_a_day_an_entry(far: DirectoryStore) -> None:
    now = [100.0]
    uses = LastUses(far, clock=lambda: now[0])
    for at, days in ((100.0, 0.0), (99.0 + EVERY_S, 40.0), (101.0 + EVERY_S, 0.0)):
        now[0] = at
        set_used(far, 40)
        uses.note(NAME)
        assert uses.settle(20)
        assert idle_days(far) == pytest.approx(days, abs=0.1)


def test_last_uses_of_a_bucket_and_of_a_gone_directory_is_no_trouble(tmp_path: Path) -> None:
    LastUses(MemoryStore()).note(NAME)
    LastUses(None).note(NAME)
    (tmp_path / "file").touch()
    uses = LastUses(DirectoryStore(tmp_path / "file" / "none"))
    uses.note(NAME)
    assert uses.settle(20)


def test_hit_in_the_node_directory_is_a_use_in_the_directory_behind_it(
    far: DirectoryStore, tmp_path: Path
) -> None:
    near = DirectoryStore(tmp_path / "near")
    near.create(NAME, encode(KEY, b"payload", EntryMeta()))
    cache = SharedCache(Tiers(far, near), Counters())
    assert cache.get(KEY) is not None
    assert cache._uses.settle(20)
    assert idle_days(far) < 0.1


def test_program_that_a_worker_asked_for_is_a_use_that_its_agent_notes(
    far: DirectoryStore, tmp_path: Path
) -> None:
    agent = AgentCache("10.0.0.1")
    near = DirectoryStore(tmp_path / "near")
    agent._store = HostStore(CacheConfig(far.url), near, far)
    agent.heard(0, {"asked": {"key": KEY, "options": "", "devices": [0]}})
    assert agent._store.uses.settle(20)
    assert idle_days(far) < 0.1
    agent._store.close()
