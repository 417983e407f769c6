"""Ray Train's JaxTrainer with hotstart's JaxConfig: real controller, real workers, a real kill."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hotstart.cache.config import CacheConfig
from hotstart.cache.errors import InvalidLocation
from hotstart.launcher.train_report import TrainReport, WorkerReport, read_report
from tests.support.compile_counter import CompileCounter, read_counts
from tests.support.launch import RayNodes, Site, await_true, ray_nodes

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "tests" / "support" / "counted_ray_train.py"
PROGRAMS = {"jit_init", "jit_advance"}


@pytest.fixture(scope="module")
def nodes() -> Iterator[RayNodes]:
    with ray_nodes(1, cpus=2) as running:
        yield running


@pytest.fixture
def here(nodes: RayNodes) -> Iterator[Site]:
    with nodes.site() as made:
        yield made


class Fit:
    """One `fit()` in a driver process of its own."""

    def __init__(self, here: Site, nodes: RayNodes, name: str, *more: str) -> None:
        self.folder = here.root / name
        self.folder.mkdir()
        self.storage = here.root / "storage"
        arguments = [nodes.address, name, self.storage, here.root / "cache", self.folder, *more]
        self.run = self.storage / name
        self.output = here.root / f"{name}.log"
        self._process = subprocess.Popen(
            [sys.executable, str(SCRIPT), *map(str, arguments)],
            env=here.environment({"PYTHONPATH": str(ROOT)}),
            stdout=self.output.open("w"),
            stderr=subprocess.STDOUT,
        )

    def report(self) -> TrainReport:
        return read_report(self.run)

    def held(self) -> list[int]:
        """The workers, once they wait after a checkpoint that the controller knows of."""
        taken = self.run / "checkpoint_manager_snapshot.json"
        await_true(lambda: len(list(self.folder.glob("holding-*"))) == 2, 200, self._shown)
        await_true(taken.exists, 60, self._shown)

        def is_told() -> bool:
            return [w.stats.requests for w in self.report().workers] == [len(PROGRAMS)] * 2

        await_true(is_told, 30, lambda: str(self.report()))
        return sorted(int(p.name.partition("-")[2]) for p in self.folder.glob("holding-*"))

    def loss(self) -> str:
        """Wait for the end; the final loss, to the last digit."""
        assert self._process.wait(180) == 0, self._shown()
        match = re.search(r"^final loss (\S+) step 20$", self.output.read_text(), re.MULTILINE)
        assert match is not None, self._shown()
        return match[1]

    def counted(self) -> list[CompileCounter]:
        """What the workers that came to their end have counted."""
        return [read_counts(p.read_text())[0] for p in sorted(self.folder.glob("counted-*"))]

    def end(self) -> None:
        self._process.kill()
        self._process.wait()

    def _shown(self) -> str:
        return self.output.read_text()


def test_killed_worker_has_ray_train_restart_without_a_compilation_to_the_same_loss(
    here: Site, nodes: RayNodes
) -> None:
    fits = []
    try:
        fits.append(killed := Fit(here, nodes, "killed", "hold"))
        pids = killed.held()
        first = killed.report().of_attempt(1)
        assert sorted(w.pid for w in first) == pids
        os.kill(first[1].pid, signal.SIGKILL)
        loss = killed.loss()

        # Each program was compiled once for the gang, whoever did it.
        assert [w.place.process_count for w in first] == [2, 2]
        assert sum(w.stats.compiled for w in first) == len(PROGRAMS)
        assert {w.stats.requests for w in first} == {len(PROGRAMS)}
        # The second attempt asks for one program, since it restores, and compiles none.
        assert [(set(c.requested), c.compiled) for c in killed.counted()] == [
            ({"jit_advance"}, [])
        ] * 2
        report = killed.report()
        assert report.attempts == 2
        assert [told(w) for w in report.of_attempt(2)] == [("done", 1, 1, 0), ("done", 1, 1, 0)]
        # Who was killed left its last account, and who was ended with it said so.
        assert [w.state for w in report.of_attempt(1)] == ["failed", "running"]
        assert all(
            list(w.phases) == ["cache_enabled", "distributed", "user_code"] for w in report.workers
        )

        fits.append(undisturbed := Fit(here, nodes, "undisturbed"))
        assert undisturbed.loss() == loss
        assert [c.compiled for c in undisturbed.counted()] == [[], []]
        assert [told(w) for w in undisturbed.report().workers] == [("done", 2, 2, 0)] * 2
        assert re.search(r"^ +1 +0 +done +2 +2 +0 +0 ", undisturbed.output.read_text(), re.M)
    finally:
        for fit in fits:
            fit.end()


def told(worker: WorkerReport) -> tuple[str, int, int, int]:
    """State, requests, hits and compilations of a worker."""
    return worker.state, worker.stats.requests, worker.stats.hits, worker.stats.compiled


def test_config_takes_a_location_from_here_and_refuses_what_can_be_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("HOTSTART_HOME", "/a/home")
    from hotstart.launcher.ray_train import JaxConfig

    def location(cache: CacheConfig | str | None = None) -> str:
        settled = JaxConfig(cache=cache).cache
        assert isinstance(settled, CacheConfig)
        return settled.location

    assert location("here") == str(tmp_path / "here")
    assert location(CacheConfig("gs://b/c/")) == "gs://b/c"
    assert location() == "/a/home/cache"
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "there")
    assert location() == str(tmp_path / "there")
    with pytest.raises(InvalidLocation):
        JaxConfig(cache="s3://b/c")
    monkeypatch.setenv("RAY_TRAIN_V2_ENABLED", "0")
    with pytest.raises(ValueError, match="^RAY_TRAIN_V2_ENABLED is off"):
        JaxConfig()


@pytest.mark.parametrize(
    ("resources", "use_gpu", "use_tpu"),
    [({"CPU": 1}, False, False), ({"CPU": 1, "GPU": 2}, True, False), ({"TPU": 4}, False, True)],
)
def test_config_takes_the_platform_from_a_workers_resources(
    resources: dict[str, float], use_gpu: bool, use_tpu: bool
) -> None:
    from hotstart.launcher.ray_train import JaxConfig, _for_resources

    settled = _for_resources(JaxConfig(cache="/c"), resources)
    assert (settled.use_gpu, settled.use_tpu) == (use_gpu, use_tpu)
    asked = _for_resources(JaxConfig(cache="/c", use_gpu=True), {"CPU": 1})
    assert (asked.use_gpu, asked.use_tpu) == (True, False)


@pytest.mark.skipif(os.environ.get("HOTSTART_LONG") != "1", reason="takes half a minute")
def test_example_runs_as_the_docs_say(here: Site, nodes: RayNodes) -> None:
    page = (ROOT / "docs" / "ray-train.md").read_text()
    [command] = re.findall(r"^python (examples/ray_train/.*)$", page, re.MULTILINE)
    finished = subprocess.run(
        [sys.executable, *command.split(), "--address", nodes.address],
        cwd=ROOT,
        env=here.environment(),
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert re.search(r"^final loss \d\.\d+ after step 40$", finished.stdout, re.MULTILINE)
    assert re.search(r"^ +1 +1 +done +2 ", finished.stdout, re.MULTILINE)
