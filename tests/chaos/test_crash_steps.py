"""kill -9 of a real process at every step of the cache's protocol and of the durable run.

`tests/support/crash_site` lists the steps. A gang of two hosts of one worker each, and so with a
coordinator, compiles, trains and keeps checkpoints; at one step one process dies, once. After each:

- the entries that are in the bucket verify, at once and in the end, and none of them is lost;
- where a worker or an agent died, the next attempt starts within `AGAIN_S`; where the driver died,
  all of it goes within `GONE_S`, and `hotstart restart` completes the run;
- the run's last loss is that of an undisturbed one, to the bit;
- the next launch on the same location, on hosts that know nothing, compiles only what is never
  stored;
- no process and no file is left.
"""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

from hotstart.cache.store import open_store
from hotstart.cache.verify import verify
from hotstart.launcher.cli import main
from tests.support.compile_counter import read_counts
from tests.support.crash_site.sitecustomize import STEPS
from tests.support.gcs_emulator import create_bucket
from tests.support.gcs_proxy import GcsProxy
from tests.support.hosts import Hosts, hosts, write_programs
from tests.support.launch import Finished, Launched, Site, await_true, is_running, site
from tests.support.ray_at import RayAt, ray_at
from tests.support.ray_process import all_processes

pytestmark = pytest.mark.chaos

LONG = pytest.mark.skipif(os.environ.get("HOTSTART_LONG") != "1", reason="each takes 10 s")
# The worst moment of each role; the others take HOTSTART_LONG=1.
ALWAYS = (
    "worker: before publish",
    "agent: upload half done",
    "coordinator: after a claim",
    "driver: between attempt start and gang start",
    "driver: before the run's end",
)
# The process that comes there has nothing left to do in the first attempt before its last step.
UNHELD = ("worker: before the last flush", *(s for s in STEPS if s.startswith("driver: ")))
HELD = ("driver: before a beat", "driver: beat, the old one there")
NOT_YET_A_RUN = ("driver: before the run is made", "driver: run half made")
REACHED_S = 60.0
AGAIN_S = 20.0
GONE_S = 8.0
HEAD_S = 60.0

SITE = Path(__file__).parents[1] / "support" / "crash_site"
LOSSES = """
    import json, os, pathlib, sys, time
    sys.path.insert(0, {root!r})
    from tests.support import compile_counter
    compile_counter.install(print_at_exit=True)
    import jax, jax.numpy as jnp, numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
    from hotstart.launcher import context

    index, attempt = context.process_index(), context.attempt()
    messages = pathlib.Path(os.environ["HOTSTART_TEST_CRASH"])
    kept = context.checkpoint_dir()
    kept.mkdir(parents=True, exist_ok=True)
    mesh = Mesh(np.array(jax.devices()), ("x",))

    def spread(values, how):
        where = NamedSharding(mesh, how)
        return jax.make_array_from_callback(values.shape, where, lambda part: values[part])

    def begin(x):
        return jnp.sum(jnp.sin(x))

    def local(x):
        return jnp.sum(jnp.cos(x))

    def unkept(x):
        return jnp.sum(jnp.tan(x))

    def train(weights, x):
        def loss_of(weights):
            return jnp.mean((jnp.tanh(x * weights) - x) ** 2)

        loss, slope = jax.value_and_grad(loss_of)(weights)
        return loss, weights - slope

    def late(x):
        return jnp.sum(jnp.exp(x))

    x = spread(np.linspace(-1, 1.5, 16, dtype=np.float32).reshape(2, 8), P("x"))
    jax.jit(begin)(x).block_until_ready()
    jax.jit(local)(np.ones(8, np.float32)).block_until_ready()
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 3600.0)
    jax.jit(unkept)(np.ones(8, np.float32)).block_until_ready()
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

    def checkpoint(number, who):
        return kept / f"{{number}}-{{who}}.npy"

    done, state = 0, np.linspace(0.1, 0.9, 9, dtype=np.float32)
    for number in range(1, 5):
        if all(checkpoint(number, who).exists() for who in range(2)):
            done, state = number, np.load(checkpoint(number, index))
    print("resumed at", done)
    train = jax.jit(train, out_shardings=NamedSharding(mesh, P()))
    for number in range(done + 1, 5):
        loss, weights = train(spread(state[1:], P()), x)
        state = np.concatenate([[loss.addressable_data(0)], weights.addressable_data(0)])
        np.save(kept / f"new-{{index}}.npy", state)
        (kept / f"new-{{index}}.npy").replace(checkpoint(number, index))
        context.step(number)
        print("step", number)
        until = time.monotonic() + 60
        while number == 2 and attempt == 1 and (messages / "hold").exists():
            struck = (messages / "struck").exists() and not (messages / "stay").exists()
            if struck or time.monotonic() > until:
                break
            time.sleep(0.02)
    jax.jit(late)(x).block_until_ready()
    print("final loss", state[0].tobytes().hex())
"""
PROGRAMS = {"begin", "local", "train", "late"}
JOB = """
    script: train.py
    workers: 2
    workers_per_host: 1
    resources_per_worker: {CPU: 1}
    restarts: {failures: 1, backoff_s: 0, standby: false}
"""


