"""Public programs, unchanged, at named commits: launched, killed after a checkpoint, restarted.

They are not in this repository and no test fetches them. HOTSTART_PROGRAMS names a folder with
their clones; docs/programs.md has the commands. Each takes minutes.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.compile_counter import read_counts
from tests.support.launch import Launched, RayNodes, Site, ray_nodes

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = os.environ.get("HOTSTART_PROGRAMS")
PATIENCE_S = 1200.0
STARTED = r"^\[(\d+)\] program of process (\d+)$"  # by counted_program.py

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(3 * PATIENCE_S),
    pytest.mark.skipif(
        PROGRAMS is None, reason="set HOTSTART_PROGRAMS to a folder of clones: docs/programs.md"
    ),
]


@dataclass(frozen=True)
class Public:
    """A public program, and what its lines have in them.

    A checkpoint is complete once it has printed `lines` with `saved`; a start that restores one
    says `restored`.
    """

    url: str
    commit: str
    workers: int
    saved: str
    restored: str
    lines: int = 1
    prepare: Callable[[Site], dict[str, str]] = lambda here: {}
    needs: tuple[int, int] = (3, 11)


def _questions(here: Site) -> dict[str, str]:
    """Sums in words, where simply looks for the GSM8K data set; what its environment needs."""
    asked = [{"question": f"What is {i} plus {i}?", "answer": f"{2 * i}"} for i in range(400)]
    here.write("datasets/gsm8k/gsm8k.json", json.dumps({"train": asked, "test": asked[:8]}))
    return {"SIMPLY_DATASETS": str(here.folder / "datasets")}


PUBLIC = {
    "gooomoku": Public(
        "https://github.com/SMlc666/gooomoku",
        "996f90e93909079bc635563e5e7c0b30f8e3ec0a",
        workers=1,
        saved="saved training checkpoint",
        restored="resumed from gooomoku.pkl",
    ),
    "simply": Public(
        "https://github.com/google-deepmind/simply",
        "e14c06121fd9c5967051f0956fb4a84ad84a551c",
        workers=2,
        saved="Finished saving checkpoint .*/checkpoints/[1-9]",  # 0 is before the first step
        restored="Restoring checkpoint from",
        prepare=_questions,
    ),
    "jaqmc": Public(
        "https://github.com/bytedance/jaqmc",
        "07e01a7d17df7799827dc3482e69dda7394f93d8",
        workers=1,
        saved="Saving checkpoint",  # said before, so with the second one the first is complete
        restored="Restored checkpoint",
        lines=2,
        needs=(3, 12),
    ),
}


@pytest.fixture(scope="module")
def nodes() -> Iterator[RayNodes]:
    with ray_nodes(1, cpus=2) as running:
        yield running


@pytest.fixture
def here(nodes: RayNodes) -> Iterator[Site]:
    with nodes.site() as made:
        yield made
        made.assert_clean(5.0)


@pytest.mark.parametrize("name", PUBLIC)
def test_public_program_unchanged_killed_twice_compiles_nothing_in_its_second_restart(
    here: Site, name: str
) -> None:
    """The first start that restores asks for programs that no fresh start has asked for."""
    public, clone = PUBLIC[name], Path(PROGRAMS or "") / name
    if sys.version_info < public.needs:
        pytest.skip(f"{name} needs Python {public.needs}")
    unchanged(public, clone)
    environ = {"HOTSTART_PROGRAMS": str(PROGRAMS), "PWD": str(here.folder)} | public.prepare(here)
    here.write("job.yaml", counted_job(name))

    launched = here.start_launch("job.yaml", "--json", env=environ)
    kill_after_checkpoint(public, launched, attempt=1)
    kill_after_checkpoint(public, launched, attempt=2)
    finished = launched.wait(PATIENCE_S)

    assert finished.exit_code == 0, finished.shown
    attempts = finished.report["attempts"]
    assert [a["outcome"] for a in attempts] == ["failed", "failed", "done"], finished.shown
    [run] = here.run_names()
    assert all(public.restored in here.log(run, attempt, 0) for attempt in (2, 3))
    counts = read_counts(finished.stderr)[-public.workers :]
    print(name, "restarted twice:", [(len(c.requested), c.compiled) for c in counts])
    print(f"{name}: {finished.seconds:.0f} s,", [cost(a) for a in attempts])
    assert [c.compiled for c in counts] == [[]] * public.workers
    assert all(c.requested for c in counts)
    unchanged(public, clone)


def counted_job(name: str) -> str:
    """The example's job file, its program behind the counter of compilations."""
    job = yaml.safe_load((ROOT / "examples" / "programs" / f"{name}.yaml").read_text())
    program = job.pop("entrypoint", None) or job["script"]
    job["script"] = str(ROOT / "tests" / "support" / "counted_program.py")
    job["args"] = [program, *job["args"]]
    return yaml.safe_dump(job, sort_keys=False)


def unchanged(public: Public, clone: Path) -> None:
    """Raises unless the clone is at its commit with an empty diff; prints both."""
    how = f"git clone {public.url} {clone} && git -C {clone} checkout {public.commit}"
    assert clone.is_dir(), how
    commit, diff = (
        subprocess.run(
            ["git", "-C", str(clone), *command], capture_output=True, text=True, check=True
        ).stdout.strip()
        for command in (["rev-parse", "HEAD"], ["diff", "HEAD"])
    )
    print(f"{public.url} at {commit}, diff: {diff!r}")
    assert (commit, diff) == (public.commit, ""), how


def kill_after_checkpoint(public: Public, launched: Launched, attempt: int) -> None:
    """SIGKILL for this attempt's last worker once the attempt has written a checkpoint."""
    launched.wait_for(STARTED, PATIENCE_S, attempt * public.workers)
    pids = re.findall(STARTED, launched.output(), re.MULTILINE)[-public.workers :]
    so_far = len(re.findall(public.saved, launched.output()))
    launched.wait_for(public.saved, PATIENCE_S, so_far + public.lines)
    os.kill(int(dict(pids)[str(public.workers - 1)]), signal.SIGKILL)


def cost(attempt: Mapping[str, Any]) -> str:
    """An attempt in a few words: its seconds, and how much it compiled."""
    began, ended = (datetime.fromisoformat(attempt[at]) for at in ("started_at", "ended_at"))
    compiled = sum(w["cache"]["compiled"] for w in attempt["workers"])
    return f"{(ended - began).total_seconds():.0f} s, {compiled} compiled"
