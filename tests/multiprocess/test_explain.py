"""Causes planted in real JAX processes are named, and nothing else; see tests/explain."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.explain.campaign import play
from tests.explain.plants import BY_NAME, Plant, trials

pytestmark = [pytest.mark.multiprocess, pytest.mark.internals]

# Each kind of component once: two processes a trial.
SHORT = ("", "xla-flag+dtype", "device-count", "compression+donation", "jaxlib-version+restored")


def named(name: str) -> tuple[Plant, ...]:
    return tuple(BY_NAME[part] for part in name.split("+")) if name else ()


@pytest.mark.parametrize("name", SHORT, ids=lambda name: name or "control")
def test_explain_names_what_was_planted_and_nothing_else(name: str, tmp_path: Path) -> None:
    played = play(named(name), tmp_path)
    assert played.wrong == "", played.explanation


@pytest.mark.skipif(os.environ.get("HOTSTART_LONG") != "1", reason="HOTSTART_LONG=1 runs it")
def test_explain_names_every_plant_singly_and_in_pairs(tmp_path: Path) -> None:
    wrong = []
    for number, plants in enumerate(trials(seed=2, pairs=40, controls=4)):
        played = play(plants, tmp_path / str(number))
        if played.wrong:
            wrong.append((played.name, played.wrong, played.explanation))
    assert wrong == []
