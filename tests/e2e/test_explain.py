"""`hotstart cache explain --run`: restarts and gangs whose keys differ, told from the record."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.launch import Finished, Site, site

pytestmark = pytest.mark.e2e

# What differs comes from the environment, by attempt or by process.
SCRIPT = """
    import os, sys
    import jax, jax.numpy as jnp
    import numpy as np
    from hotstart.launcher import context

    index, attempt = context.process_index(), context.attempt()
    plants = os.environ.get("PLANTS", "")
    if index == 1 and "flag" in plants:
        os.environ["XLA_FLAGS"] = "--xla_cpu_enable_fast_math=true"
    if index == 1 and "version" in plants:
        from jax._src import cache_key
        cache_key.jaxlib_version_str = "9.9.9"

    weights = jnp.asarray(np.ones((4, 4), np.float32))
    if attempt > 1:
        weights = jax.device_put(weights, jax.local_devices()[0])

    def advance(weights, batch):
        return jnp.tanh(batch @ weights).sum()

    print("loss", float(jax.jit(advance)(weights, np.ones((2, 4), np.float32))))
    context.step(1)
    if "fail" in plants and attempt == 1:
        sys.exit(3)
"""
# What attempt 1 has stored is deleted before it fails.
GONE = """
    import pathlib, sys
    import jax, jax.numpy as jnp
    import jax.experimental.multihost_utils
    import numpy as np
    from hotstart import cache
    from hotstart.launcher import context

    def advance(batch):
        return jnp.tanh(batch).sum()

    print("loss", float(jax.jit(advance)(np.ones((2, 4), np.float32))))
    context.step(1)
    if context.attempt() == 1:
        cache.flush(30)
        jax.experimental.multihost_utils.sync_global_devices("flushed")
        if context.process_index() == 0:
            for path in pathlib.Path("cache-gone/entries/v1").iterdir():
                path.unlink()
        jax.experimental.multihost_utils.sync_global_devices("deleted")
        sys.exit(3)
"""
# Goes on for ever unless it is told to be short; restores what it has saved.
LONG = """
    import pathlib, sys, time
    import jax, jax.numpy as jnp
    import numpy as np
    from hotstart.launcher import context

    kept = pathlib.Path(context.checkpoint_dir()) / f"state-{context.process_index()}.npy"
    restored = kept.exists()
    state = jnp.asarray(np.ones((4, 4), np.float32))
    if restored:
        state = jax.device_put(np.load(kept), jax.local_devices()[0])

    state = jax.jit(lambda state: jnp.tanh(state) + 1)(state)
    context.step(1)
    while "short" not in sys.argv:
        if context.preempted():
            kept.parent.mkdir(parents=True, exist_ok=True)
            np.save(kept, np.asarray(state))
            break
        time.sleep(0.05)
"""
JOB = """
    script: train.py
    workers: 2
    resources_per_worker: {CPU: 0.5}
    cache: {location: cache}
    restarts: {failures: 1, backoff_s: 0, standby: false}
