"""Two processes of one jax.distributed gang on one directory."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.support.cache_gang import ONE_SIDED, RESULTS, Member, run_cache_gang

pytestmark = [pytest.mark.multiprocess, pytest.mark.internals]


def modules_stored(location: Path) -> Counter[str]:
    return Counter(path.name.partition("-")[2] for path in (location / "entries" / "v1").iterdir())


def assert_counts_agree(member: Member) -> None:
    stats = member.stats
    assert stats["requests"] == len(member.requested)
    assert stats["compiled"] == len(member.compiled)
    assert stats["hits"] == len(member.requested) - len(member.compiled)
    assert (stats["errors"], stats["compiled_before_enable"]) == (0, 0)


def test_gang_stores_the_programs_of_every_process_and_compiles_none_again(tmp_path):
    cold = run_cache_gang(tmp_path / "cache")
    stored = modules_stored(tmp_path / "cache")
    moved = (tmp_path / "cache").rename(tmp_path / "moved")
    warm = run_cache_gang(moved)

    # One key for each program, also for what a process runs on its own device, and one compiles.
    compiled = sorted(name for member in cold for name in member.compiled)
    assert compiled == ["jit_alone", "jit_everywhere", "jit_mine"]
    assert stored == {"jit_everywhere": 1, "jit_mine": 1, "jit_alone": 1}
    assert [member.compiled for member in warm] == [[], []]
    assert [member.requested for member in warm] == [member.requested for member in cold]
    assert modules_stored(moved) == stored
    for gang in (cold, warm):
        assert [member.results for member in gang] == [RESULTS, RESULTS | ONE_SIDED]
        for member in gang:
            assert_counts_agree(member)


def test_gang_of_three_and_of_two_do_not_share_the_global_program(tmp_path):
    run_cache_gang(tmp_path, count=2)
    three = run_cache_gang(tmp_path, count=3)

    assert any("jit_everywhere" in member.compiled for member in three)
    assert modules_stored(tmp_path)["jit_everywhere"] == 2
