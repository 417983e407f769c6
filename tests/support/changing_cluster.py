"""A Ray cluster on this machine whose raylets come and go as a test says."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support.launch import RayNodes, _all_processes

_CLEARED = ("HOTSTART_", "JAX_", "RAY_", "XLA_", "GCSFS_", "STORAGE_EMULATOR_HOST")
_SERVER = """
import json, sys
from ray.cluster_utils import Cluster
cluster, nodes = Cluster(), {}
for line in sys.stdin:
    command = json.loads(line)
    if command["do"] == "add":
        spec = command["node"]
        nodes[command["name"]] = cluster.add_node(include_dashboard=False, **spec)
    else:
        cluster.remove_node(nodes.pop(command["name"]), allow_graceful=False)
    print(json.dumps({"address": cluster.address}), flush=True)
cluster.shutdown()
"""


class ChangingCluster:
    """`add` and `lose` block until Ray has it so; the first that is added is the head."""

    def __init__(self, root: Path, process: subprocess.Popen[str]) -> None:
        self.temp = root / "t"
        self.address = ""
        self._root = root
        self._process = process

    def add(self, name: str, **node: Any) -> None:
        """Start a raylet; its arguments are those of `Cluster.add_node`.

        It has a `HOTSTART_HOME` of its own.
        """
        env = {"HOTSTART_HOME": str(self._root / f"home-{name}")}
        self._do({"do": "add", "name": name, "node": {"num_cpus": 1, "env_vars": env, **node}})

    def lose(self, name: str) -> None:
        """Kill a raylet, as if its host had gone."""
        self._do({"do": "lose", "name": name})

    @property
    def nodes(self) -> RayNodes:
        """As other tests take a cluster."""
        return RayNodes(self.address, self.temp)

    def _do(self, command: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, f"Ray did not do {command}; see {self.temp}/ray"
        self.address = json.loads(answer)["address"]


@contextlib.contextmanager
def changing_cluster(**nodes: dict[str, Any]) -> Iterator[ChangingCluster]:
    """A cluster with these raylets to begin with, by name. Blocks for seconds."""
    root = Path(tempfile.mkdtemp(prefix="hs-", dir="/tmp"))
    temp = root / "t"
    (temp / "ray").mkdir(parents=True)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(_CLEARED)}
    own = {"HOME": str(root), "TMPDIR": str(temp), "RAY_AUTH_MODE": "disabled"}
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVER],
        env={**kept, **own, "RAY_USAGE_STATS_ENABLED": "0"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        cluster = ChangingCluster(root, process)
        for name, node in nodes.items():
            cluster.add(name, **node)
        yield cluster
    finally:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=15)
        process.kill()
        process.wait()
        for pid, environ, _ in _all_processes():
            if f"TMPDIR={temp}" in environ:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        shutil.rmtree(root, ignore_errors=True)


COUNTED = """
    import os, pathlib, socket, sys, time
    from jax._src import compiler
    from hotstart.launcher import context

    attempt, index = context.attempt(), context.process_index()
    compile_program = compiler.backend_compile_and_load

    def counted(backend, program, *args, **kwargs):
        print("compiling in attempt", attempt, program.operation.attributes["sym_name"].value)
        return compile_program(backend, program, *args, **kwargs)

    compiler.backend_compile_and_load = counted
    import jax, jax.numpy as jnp, numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

    print("pids", os.getpid(), os.getppid(), 0)
    print("attempt", attempt, "on", socket.gethostname())
    mesh = Mesh(np.array(jax.devices()), ("x",))
    where = NamedSharding(mesh, P("x"))
    x = jax.make_array_from_callback(
        (jax.device_count(),), where, lambda part: np.ones(jax.device_count(), np.float32)[part]
    )

    @jax.jit
    def total(x):
        return jnp.sum(x)

    folder, number = pathlib.Path(__file__).parent, 0
    while not (folder / f"go-{attempt}").exists():
        number += 1
        got = int(total(x).addressable_data(0))
        context.step(number)
        if number in (1, 20):
            print("step", number, "attempt", attempt, "of", jax.process_count(), "total", got)
        time.sleep(0.05)
    print("finished", context.process_count())
"""
