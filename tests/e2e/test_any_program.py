"""Public programs, unchanged, at named commits: launched, killed after a checkpoint, restarted.

They are not in this repository and no test fetches them. HOTSTART_PROGRAMS names a folder with
their clones; docs/programs.md has the commands. Each takes minutes.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.support.compile_counter import read_counts
from tests.support.launch import RayNodes, Site, await_true, is_running, ray_nodes

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = os.environ.get("HOTSTART_PROGRAMS")
PATIENCE_S = 1200.0

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(3 * PATIENCE_S),
    pytest.mark.skipif(
        PROGRAMS is None, reason="set HOTSTART_PROGRAMS to a folder of clones: docs/programs.md"
    ),
]


@dataclass(frozen=True)
class Public:
    """A public program: `checkpoint` is there, in the job's folder, once it has written one."""

    url: str
    commit: str
    workers: int
    checkpoint: str
    prepare: Callable[[Site], dict[str, str]] = lambda here: {}


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
        checkpoint="gooomoku.pkl",
    ),
    "simply": Public(
        "https://github.com/google-deepmind/simply",
        "e14c06121fd9c5967051f0956fb4a84ad84a551c",
        workers=2,
        checkpoint="simply-run/checkpoints/10",
        prepare=_questions,
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


RESTORES_OTHERWISE = pytest.mark.xfail(
    reason="its first start that restores asks for programs that a fresh one does not ask for"
)


@pytest.mark.parametrize("name", ["gooomoku", pytest.param("simply", marks=RESTORES_OTHERWISE)])
def test_public_program_unchanged_restarts_without_a_compilation(here: Site, name: str) -> None:
    public, clone = PUBLIC[name], Path(PROGRAMS or "") / name
    unchanged(public, clone)
    environ = {"HOTSTART_PROGRAMS": str(PROGRAMS), "PWD": str(here.folder)} | public.prepare(here)
    job = yaml.safe_load((ROOT / "examples" / "programs" / f"{name}.yaml").read_text())
    counted = str(ROOT / "tests" / "support" / "counted_program.py")
    job |= {"args": [job["script"], *job["args"]], "script": counted}
    here.write("job.yaml", yaml.safe_dump(job, sort_keys=False))

    launched = here.start_launch("job.yaml", "--json", env=environ)
    checkpoint = here.folder / public.checkpoint
    await_true(
        lambda: checkpoint.exists() or not is_running(launched.pid), PATIENCE_S, launched.output
    )
    assert checkpoint.exists(), launched.output()
    kill_worker(here, public.workers - 1)
    finished = launched.wait(PATIENCE_S)

    assert finished.exit_code == 0, finished.shown
    outcomes = [a["outcome"] for a in finished.report["attempts"]]
    assert outcomes == ["failed", "done"], finished.shown
    counts = read_counts(finished.stderr)[-public.workers :]
    print(name, "restarted:", [(len(c.requested), c.compiled) for c in counts])
    assert [c.compiled for c in counts] == [[]] * public.workers
    assert all(c.requested for c in counts)
    unchanged(public, clone)


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


def kill_worker(here: Site, process_index: int) -> None:
    """SIGKILL for one worker of the site's only run."""
    marks = {f"HOTSTART_PROCESS_INDEX={process_index}", f"HOTSTART_RUN={here.run_names()[0]}"}
    found = []
    for folder in Path("/proc").iterdir():
        try:
            environ = (folder / "environ").read_bytes().decode(errors="replace").split("\0")
            leads = folder.name.isdigit() and os.getpgid(int(folder.name)) == int(folder.name)
        except OSError:
            continue
        if leads and marks <= set(environ) and "HOTSTART_ATTEMPT=1" in environ:
            found.append(int(folder.name))
    [pid] = found
    os.kill(pid, signal.SIGKILL)
