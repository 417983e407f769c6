"""What a row works on: a folder, a bucket over a wide-area network, a Ray cluster, two rivals.

Each row has a stage of its own; what is on it is made when first asked for and gone afterwards.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tests.bench.timed import TimedCommand
from tests.support.gcs_emulator import gcs_emulator
from tests.support.gcs_proxy import GcsProxy, gcs_proxy
from tests.support.plain_gang import PlainGang
from tests.support.ray_head import RayHead, ray_head
from tests.support.ray_process import cleared_environ

ROOT = Path(__file__).resolve().parents[2]
BYTELM = ROOT / "examples" / "bytelm" / "train.py"
PROBED = ROOT / "tests" / "bench" / "probed.py"
HOTSTART = Path(sys.executable).with_name("hotstart")
RTT_MS = 30.0
MEGABYTES_PER_S = 200.0
STEP = r"^\[\d+\] step \d+"


@dataclass(frozen=True)
class Options:
    """How much is measured; smaller ones are for trying a row out."""

    rounds: int = 5
    layers: int = 12
    programs: int = 64
    large_megabytes: int = 100
    put_megabytes: int = 200

    def bytelm(self, steps: int = 1, checkpoint_every: int = 1000) -> list[str]:
        """The arguments of a run of the example."""
        return [
            *("--steps", str(steps), "--layers", str(self.layers)),
            *("--checkpoint-every", str(checkpoint_every)),
        ]


class Stage:
    """Made by `open_stage`. The round trip and the bandwidth are the bucket's, `cpus` are Ray's."""

    def __init__(
        self,
        stack: contextlib.ExitStack,
        options: Options,
        tell: Callable[[str], None],
        rtt_ms: float,
        megabytes_per_s: float,
        cpus: int,
    ) -> None:
        self._stack = stack
        self.options = options
        self.tell = tell
        self._rtt_ms = rtt_ms
        self._megabytes_per_s = megabytes_per_s
        self._cpus = cpus
        # Unix sockets have short paths only.
        self.folder = Path(tempfile.mkdtemp(prefix="hb-", dir="/tmp"))
        stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
        for name in ("home", "t"):
            (self.folder / name).mkdir()

    @cached_property
    def proxy(self) -> GcsProxy:
        """The network in front of an emulator with the buckets `ours` and `stock`."""
        emulator = self._stack.enter_context(gcs_emulator())
        for bucket in ("ours", "stock"):
            emulator.create_bucket(bucket)
        return self._stack.enter_context(
            gcs_proxy(emulator.url, rtt_ms=self._rtt_ms, bandwidth_mb_s=self._megabytes_per_s)
        )

    @cached_property
    def ray(self) -> RayHead:
        """A Ray cluster of one host, running."""
        return self._stack.enter_context(ray_head(self._bucket_environ(), num_cpus=self._cpus))

    def enter(self, context: contextlib.AbstractContextManager[Any]) -> Any:
        """Keep a context open until the row is over."""
        return self._stack.enter_context(context)

    def environment(self) -> dict[str, str]:
        """What the commands of both sides get: nothing of this process's own settings."""
        kept = cleared_environ()
        return {**kept, "TMPDIR": str(self.folder / "t"), **self._bucket_environ()}

    def job(self, name: str, keys: Mapping[str, Any]) -> Path:
        """A job file; JSON is YAML."""
        path = self.folder / f"{name}.yaml"
        path.write_text(json.dumps({"name": name, **keys}, indent=1))
        return path

    def launch(
        self,
        job: Path,
        home: Path,
        *,
        address: str | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> TimedCommand:
        """`hotstart launch` on the stage's Ray, or the one at `address`, as a user starts it."""
        own = {"HOTSTART_HOME": str(home), **(environ or self.ray.environ)}
        return TimedCommand(
            [str(HOTSTART), "launch", str(job), "--address", address or self.ray.address],
            {**self.environment(), **own},
            self.folder,
        )

    def first_step_s(self, job: Path, home: Path) -> float:
        """Launch a job to its end: seconds from the command to its first `step` line."""
        with self.launch(job, home) as launched:
            at, _ = launched.wait_for(STEP)
            launched.finish()
        return at - launched.started_at

    def plain(
        self,
        script: Path,
        arguments: Sequence[str],
        cache: str | Callable[[int], str] | None,
        *,
        count: int,
        environ: Mapping[str, str | None] | None = None,
    ) -> PlainGang:
        """Plain processes with JAX's own cache, which may store everything.

        `cache` is the cache's directory, or each process's own by its index.
        """
        merged: dict[str, str | None] = {name: None for name in os.environ}
        merged |= self.environment()
        merged |= {
            "JAX_PLATFORMS": "cpu",
            "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        }
        merged |= environ or {}

        def own(index: int) -> dict[str, str]:
            folder = cache(index) if callable(cache) else cache
            return {} if folder is None else {"JAX_COMPILATION_CACHE_DIR": folder}

        return PlainGang(
            script,
            arguments,
            count=count,
            environment=merged,
            environment_of=own,
            folder=self.folder,
        )

    def plain_first_step_s(
        self,
        script: Path,
        arguments: Sequence[str],
        cache: str | Callable[[int], str] | None,
        *,
        count: int,
        environ: Mapping[str, str | None] | None = None,
    ) -> float:
        """Run plain processes to their end: seconds from the spawn to the slowest first step.

        Only process 0 prints its steps; a step is a collective, so it is the gang's.
        """
        with self.plain(script, arguments, cache, count=count, environ=environ) as gang:
            ended = gang.wait()
        if any(process.exit_code for process in ended):
            raise RuntimeError("\n".join(process.output[-4000:] for process in ended))
        return max(process.first_step_s or 0.0 for process in ended)

    @contextlib.contextmanager
    def fresh_folder(self) -> Iterator[Path]:
        """An empty folder that is gone after the block."""
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _bucket_environ(self) -> dict[str, str]:
        return {
            "HOME": str(self.folder / "home"),
            "STORAGE_EMULATOR_HOST": self.proxy.url,
            "RAY_USAGE_STATS_ENABLED": "0",
        }


@contextlib.contextmanager
def open_stage(
    options: Options,
    tell: Callable[[str], None] = lambda text: None,
    *,
    rtt_ms: float = RTT_MS,
    megabytes_per_s: float = MEGABYTES_PER_S,
    cpus: int = 4,
) -> Iterator[Stage]:
    """A stage for the length of the block."""
    with contextlib.ExitStack() as stack:
        yield Stage(stack, options, tell, rtt_ms, megabytes_per_s, cpus)


def probed(
    script: Path,
    arguments: Sequence[str],
    output: Path,
    probes: Sequence[str],
    *switches: str,
) -> list[str]:
    """Arguments of `probed.py`: the same script, with its JAX watched from outside."""
    output.mkdir(parents=True, exist_ok=True)
    return [
        *("--output", str(output), "--probes", ",".join(probes), *switches),
        *("--", str(script), *arguments),
    ]


def read_probes(output: Path, count: int | None = None) -> list[dict[str, Any]]:
    """What the watched processes have left, in order of process index; `count` of them."""
    found = [json.loads(path.read_text()) for path in output.glob("*.json")]
    if count not in (None, len(found)):
        raise RuntimeError(f"{len(found)} of {count} watched processes left their numbers")
    return sorted(found, key=lambda probe: probe["process_index"])
