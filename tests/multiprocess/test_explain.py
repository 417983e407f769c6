"""Causes planted in real JAX processes are named, and nothing else; see tests/explain."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hotstart.cache.explain import entries_of, listed
from hotstart.cache.store import open_store
from tests.explain.campaign import play, start
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


def test_recorded_components_of_every_program_give_its_key(tmp_path: Path) -> None:
    """The canary: were JAX to hash something else too, no explanation would be whole."""
    assert start(tmp_path / "cache", ())
    store = open_store(str(tmp_path / "cache"))
    modules = {module for _, _, module in listed(store)}
    known = [one for module in sorted(modules) for one in entries_of(store, module)]
    descriptions = [one.description for one in known]
    assert {"jit_train"} <= modules
    assert len(known) == len(list(listed(store)))
    assert all(d is not None and d.complete and d.program is not None for d in descriptions)


@pytest.mark.skipif(os.environ.get("HOTSTART_LONG") != "1", reason="HOTSTART_LONG=1 runs it")
def test_explain_names_every_plant_singly_and_in_pairs(tmp_path: Path) -> None:
    wrong = []
    for number, plants in enumerate(trials(seed=2, pairs=40, controls=4)):
        played = play(plants, tmp_path / str(number))
        if played.wrong:
            wrong.append((played.name, played.wrong, played.explanation))
    assert wrong == []
