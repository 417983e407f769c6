"""Notices and lost nodes on real clusters: the gang leaves together and goes on elsewhere."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.launch import Finished, Launched, Site, await_true, is_running, pids_in
from tests.support.leaving import SAY_NODE, LeavingCluster, leaving_cluster
from tests.support.metadata_server import metadata_server

pytestmark = pytest.mark.e2e

# What most of these show is shown without Ray, too, in tests/unit/test_worker_notice.py.
long = pytest.mark.skipif(os.environ.get("HOTSTART_LONG") != "1", reason="takes a while")
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "bytelm"

# In the first attempt it goes on until it is told; the next one does three steps and is done.
TRAIN = f"""
    import os, signal, sys, time
    import jax
    from jax.experimental import multihost_utils
    from hotstart.launcher import context

    index, attempt, mode = context.process_index(), context.attempt(), sys.argv[1]
    print("pids", os.getpid(), os.getppid(), 0, flush=True)
    exec({SAY_NODE!r})
    folder = context.checkpoint_dir()
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / f"step-{{index}}"
    done = int(kept.read_text()) if kept.exists() else 0
    print("resumed at", done, flush=True)

    def together(place):
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(place)

    def save(number):
        kept.write_text(str(number))
        print("saved", number, flush=True)

    if mode == "handler":
        signal.signal(signal.SIGTERM, lambda *_: (save(number), sys.exit(0)))
    if mode == "callback":
        context.on_preemption(lambda: print("called back", flush=True))
    last = 2000 if attempt == 1 else done + 3
    for number in range(done + 1, last + 1):
        together(f"step {{number}}")
        context.step(number)
        print("step", number, flush=True)
        if mode == "deaf" and jax.process_count() > 1:
            if multihost_utils.reached_preemption_sync_point(number):
                print("jax says so at", number, flush=True)
        if mode in ("asks", "returns", "callback") and context.preempted():
            together("save")
            save(number)
            if mode == "returns":
                break
            context.leave()
        if mode == "finishes" and (context.checkpoint_dir() / "go").exists():
            break
        time.sleep(0.05)
    print("finished", flush=True)
"""
JOB = """
    script: train.py
    args: [asks]
    workers: 2
    workers_per_host: 1
    resources_per_worker: {CPU: 1}
    restarts: {failures: 0, backoff_s: 0}
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[LeavingCluster]:
    with leaving_cluster() as running:
        yield running


@pytest.fixture
def here(cluster: LeavingCluster) -> Iterator[Site]:
    with cluster.site() as made:
        made.write("train.py", TRAIN)
        made.write("job.yaml", JOB)
        yield made
        made.assert_clean(10.0)


def run_to_step(here: Site, *options: str, workers: int = 2) -> Launched:
    launched = here.start_launch("job.yaml", "--json", *options)
    launched.wait_for(r"^\[\d\] step 3\b", count=workers, timeout_s=120)
    return launched


def numbers(output: str, words: str) -> dict[int, list[int]]:
    """What each process has printed behind these words, by process index."""
    found: dict[int, list[int]] = {}
    for index, number in re.findall(rf"^\[(\d)\] {words} (\d+)$", output, re.MULTILINE):
        found.setdefault(int(index), []).append(int(number))
    return found


def outcomes(finished: Finished) -> list[str]:
    return [attempt["outcome"] for attempt in finished.report["attempts"]]


def assert_left_together(finished: Finished) -> int:
    """Both workers saved at one step and the next attempt went on from there; the step."""
    assert finished.exit_code == 0, finished.shown
    saved = numbers(finished.stderr, "saved")
    [step] = saved[0]
    assert saved == {0: [step], 1: [step]}, finished.shown
    assert numbers(finished.stderr, "resumed at") == {i: [0, step] for i in (0, 1)}
    steps = numbers(finished.stderr, "step")
    assert steps == {i: list(range(1, step + 4)) for i in (0, 1)}
    assert outcomes(finished) == ["preempted", "done"]
    return step


LOSS = re.compile(r"^\[0\] (step \d+ loss \S+)$", re.MULTILINE)


def first_notice(finished: Finished) -> dict[str, Any]:
    return finished.report["attempts"][0]["preemption"][0]


@long
def test_drained_node_workers_leave_at_one_step_and_go_on_elsewhere(
    cluster: LeavingCluster, here: Site
) -> None:
    cluster.have(3)
    launched = run_to_step(here)
    [first] = cluster.nodes_of(launched.output())
    agents = [pids.agent for pids in pids_in(launched.output()).values()]
    cluster.drain(first[1], left_s=60)
    launched.wait_for("attempt 2 started", timeout_s=60)
    await_true(lambda: not any(map(is_running, agents)), 10)  # given up, standbys and all
    finished = launched.wait()
    step = assert_left_together(finished)
    _, second = cluster.nodes_of(launched.output())
    assert len(set(first.values())) == len(set(second.values()) - {first[1]}) == 2
    [notice] = finished.report["attempts"][0]["preemption"]
    assert (notice["source"], notice["process_index"]) == ("drain", None)
    assert 0 < notice["left_s"] <= 60
    assert [left["last_step"] for left in notice["left"]] == [step, step]
    assert all(notice["seen_at_s"] < left["at_s"] < notice["seen_at_s"] + 30
               for left in notice["left"])  # fmt: skip
    assert not notice["ended_by_launcher"]
    reason = finished.report["attempts"][0]["reason"]
    assert re.fullmatch(
        rf"preemption notice for {notice['host']}: Ray drains its node, \d+ s left; "
        "all 2 workers left",
        reason,
    )


