"""The campaign of corrupted entries in short, and that it can tell."""

from __future__ import annotations

import pytest

from tests.chaos.campaigns import Row
from tests.chaos.corruption import KINDS, PLACES, campaign

pytestmark = pytest.mark.chaos


def test_corrupted_entries_are_all_found_replaced_and_never_loaded() -> None:
    with campaign(seed=7) as made:
        made.run(2 * len(KINDS) * len(PLACES))
        assert made.told == []
        assert made.row() == Row("corruption", trials=64, seed=7)


def test_campaign_tells_what_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, "flip", lambda rng, data, other: data)
    monkeypatch.setattr("tests.chaos.corruption.flip", lambda rng, data, other: data)
    with campaign(seed=7) as made:
        made.run(1)
        assert made.failed == {"undetected": 1, "unrepaired": 2}