"""


@pytest.fixture(scope="module")
def here() -> Iterator[Site]:
    with site() as made:
        made.write("train.py", SCRIPT)
        made.write("job.yaml", JOB)
        yield made


def launch(here: Site, plants: str, *more: str) -> Finished:
    finished = here.launch("job.yaml", f"env.PLANTS={plants}", "--json", *more)
    assert finished.exit_code == 0, finished.shown
    return finished


def explain(here: Site, *more: str) -> dict[str, Any]:
    finished = here.run("cache", "explain", "--run", "latest", "--json", *more)
    assert finished.exit_code == 0, finished.shown
    return finished.report


def advanced(explained: dict[str, Any]) -> dict[str, Any]:
    [program] = [p for p in explained["programs"] if p["module"] == "jit_advance"]
    return program


def kinds(found: dict[str, Any]) -> list[str]:
    return [cause["kind"] for cause in found["causes"]]


def test_explain_run_names_restored_arguments_of_a_second_attempt(here: Site) -> None:
    launch(here, "fail")
    first = advanced(explain(here, "--attempt", "1"))
    assert (first["status"], first["causes"]) == ("first", [])
    second = explain(here)
    assert (second["attempt"], second["disagreements"]) == (2, [])
    program = advanced(second)
    assert (program["status"], kinds(program)) == ("changed", ["committed"])
    assert "argument 0 (weights) is committed" in program["summary"]
    assert program["nearest"]["key"] == first["key"]


def test_explain_run_that_found_everything_says_that_nothing_was_compiled(here: Site) -> None:
    launch(here, "none")
    explained = explain(here)
    assert (explained["programs"], explained["disagreements"]) == ([], [])
    shown = here.run("cache", "explain", "--run", "latest")
    assert "nothing was compiled: every program was found in the cache" in shown.stdout


@pytest.mark.parametrize(
    ("plant", "kind", "says"),
    [
        (
            "flag",
            "flag",
            "--xla_cpu_enable_fast_math is true for process 1 and not set for process 0",
        ),
        ("version", "version", "jaxlib is 9.9.9 for process 1"),
    ],
)
def test_explain_run_names_the_process_that_disagrees(
    here: Site, plant: str, kind: str, says: str
) -> None:
    launch(here, plant, f"cache.location=cache-{plant}")
    explained = explain(here)
    [found] = [d for d in explained["disagreements"] if d["module"] == "jit_advance"]
    assert (found["processes"], found["against_processes"]) == ([[1, 1]], [[0, 0]])
    assert kinds(found) == [kind]
    assert found["summary"].startswith("process 1 asks for another jit_advance than process 0: ")
    assert says in found["summary"]


def test_explain_run_whose_entries_were_deleted_says_that_nothing_changed(here: Site) -> None:
    options = ("cache.location=cache-gone", "script=gone.py")
    here.write("gone.py", GONE)
    launch(here, "none", *options)
    explained = explain(here)
    program = advanced(explained)
    assert (program["status"], program["causes"]) == ("same", [])
    assert program["summary"].startswith("nothing has changed since attempt 1: ")
    # One compiled it and the other hit that: the record does not tell that it was stored.
    assert program["reason"] == (
        "attempt 1 compiled it, and its entry was not there: it had not reached the cache by that "
        "attempt's end, or was evicted, expired or deleted since"
    )
    shown = " ".join(here.run("report", "latest").stdout.split())  # it is wrapped
    assert "): nothing has changed since attempt 1: attempt 1 compiled it" in shown


def test_require_warm_ends_a_cold_start_with_4_and_says_why_and_lets_a_warm_one_run(
    here: Site,
) -> None:
    options = ("cache.location=cache-warm", "env.PLANTS=none", "require_warm=true", "--json")
    cold = here.launch("job.yaml", *options)
    assert cold.exit_code == 4, cold.shown
    [attempt] = cold.report["attempts"]
    assert attempt["outcome"] == "cache-required"
    assert attempt["reason"].startswith("require_warm: process ")
    assert sum(w["cache"]["compiled"] for w in attempt["workers"]) == 0
    assert {miss["status"] for miss in attempt["misses"]} == {"first"}
    launch(here, "none", "cache.location=cache-warm")
    warm = here.launch("job.yaml", *options)
    assert warm.exit_code == 0, warm.shown
    assert warm.report["attempts"][0]["misses"] == []


def test_cache_warm_stores_a_fresh_and_a_restored_start_and_ends_with_0(here: Site) -> None:
    here.write("long.py", LONG)
    options = ("script=long.py", "cache.location=cache-filled")
    filled = here.run(
        "cache", "warm", "job.yaml", "--address", here.address, *options, "--json", timeout_s=180
    )
    assert filled.exit_code == 0, filled.shown
    assert [a["outcome"] for a in filled.report["attempts"]] == ["done", "done"], filled.shown
    assert "warm for a fresh start and for one that restores a checkpoint" in filled.stderr
    ended = here.launch("job.yaml", *options, "require_warm=true", "args=[short]", "--json")
    assert ended.exit_code == 0, ended.shown


def test_cache_warm_of_a_cache_that_is_not_written_is_bad_usage(here: Site) -> None:
    finished = here.run("cache", "warm", "job.yaml", "cache.mode=read-only")
    assert finished.exit_code == 2
    assert finished.stderr == (
        "hotstart: cache.mode is read-only, so nothing would be stored; warm the cache with "
        "cache.mode=read-write\n"
    )