PACED = f"""
    import os, runpy, sys, time
    from hotstart.launcher import context

    exec({SAY_NODE!r})
    stock = context.step

    def paced(number):
        stock(number)
        while number == 20 and context.attempt() == 1 and not os.path.exists("go"):
            time.sleep(0.02)

    context.step = paced
    sys.path.insert(0, {str(EXAMPLE)!r})
    runpy.run_path({str(EXAMPLE / "train.py")!r}, run_name="__main__")
"""
SMALL = ["--layers", "1", "--width", "16", "--steps", "40", "--checkpoint-every", "1000"]


def test_drained_node_example_loses_no_step_and_prints_the_same_losses(
    cluster: LeavingCluster, here: Site
) -> None:
    cluster.have(3)
    here.write("paced.py", PACED)
    job = ("script=paced.py", f"args={json.dumps([*SMALL, '--loss-digits', '9'])}")
    launched = here.start_launch("job.yaml", "--json", *job)
    launched.wait_for(r"^\[0\] step 19 loss", timeout_s=180)
    [nodes] = cluster.nodes_of(launched.output())
    cluster.drain(nodes[0], left_s=90)
    launched.wait_for("preemption notice for ", timeout_s=30)
    (here.folder / "go").touch()
    finished = launched.wait(180)
    assert finished.exit_code == 0, finished.shown
    assert outcomes(finished) == ["preempted", "done"]
    # Which step that is depends on when the notice reaches the last of them.
    first_left, second_left = (left["last_step"] for left in first_notice(finished)["left"])
    assert (first_left, 20 <= first_left < 40) == (second_left, True), finished.shown
    seen = LOSS.findall(finished.stderr)
    assert [line.split()[1] for line in seen] == [str(n) for n in range(1, 41)], finished.shown
    calm = here.launch("job.yaml", *job, timeout_s=180)
    assert LOSS.findall(calm.stdout) == seen, calm.shown


def test_killed_node_is_a_preemption_though_a_survivors_error_came_first(
    cluster: LeavingCluster, here: Site
) -> None:
    cluster.have(3)
    launched = run_to_step(here)
    [first] = cluster.nodes_of(launched.output())
    worker = pids_in(launched.output())[1].worker
    os.kill(worker, signal.SIGKILL)  # the gang's error is out before anybody misses the node
    cluster.kill(first[1])
    finished = launched.wait()
    assert finished.exit_code == 0, finished.shown
    assert outcomes(finished) == ["preempted", "done"]
    [attempt, _] = finished.report["attempts"]
    assert re.fullmatch(r"the node of \S+ \(process 1\) went away", attempt["reason"])
    assert (attempt["first_worker"], attempt["preemption"]) == (1, [])


@long
def test_drained_node_script_that_ignores_it_is_ended_in_time_and_goes_on_elsewhere(
    cluster: LeavingCluster, here: Site
) -> None:
    cluster.have(3)
    launched = run_to_step(here, "args=[deaf]")
    [first] = cluster.nodes_of(launched.output())
    pids = [pids.worker for pids in pids_in(launched.output()).values()]
    started = time.monotonic()
    cluster.drain(first[0], left_s=14)
    await_true(lambda: not any(map(is_running, pids)), 20)
    assert time.monotonic() - started > 3
    finished = launched.wait()
    assert finished.exit_code == 0, finished.shown
    assert outcomes(finished) == ["preempted", "done"]
    notice = first_notice(finished)
    assert (notice["left"], notice["ended_by_launcher"]) == ([], True)
    assert finished.report["attempts"][0]["reason"].endswith(
        "; its workers had not left in time and were ended"
    )
    # JAX was told too, so what saves at its sync point, as Orbax does, has saved.
    told = numbers(finished.stderr, "jax says so at")
    assert len(told[0]) == 1 and told == {0: told[0], 1: told[0]}, finished.shown


@long
def test_drained_node_script_that_finishes_in_time_is_done(
    cluster: LeavingCluster, here: Site
) -> None:
    cluster.have(1)
    launched = run_to_step(here, "args=[finishes]", "workers=1", workers=1)
    [first] = cluster.nodes_of(launched.output())
    cluster.drain(first[0], left_s=60)
    launched.wait_for("preemption notice for ", timeout_s=20)
    [run] = here.run_names()
    (here.runs / run / "checkpoints" / "go").touch()
    finished = launched.wait()
    assert finished.exit_code == 0, finished.shown
    assert outcomes(finished) == ["done"]
    assert first_notice(finished)["source"] == "drain"


