"""A cache looked after while a job runs, and carried to another place where it starts warm."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.launch import RayNodes, Site

pytestmark = [pytest.mark.e2e, pytest.mark.internals]

SCRIPT = """
import pathlib, time
import jax, jax.numpy as jnp
from hotstart.launcher import context

print("value", float(jax.jit(lambda x: jnp.sin(x) * 0 + 4)(1.0)), flush=True)
context.step(1)
while not pathlib.Path("go").exists():
    time.sleep(0.02)
"""
JOB = """
    script: train.py
    workers: 2
    restarts: {standby: false}
"""


@pytest.fixture
def here(nodes: RayNodes) -> Iterator[Site]:
    with nodes.site() as made:
        yield made


def cache(site: Site, *arguments: str) -> dict[str, Any]:
    done = site.run("cache", *arguments, "--json")
    assert done.exit_code == 0, done.shown
    return done.report


def entries(location: Path) -> list[str]:
    return sorted(path.name for path in (location / "entries" / "v1").iterdir())


def test_cache_of_a_live_run_is_kept_and_its_bundle_starts_another_place_warm(here: Site) -> None:
    here.write("train.py", SCRIPT)
    here.write("job.yaml", JOB)
    ours, theirs = here.root / "cache", here.root / "theirs"
    running = here.start_launch("job.yaml", f"cache.location={ours}")
    running.wait_for(r"^\[[01]\] value 4\.0", count=2)
    running.wait_for(r"first step after")
    stored = entries(ours)
    collected = cache(here, "gc", str(ours), "--max-size", "1")
    [run] = here.run_names()
    assert (collected["live_runs"], collected["deleted"]) == ([run], 0)
    assert len(collected["kept"]) == collected["entries"] > 0
    assert entries(ours)[: len(stored)] == stored
    (here.folder / "go").touch()
    done = running.wait()
    assert done.exit_code == 0, done.shown

    bundle = here.root / "bundle.tar"
    exported = cache(here, "export", run, str(bundle))
    assert exported["entries"] == len(entries(ours))
    collected = cache(here, "gc", str(ours), "--max-size", "1")
    assert (collected["deleted"], collected["live_runs"]) == (exported["entries"], [])
    imported = cache(here, "import", str(bundle), str(theirs))
    assert (imported["new"], imported["manifests"]["new"]) == (exported["entries"], 1)

    again = here.launch("job.yaml", f"cache.location={theirs}", "--json")
    assert again.exit_code == 0, again.shown
    counted = [worker["cache"] for worker in again.report["attempts"][-1]["workers"]]
    assert [one["compiled"] for one in counted] == [0, 0]
    # The launch found the bundle's manifest: else it had left one of its own beside it.
    assert len(list((theirs / "manifests" / "v1").iterdir())) == 1
    shown = cache(here, "show", "jit_", "--location", str(theirs))
    assert sorted(one["run"] for one in shown["asked_for_by"]) == sorted(here.run_names())
