"""The simulation in short, and that it can tell sound protocols from unsound ones."""

from __future__ import annotations

import itertools
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from hotstart.cache.lease_view import Lease
from hotstart.cache.leases import StoreLeases
from hotstart.launcher.claims import Claims
from hotstart.launcher.coordinator_session import Session
from tests.chaos.campaigns import Row, write_campaign
from tests.simulation import coordinator_host
from tests.simulation.campaign import SCENARIOS, planned_faults, run_seed, scenario_of
from tests.simulation.scheduler import Scheduler
from tests.simulation.world import Violation

pytestmark = pytest.mark.chaos

ROOT = Path(__file__).parents[2]


def simulate(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.simulation", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_invariants_hold_under_faults() -> None:
    done = simulate("--seeds", "240")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout[-4000:]


@pytest.mark.parametrize("scenario", sorted(SCENARIOS))
def test_seed_replays_exactly(scenario: str) -> None:
    seed = next(seed for seed in range(30, 60) if scenario_of(seed) == scenario)
    first, second = (simulate("--seed", str(seed), "--trace") for _ in range(2))
    assert first.stdout.endswith("all invariants hold\n")
    assert first.stdout == second.stdout


def test_seeds_that_follow_each_other_replay_exactly() -> None:
    first, second = (simulate("--seeds", "60").stdout for _ in range(2))
    assert re.sub(r" [0-9.]+ s;", "", first) == re.sub(r" [0-9.]+ s;", "", second)


def violations(scenario: str, most: int = 150, *, fault: str = "") -> Iterator[str]:
    """Those of a scenario's first seeds, or the first of those with a kind of fault."""
    seeds = (seed for seed in itertools.count() if scenario_of(seed) == scenario)
    if fault:
        seeds = (seed for seed in seeds if getattr(planned_faults(seed), fault))
    for seed in itertools.islice(seeds, most):
        failure = run_seed(seed).failure
        if failure is not None:
            assert isinstance(failure, Violation)
            yield str(failure)


def test_lease_that_is_taken_over_as_soon_as_it_is_seen_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(StoreLeases, "_is_dead", lambda self, holder, view: True)
    assert "which has given a sign" in next(violations("solo"))


def test_lease_that_never_beats_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StoreLeases, "_beat", _forget_to_beat)
    assert "which is well and holds epoch" in next(violations("solo"))


def test_holder_that_is_never_noticed_to_be_gone_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Claims, "_void", lambda self, member: [])
    assert "somebody waits for ever" in next(violations("gang"))


def test_member_that_is_not_kept_while_its_link_is_broken_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(coordinator_host, "KEEP_S", 0.0)
    assert "of jit_program" in next(violations("gang", fault="breaks"))


def test_lines_that_are_not_sent_again_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Session, "resume", Session.told)
    assert "somebody waits for ever" in next(violations("gang", fault="breaks"))


def test_row_replaces_the_campaigns_last_one_only(tmp_path: Path) -> None:
    path = tmp_path / "build" / "chaos.json"
    simulated, fuzzed = Row("simulation", trials=10, seed=1), Row("fuzz", trials=3, seed=2)
    write_campaign(simulated, path)
    write_campaign(fuzzed, path)
    write_campaign(replace(simulated, trials=20), path)
    assert path.read_text().count('"campaign"') == 2
    assert '"trials": 20' in path.read_text()


def test_thread_from_outside_is_refused() -> None:
    scheduler = Scheduler(random.Random(1))
    with pytest.raises(RuntimeError, match="does not know"):
        scheduler.check()


def _forget_to_beat(self: StoreLeases, lease: Lease) -> None:
    lease.due_s = self._clock() + self._ttl_s / 4
