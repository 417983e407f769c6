"""A worker or an agent that is killed with -9: the run goes on, warm, from its checkpoint."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from tests.support.launch import (
    STEPS,
    RayNodes,
    Site,
    await_true,
    is_running,
    pids_in,
    wait_for_step,
)
from tests.support.standbys import idle_standbys

pytestmark = pytest.mark.chaos

JOB = """
    script: train.py
    workers: 2
    resources_per_worker: {CPU: 1}
    restarts: {failures: 1, backoff_s: 0}
"""
LOSSES = """
    import os, time
    import jax, jax.numpy as jnp, numpy as np
    from jax.experimental import multihost_utils
    from hotstart.launcher import context

    index, attempt = context.process_index(), context.attempt()
    print("pids", os.getpid(), os.getppid(), 0)
    folder = context.checkpoint_dir()
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / f"weights-{index}.npy"
    done, weights = 0, np.linspace(-1.0, 1.0, 64, dtype=np.float32).reshape(8, 8)
    if kept.exists():
        done, weights = np.load(kept, allow_pickle=True)
    loss_of = jax.jit(jax.value_and_grad(lambda w, x: jnp.mean((jnp.tanh(x @ w) - x) ** 2)))
    for number in range(done + 1, 7):
        batch = np.random.default_rng(number).normal(size=(8, 8)).astype(np.float32)
        loss, slope = loss_of(weights, batch)
        weights = np.asarray(weights - slope)
        multihost_utils.sync_global_devices(f"step {number}")
        held = np.empty(2, dtype=object)
        held[:] = [number, weights]
        np.save(kept, held)
        context.step(number)
        print("loss of step", number, "loss", float(loss))
        print("step", number)
        while number == 3 and attempt == 1 and "CALM" not in os.environ:
            time.sleep(0.05)