class Crash:
    """Where the test and its processes leave messages for each other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def arm(self, step: str, *, hold: bool, stay: bool = False, victim: int | None = None) -> None:
        """From now on the first process that comes to the step dies there, or `victim` does.

        With `hold` the first attempt waits at its second step until that has happened, and with
        `stay` for as long as it may.
        """
        self.disarm()
        for name, wanted in (("hold", hold), ("stay", stay)):
            if wanted:
                (self.folder / name).touch()
        lines = [step] if victim is None else [step, str(victim)]
        new = self.folder / "new"
        new.write_text("\n".join(lines))
        new.replace(self.folder / "armed")

    def disarm(self) -> None:
        """Nobody dies any more."""
        for name in ("armed", "hold", "stay", "struck"):
            (self.folder / name).unlink(missing_ok=True)

    def struck(self) -> tuple[int, float] | None:
        """Who died at the step, and when on the monotonic clock; None if nobody has yet."""
        path = self.folder / "struck"
        words = path.read_text().split() if path.exists() else []
        return (int(words[0]), float(words[1])) if len(words) == 2 else None

    def wait(self, launched: Launched) -> tuple[int, float]:
        """Block until a process has died at the step."""

        def over() -> bool:
            return self.struck() is not None or launched.popen.poll() is not None

        await_true(over, REACHED_S, launched.output)
        found = self.struck()
        assert found is not None, f"the step was not reached\n{launched.output()}"
        await_true(lambda: not is_running(found[0]), 5.0)
        return found


@dataclass(frozen=True)
class Calm:
    """An undisturbed run: what it printed last, and the location that it has warmed."""

    loss: str
    location: str


@pytest.fixture(scope="module")
def crash(tmp_path_factory: pytest.TempPathFactory) -> Crash:
    return Crash(tmp_path_factory.mktemp("crash"))


@pytest.fixture(scope="module")
def gang(crash: Crash, _session_proxy: GcsProxy) -> Iterator[Hosts]:
    """Two hosts whose processes can be made to die at a step."""
    environ = {
        "STORAGE_EMULATOR_HOST": _session_proxy.url,
        "PYTHONPATH": str(SITE),
        "HOTSTART_TEST_CRASH": str(crash.folder),
    }
    with hosts(2, environ) as running:
        yield running


@pytest.fixture(scope="module")
def calm(gang: Hosts, _session_proxy: GcsProxy) -> Calm:
    name = f"calm-{uuid.uuid4().hex[:12]}"
    create_bucket(_session_proxy.url, name)
    with gang.site(LOSSES) as here:
        here.write("job.yaml", JOB)
        location = f"gs://{name}/cache"
        finished = launch(here, gang, location)
        assert finished.exit_code == 0, finished.shown
        first, second = losses(finished)
        assert first == second
        assert compiled(finished) == {*PROGRAMS, "unkept"}
    return Calm(first, location)


@pytest.fixture
def here(gang: Hosts, crash: Crash) -> Iterator[Site]:
    gang.empty()
    for left in gang.temp.glob("hotstart-*"):  # by a test that has failed, killed in its middle
        shutil.rmtree(left)
    with gang.site(LOSSES) as made:
        made.write("job.yaml", JOB)
        yield made
        crash.disarm()


def launch(here: Site, gang: Hosts, location: str) -> Finished:
    return here.launch("job.yaml", f"cache.location={location}", env=gang.environ)


def losses(finished: Finished) -> list[str]:
    """What each worker of the last attempt printed last."""
    return re.findall(r"^\[\d\] final loss (\w+)$", finished.stdout, re.MULTILINE)


def compiled(finished: Finished) -> set[str]:
    """Which of the known programs were compiled by processes that came to their end."""
    output = finished.stdout + finished.stderr
    names = [n.removeprefix("jit_") for c in read_counts(output) for n in c.compiled]
    return {*names} & {*PROGRAMS, "unkept"}


def sound_entries(location: str) -> set[str]:
    """The entries that are in the bucket now, all of which verify."""
    found = list(verify(open_store(location)))
    assert [looked for looked in found if looked.problem] == []
    return {looked.name for looked in found}


def assert_verifies(location: str) -> None:
    """What `hotstart cache verify` says; in this process, as its start takes a second."""
    said = CliRunner().invoke(main, ["cache", "verify", location])
    assert said.exit_code == 0, said.output


@dataclass(frozen=True)
class Scene:
    """The gang's hosts, a site for its runs, and an empty location."""

    here: Site
    gang: Hosts
    crash: Crash
    calm: Calm
    location: str

    def start(self, step: str, location: str, *, hold: bool) -> Launched:
        """Launch the job; a process of it dies at the step."""
        self.crash.arm(step, hold=hold)
        return self.here.start_launch(
            "job.yaml", f"cache.location={location}", env=self.gang.environ
        )

    def assert_nothing_lost(self, location: str, there: set[str]) -> None:
        """What was in the bucket still is, is sound, and is all that a new launch needs."""
        assert_verifies(location)
        assert there <= sound_entries(location)
        self.gang.empty()
        again = launch(self.here, self.gang, location)
        assert again.exit_code == 0, again.shown
        assert losses(again) == [self.calm.loss] * 2, again.shown
        assert compiled(again) == {"unkept"}, again.shown
        self.here.assert_clean(5.0)