@long
@pytest.mark.parametrize("mode", ["asks", "returns", "callback"])
def test_sigterm_to_one_worker_all_leave_at_one_step_and_start_where_they_were(
    cluster: LeavingCluster, here: Site, mode: str
) -> None:
    cluster.have(2)
    launched = run_to_step(here, f"args=[{mode}]")
    os.kill(pids_in(launched.output())[1].worker, signal.SIGTERM)
    finished = launched.wait()
    assert_left_together(finished)
    first, second = cluster.nodes_of(launched.output())
    assert first == second
    notice = first_notice(finished)
    assert (notice["source"], notice["process_index"]) == ("sigterm", 1)
    called = re.findall(r"^\[(\d)\] called back$", finished.stderr, re.MULTILINE)
    assert sorted(called) == (["0", "1"] if mode == "callback" else [])


@long
def test_sigterm_to_a_worker_alone_that_listens_to_nothing_ends_it_and_is_a_preemption(
    cluster: LeavingCluster, here: Site
) -> None:
    cluster.have(1)
    launched = run_to_step(here, "args=[deaf]", "workers=1", workers=1)
    os.kill(pids_in(launched.output())[0].worker, signal.SIGTERM)
    finished = launched.wait()
    assert finished.exit_code == 0, finished.shown
    assert outcomes(finished) == ["preempted", "done"]
    host = first_notice(finished)["host"] if finished.report["attempts"][0]["preemption"] else ""
    reason = finished.report["attempts"][0]["reason"]
    assert reason.endswith("was killed by SIGTERM"), (host, reason)


def test_sigterm_to_an_agent_alone_all_leave_and_the_gang_is_placed_anew(
    cluster: LeavingCluster, here: Site
) -> None:
    cluster.have(1)
    launched = run_to_step(here, "workers=1", workers=1)
    agent = pids_in(launched.output())[0].agent
    os.kill(agent, signal.SIGTERM)
    finished = launched.wait()
    assert finished.exit_code == 0, finished.shown
    assert outcomes(finished) == ["preempted", "done"]
    notice = first_notice(finished)
    assert (notice["source"], notice["process_index"]) == ("sigterm", None)
    reason = finished.report["attempts"][0]["reason"]
    assert reason == (
        f"preemption notice for {notice['host']}: SIGTERM to its agent; its worker left"
    )
    [saved] = numbers(finished.stderr, "saved")[0]
    assert numbers(finished.stderr, "resumed at") == {0: [0, saved]}
    assert not is_running(agent)


def test_metadata_server_says_preempted_and_a_handler_of_sigterm_saves(
    cluster: LeavingCluster, here: Site
) -> None:
    with metadata_server() as server:
        going = cluster.add({"GCE_METADATA_HOST": server.address})
        for node_id in cluster.unused() - {going}:
            cluster.end(node_id)
        launched = run_to_step(here, "args=[handler]", "workers=1", workers=1)
        [first] = cluster.nodes_of(launched.output())
        assert first == {0: going}
        server.set("instance/preempted", "TRUE")
        launched.wait_for(r"^\[0\] saved \d+$", timeout_s=20)
        cluster.have(2)  # the other is still `going`, which Ray must not use
        finished = launched.wait(120)
        assert finished.exit_code == 0, finished.shown
        assert outcomes(finished) == ["preempted", "done"]
        _, second = cluster.nodes_of(launched.output())
        assert second != first
        [saved] = numbers(finished.stderr, "saved")[0]
        assert numbers(finished.stderr, "resumed at") == {0: [0, saved]}
        notice = first_notice(finished)
        assert (notice["source"], notice["detail"]) == ("metadata", "preempted")
        assert notice["left_s"] == 30.0
        cluster.end(going)


def test_exit_code_that_asks_for_a_restart_spends_no_failure(
    cluster: LeavingCluster, here: Site
) -> None:
    cluster.have(1)
    here.write(
        "train.py",
        """
        import sys
        from hotstart.launcher import context

        sys.exit(75 if context.attempt() < 3 else 0)
        """,
    )
    here.write(
        "job.yaml",
        """
        script: train.py
        jax_distributed: script
        cache: {mode: 'off'}
        restarts: {failures: 0, preemptions: 2, backoff_s: 0, exit_codes: [3, 75]}
        """,
    )
    finished = here.launch("job.yaml", "--json")
    assert finished.exit_code == 0, finished.shown
    assert outcomes(finished) == ["restart-asked", "restart-asked", "done"]
    reason = finished.report["attempts"][0]["reason"]
    assert reason.endswith("exited with code 75, which asks for a restart (restarts.exit_codes)")
    spent = here.launch("job.yaml", "--json", "restarts.preemptions=1")
    assert spent.exit_code == 3, spent.shown
    assert spent.report["reason"].endswith("; restarts.preemptions=1 is spent")
