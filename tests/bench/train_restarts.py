"""A worker killed by SIGKILL: Ray Train's JaxTrainer with hotstart's JaxConfig against `hotstart
launch`, for the same program, cluster, cache and checkpoints.

    python -m tests.bench.train_restarts [ROUNDS]

The sides take turns. Both run examples/bytelm on two workers; a round is the time from the signal
to the first step of the next attempt. It runs alone on a machine or its numbers are worth nothing.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.support.launch import RayNodes, await_true, is_running, ray_nodes

ROOT = Path(__file__).resolve().parents[2]
_STEPPED = str(Path(__file__).with_name("stepped.py"))
_STEPS_BEFORE = 7
_PATIENCE_S = 400.0
_STANDBY_S = 10.0

_TRAINER = """
import sys
import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.jax import JaxTrainer
from hotstart.launcher.ray_train import JaxConfig

address, root, notes, storage, cache, *arguments = sys.argv[1:]

def loop():
    sys.path.insert(0, root)
    from tests.bench import stepped
    stepped.run(notes, arguments)

ray.init(address, log_to_driver=False)
JaxTrainer(
    loop,
    jax_config=JaxConfig(cache=cache),
    scaling_config=ScalingConfig(num_workers=2),
    run_config=RunConfig(
        name="bench", storage_path=storage, failure_config=FailureConfig(max_failures=1)
    ),
).fit()
"""


class Round:
    """One program's notes: who its workers are, and when they stepped."""

    def __init__(self, folder: Path) -> None:
        self.notes = folder
        folder.mkdir()

    def steps(self) -> dict[int, list[float]]:
        """The times of steps by process."""
        return {
            int(path.name.partition("-")[2]): [float(line) for line in path.read_text().split()]
            for path in self.notes.glob("step-*")
        }

    def alive(self) -> bool:
        """Whether a worker still runs."""
        return any(is_running(int(p.name.split("-")[2])) for p in self.notes.glob("worker-*"))

    def restart_s(self, shown: Callable[[], str], standby_s: float) -> float:
        """Kill worker 1 some steps after the first; seconds until another process steps."""
        await_true(
            lambda: any(len(times) >= _STEPS_BEFORE for times in self.steps().values()),
            _PATIENCE_S,
            shown,
        )
        time.sleep(standby_s)
        before = set(self.steps())
        [victim] = [int(p.name.split("-")[2]) for p in self.notes.glob("worker-1-*")]
        killed_at = time.monotonic()
        os.kill(victim, signal.SIGKILL)
        await_true(lambda: bool(set(self.steps()) - before), _PATIENCE_S, shown)
        [after] = set(self.steps()) - before
        return self.steps()[after][0] - killed_at


def launched(nodes: RayNodes, cache: Path, standby: bool) -> float:
    """A round of `hotstart launch`."""
    with nodes.site() as site:
        taken = Round(site.root / "notes")
        options = f"restarts: {{failures: 1, backoff_s: 0, standby: {str(standby).lower()}}}\n"
        arguments = [str(taken.notes), *_arguments(site.root)]
        site.write(
            "job.yaml",
            f"script: {_STEPPED}\nargs: {arguments}\nworkers: 2\nplatform: cpu\n{options}"
            f"cache: {{location: {cache}}}\nworking_dir: {ROOT}\n",
        )
        running = site.start_launch()
        return taken.restart_s(running.output, _STANDBY_S)


def trained(nodes: RayNodes, cache: Path) -> float:
    """A round of `JaxTrainer`."""
    with nodes.site() as site:
        taken = Round(site.root / "notes")
        log = site.root / "log"
        facts = [nodes.address, ROOT, taken.notes, site.root / "storage", cache]
        driver = subprocess.Popen(
            [sys.executable, "-c", _TRAINER, *map(str, facts), *_arguments(site.root)],
            env=site.environment(),
            stdout=log.open("w"),
            stderr=subprocess.STDOUT,
        )
        try:
            return taken.restart_s(log.read_text, _STANDBY_S)
        finally:
            driver.kill()
            driver.wait()
            await_true(lambda: not taken.alive(), 60)


def _arguments(root: Path) -> list[str]:
    return [
        *("--steps", "100000", "--layers", "4", "--checkpoint-every", "5"),
        *("--checkpoint-dir", str(root / "checkpoints")),
    ]


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    with ray_nodes(1, cpus=2) as nodes:
        cache = nodes.temp / "bench-cache"
        cache.mkdir()
        sides: dict[str, Callable[[], float]] = {
            "JaxTrainer with hotstart's JaxConfig": lambda: trained(nodes, cache),
            "hotstart launch, standby: false": lambda: launched(nodes, cache, False),
            "hotstart launch": lambda: launched(nodes, cache, True),
        }
        taken: dict[str, list[float]] = {name: [] for name in sides}
        for number in range(rounds + 1):  # the first fills the cache and is left out
            for name, measure in sides.items():
                seconds = measure()
                print(f"round {number}: {name}: {seconds:.2f} s", flush=True)
                if number:
                    taken[name].append(seconds)
    print("| restarted by | median | from | to | rounds |\n|---|---|---|---|---|")
    for name, seconds_of in taken.items():
        median, low, high = statistics.median(seconds_of), min(seconds_of), max(seconds_of)
        print(f"| {name} | {median:.1f} s | {low:.1f} | {high:.1f} | {len(seconds_of)} |")


if __name__ == "__main__":
    main()
