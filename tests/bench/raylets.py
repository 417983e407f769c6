"""A Ray cluster of several raylets on this machine, each with a home of its own.

So each has a node directory of its own too, as hosts have.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

_MARKER = "HOTSTART_BENCH_RAYLETS"
_SCRIPT = """
import json, sys
from ray.cluster_utils import Cluster
options = json.loads(sys.argv[1])
cluster = Cluster()
for home in options["homes"]:
    cluster.add_node(
        num_cpus=options["cpus"], include_dashboard=False, env_vars={"HOTSTART_HOME": home}
    )
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@dataclass(frozen=True)
class Raylets:
    """A running cluster; `environ` is what a client needs, `homes` are the raylets' own."""

    address: str
    environ: Mapping[str, str]
    homes: tuple[Path, ...]


@contextlib.contextmanager
def raylets(count: int, cpus: int, environ: Mapping[str, str], folder: Path) -> Iterator[Raylets]:
    """Run `count` raylets with `cpus` CPUs each; their workers inherit `environ`. Blocks."""
    homes = tuple(folder / f"host-{index}" for index in range(count))
    temp = folder / "r"
    (temp / "ray").mkdir(parents=True)
    marker = secrets.token_hex(8)
    client = {"RAY_AUTH_MODE": "disabled"}
    options = {"homes": [str(home) for home in homes], "cpus": cpus}
    process = subprocess.Popen(
        [sys.executable, "-c", _SCRIPT, json.dumps(options)],
        env={**environ, **client, "TMPDIR": str(temp), _MARKER: marker},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        if not address:
            raise RuntimeError(f"Ray did not start; see {temp}/ray")
        yield Raylets(address, client, homes)
    finally:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=15)
        process.kill()
        process.wait()
        _kill_marked(marker)


def _kill_marked(marker: str) -> None:
    """Kill what has inherited the marker, until none is left."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        marked = list(_marked(marker))
        if not marked:
            return
        for process in marked:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        time.sleep(0.05)


def _marked(marker: str) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            alive = process.status() != psutil.STATUS_ZOMBIE
            if alive and process.environ().get(_MARKER) == marker:
                yield process
