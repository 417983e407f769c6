"""What a program compiles in processes that it spawns is cached as what it compiles itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.compile_counter import CompileCounter, read_counts
from tests.support.launch import Finished, RayNodes, Site, ray_nodes

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).resolve().parents[2]

PARENT = """
    import multiprocessing, os, subprocess, sys
    from child import compile_one

    if __name__ == "__main__":
        spawn = multiprocessing.get_context("spawn")
        player = spawn.Process(target=compile_one, args=("player",))
        player.start()
        player.join()
        subprocess.run([sys.executable, "child.py", "trial"], check=True)
        bare = {"PATH": os.environ["PATH"], "JAX_PLATFORMS": "cpu"}
        subprocess.run([sys.executable, "child.py", "bare"], check=True, env=bare)
        print("exit codes", player.exitcode)
"""
CHILD = """
    import os, sys
    sys.path.insert(0, {root!r})

    def compile_one(name):
        import jax
        import jax.numpy as jnp
        from tests.support import compile_counter

        counter = compile_counter.install()

        def program(x):
            return jnp.tanh(x) @ x + len(name)

        program.__name__ = name
        jax.jit(program)(jnp.ones((4, 4))).block_until_ready()
        counter.compiled[:] = [n for n in counter.compiled if n == "jit_" + name]
        counter.requested[:] = [n for n in counter.requested if n == "jit_" + name]
        print(counter.line(), flush=True)

    if __name__ == "__main__":
        compile_one(sys.argv[1])
"""
JOB = "script: train.py\nplatform: cpu\ncache: {location: cache}\nworkers: 1\n"


@pytest.fixture(scope="module")
def nodes() -> Iterator[RayNodes]:
    with ray_nodes(1, cpus=2) as running:
        yield running


@pytest.fixture
def here(nodes: RayNodes) -> Iterator[Site]:
    with nodes.site() as made:
        made.write("train.py", PARENT)
        made.write("child.py", CHILD.format(root=str(ROOT)))
        made.write("job.yaml", JOB)
        yield made
        made.assert_clean()


def counted(finished: Finished) -> list[CompileCounter]:
    """The counters of the children in order: spawned, a subprocess, one with a bare environment."""
    assert finished.exit_code == 0, finished.shown
    assert "[0] exit codes 0" in finished.stdout
    return read_counts(finished.stdout)


def test_spawned_processes_compile_once_and_hit_in_the_next_run(here: Site) -> None:
    cold, warm = counted(here.launch()), counted(here.launch())
    names = ["jit_player", "jit_trial", "jit_bare"]
    assert [c.requested for c in cold] == [c.requested for c in warm] == [[n] for n in names]
    assert [c.compiled for c in cold] == [[n] for n in names]
    # The last one was given an environment without the offer: nothing is forced on it.
    assert [c.compiled for c in warm] == [[], [], ["jit_bare"]]


def test_spawned_processes_stay_as_they_are_where_the_job_says_so(here: Site) -> None:
    option = "cache.children=false"
    counted(here.launch("job.yaml", option))
    warm = counted(here.launch("job.yaml", option))
    assert [c.compiled for c in warm] == [["jit_player"], ["jit_trial"], ["jit_bare"]]