"""


@pytest.fixture
def here(nodes: RayNodes) -> Iterator[Site]:
    with nodes.site() as made:
        made.write("train.py", STEPS)
        made.write("job.yaml", JOB)
        yield made


def said(log: str) -> list[str]:
    """A worker's lines, without those of Gloo and of the processes' ids."""
    return [line for line in log.splitlines() if not line.startswith(("[Gloo]", "pids "))]


def test_kill_worker_next_attempt_resumes_and_compiles_nothing(here: Site) -> None:
    launched = here.start_launch("job.yaml", "--json")
    pids = wait_for_step(launched, 2, workers=2)
    os.kill(pids[1].worker, signal.SIGKILL)
    launched.wait_for("attempt 2 started")
    old = [pid for p in pids.values() for pid in (p.worker, p.child)]
    assert [pid for pid in old if is_running(pid)] == []
    finished = launched.wait()
    here.assert_clean()
    assert finished.exit_code == 0, finished.shown
    first, second = finished.report["attempts"]
    host = second["workers"][0]["host"]
    assert (first["outcome"], first["first_worker"]) == ("failed", 1)
    assert first["reason"] == f"process 1 on {host} was killed by SIGKILL"
    assert (second["outcome"], second["first_worker"]) == ("done", None)
    assert [w["last_step"] for w in second["workers"]] == [4, 4]
    assert sum(w["cache"]["compiled"] for w in first["workers"]) > 0
    assert [w["cache"]["compiled"] for w in second["workers"]] == [0, 0]
    assert all(w["cache"]["hits"] == w["cache"]["requests"] > 0 for w in second["workers"])
    [run] = here.run_names()
    for index in (0, 1):
        assert said(here.log(run, 1, index)) == ["resumed at 0", "step 1", "step 2"]
        assert said(here.log(run, 2, index)) == ["resumed at 2", "step 3", "step 4", "finished"]


def test_kill_worker_its_standbys_go_on_with_the_same_losses(here: Site) -> None:
    here.write("train.py", LOSSES)
    calm = here.launch("job.yaml", "env={CALM: '1'}")
    calm_runs = here.run_names()
    losses = [line for line in calm.stdout.splitlines() if " loss " in line]
    assert len(losses) == 12, calm.shown
    launched = here.start_launch("job.yaml", "--json")
    pids = wait_for_step(launched, 3, workers=2)
    [run] = set(here.run_names()) - set(calm_runs)
    kept = idle_standbys(run, 2)
    os.kill(pids[1].worker, signal.SIGKILL)
    finished = launched.wait()
    here.assert_clean()
    assert finished.exit_code == 0, finished.shown
    assert {pids_in(launched.output())[index].worker for index in (0, 1)} == kept
    first, second = finished.report["attempts"]
    assert [w["standby"] for w in first["workers"] + second["workers"]] == [False] * 2 + [True] * 2
    assert [w["cache"]["compiled"] for w in second["workers"]] == [0, 0]
    seen = [line for line in launched.output().splitlines() if " loss " in line]
    assert sorted(seen) == sorted(losses)


def test_kill_standby_a_fresh_worker_starts_in_its_place(here: Site) -> None:
    launched = here.start_launch("job.yaml", "--json")
    pids = wait_for_step(launched, 2, workers=2)
    [run] = here.run_names()
    kept = idle_standbys(run, 2)
    killed = min(kept)
    os.kill(killed, signal.SIGKILL)
    await_true(lambda: not is_running(killed), 2.0)
    os.kill(pids[1].worker, signal.SIGKILL)
    finished = launched.wait()
    here.assert_clean()
    assert finished.exit_code == 0, finished.shown
    first, second = finished.report["attempts"]
    assert first["reason"] == f"process 1 on {first['workers'][0]['host']} was killed by SIGKILL"
    assert second["outcome"] == "done"
    assert sorted(w["standby"] for w in second["workers"]) == [False, True]


def test_kill_agent_takes_its_standbys_along(here: Site) -> None:
    launched = here.start_launch("job.yaml", "--json")
    pids = wait_for_step(launched, 2, workers=2)
    [run] = here.run_names()
    kept = idle_standbys(run, 2)
    os.kill(pids[0].agent, signal.SIGKILL)
    await_true(lambda: not any(map(is_running, kept)), 2.0)
    finished = launched.wait()
    here.assert_clean()
    assert [attempt["outcome"] for attempt in finished.report["attempts"]] == ["failed", "done"]


def test_kill_agent_takes_its_workers_along_and_the_run_goes_on(here: Site) -> None:
    launched = here.start_launch("job.yaml", "--json")
    pids = wait_for_step(launched, 2, workers=2)
    agent = pids[0].agent
    assert agent == pids[1].agent
    os.kill(agent, signal.SIGKILL)
    old = [pid for p in pids.values() for pid in (p.worker, p.child)]
    await_true(lambda: not any(map(is_running, old)), 2.0)
    finished = launched.wait()
    here.assert_clean()
    assert finished.exit_code == 0, finished.shown
    first, second = finished.report["attempts"]
    host = second["workers"][0]["host"]
    assert (first["outcome"], first["first_worker"]) == ("failed", 0)
    assert first["reason"] == f"the agent of {host} (processes 0, 1) died; its node is alive"
    assert second["outcome"] == "done"
    assert [w["last_step"] for w in second["workers"]] == [4, 4]
    assert [w["cache"]["compiled"] for w in second["workers"]] == [0, 0]


def test_kill_agent_between_attempts_places_another_and_the_run_goes_on(here: Site) -> None:
    here.write(
        "train.py",
        """
        import os, sys
        from hotstart.launcher import context

        print("pids", os.getpid(), os.getppid(), 0, flush=True)
        sys.exit(1 if context.attempt() == 1 else 0)
        """,
    )
    launched = here.start_launch(
        "job.yaml", "workers=1", "jax_distributed=script", "restarts.backoff_s=6", "--json"
    )
    launched.wait_for("attempt 1 failed")
    os.kill(pids_in(launched.output())[0].agent, signal.SIGKILL)
    finished = launched.wait()
    here.assert_clean()
    assert finished.exit_code == 0, finished.shown
    assert "Traceback" not in finished.stderr
    assert [a["outcome"] for a in finished.report["attempts"]] == ["failed", "done"]


def test_start_that_the_host_refuses_is_one_line(here: Site) -> None:
    here.write("long.yaml", JOB + f"    env: {{LONG: {'x' * 200_000}}}\n")
    finished = here.launch("long.yaml")
    here.assert_clean()
    assert finished.exit_code == 1, finished.stderr[-2000:]
    assert "Traceback" not in finished.stderr
    last = finished.stderr.splitlines()[-1]
    assert last.startswith("hotstart: ")
    assert "can't start its workers: OSError: [Errno 7] Argument list too long" in last