@pytest.fixture
def scene(here: Site, gang: Hosts, crash: Crash, calm: Calm, proxy: GcsProxy, bucket: str) -> Scene:
    return Scene(here, gang, crash, calm, f"{bucket}/cache")


def params(steps: list[str]) -> list[object]:
    return [pytest.param(step, marks=() if step in ALWAYS else LONG) for step in steps]


DRIVER = [step for step in STEPS if step.startswith("driver: ")]


@pytest.mark.parametrize("step", params([step for step in STEPS if step not in DRIVER]))
def test_crash_in_the_gang_the_next_attempt_ends_right_and_nothing_stored_is_lost(
    scene: Scene, step: str
) -> None:
    here, calm = scene.here, scene.calm
    location = calm.location if step.startswith("reading ") else scene.location
    launched = scene.start(step, location, hold=step not in UNHELD)
    _, died_at = scene.crash.wait(launched)
    there = sound_entries(location)
    launched.wait_for("attempt 2 started", AGAIN_S)
    assert launched.at_s("attempt 2 started") - died_at < AGAIN_S
    finished = launched.wait()
    here.assert_clean(5.0)
    assert finished.exit_code == 0, finished.shown
    assert losses(finished)[-2:] == [calm.loss] * 2, finished.shown
    assert "not all that was compiled" not in finished.stderr, finished.shown
    scene.assert_nothing_lost(location, there)


@pytest.mark.parametrize("step", params(DRIVER))
def test_crash_of_the_driver_leaves_nothing_and_restart_completes_the_run(
    scene: Scene, step: str
) -> None:
    here, calm, location = scene.here, scene.calm, scene.location
    launched = scene.start(step, location, hold=step in HELD)
    scene.crash.wait(launched)
    launched.popen.wait()
    here.assert_clean(GONE_S)
    there = sound_entries(location)
    if step in NOT_YET_A_RUN:
        assert here.run_names() == []
        location = calm.location  # as nothing was compiled
    else:
        [run] = here.run_names()
        finished = here.run("restart", run, "--address", here.address, env=scene.gang.environ)
        if step == "driver: run ended":
            assert finished.exit_code == 2, finished.shown
            assert f"run {run} is done; launch the job anew instead" in finished.stderr
        else:
            assert finished.exit_code == 0, finished.shown
            assert losses(finished) == [calm.loss] * 2, finished.shown
            here.assert_clean(5.0)
        assert here.report(run)["state"] == "done"
    scene.assert_nothing_lost(location, there)


def head_of(cluster: RayAt) -> int:
    """The process that a cluster can't do without."""
    [found] = [
        pid
        for pid, environ, command in all_processes()
        if f"TMPDIR={cluster.temp}" in environ and "/gcs_server " in f"{command} "
    ]
    return found


@LONG
@pytest.mark.parametrize(
    "step", ["driver: between attempt start and gang start", "driver: gang started"]
)
def test_crash_of_rays_head_restart_on_another_cluster_completes_the_run(
    gang: Hosts, crash: Crash, calm: Calm, proxy: GcsProxy, bucket: str, tmp_path: Path, step: str
) -> None:
    location = f"{bucket}/cache"
    environ = {**gang.environ, "RAY_gcs_rpc_server_reconnect_timeout_s": "5"}
    with ray_at() as cluster, site() as here:
        write_programs(here, LOSSES)
        here.write("job.yaml", JOB.replace("workers_per_host: 1", "workers_per_host: 2"))
        cluster.start(environ={**environ, "HOTSTART_HOME": str(tmp_path / "host")})
        crash.arm(step, hold=True, stay=True, victim=head_of(cluster))
        launched = here.start(
            "launch",
            "job.yaml",
            "--address",
            cluster.address,
            f"cache.location={location}",
            env=environ,
        )
        crash.wait(launched)
        lost = launched.wait(HEAD_S)
        assert lost.exit_code != 0, lost.shown
        cluster.kill()
        here.assert_clean(GONE_S)
        there = sound_entries(location)
        crash.disarm()
        cluster.start(environ={**environ, "HOTSTART_HOME": str(tmp_path / "host")})
        [run] = here.run_names()
        finished = here.run("restart", run, "--address", cluster.address, env=environ)
        assert finished.exit_code == 0, finished.shown
        assert losses(finished) == [calm.loss] * 2, finished.shown
        assert there <= sound_entries(location)
        assert_verifies(location)
        here.assert_clean(5.0)
