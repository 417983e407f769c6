"""A Ray cluster on this machine whose raylets come and go as a test says."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

from tests.support.launch import RayNodes
from tests.support.ray_process import RayProcess, ray_process

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

    def __init__(self, process: RayProcess) -> None:
        self.temp = process.temp
        self.address = ""
        self._process = process

    def add(self, name: str, **node: Any) -> None:
        """Start a raylet; its arguments are those of `Cluster.add_node`.

        It has a `HOTSTART_HOME` of its own.
        """
        env = {"HOTSTART_HOME": str(self._process.root / f"home-{name}")}
        self._do({"do": "add", "name": name, "node": {"num_cpus": 1, "env_vars": env, **node}})

    def lose(self, name: str) -> None:
        """Kill a raylet, as if its host had gone."""
        self._do({"do": "lose", "name": name})

    @property
    def nodes(self) -> RayNodes:
        """As other tests take a cluster."""
        return RayNodes(self.address, self.temp)

    def _do(self, command: dict[str, Any]) -> None:
        self.address = json.loads(self._process.tell(json.dumps(command)))["address"]


@contextlib.contextmanager
def changing_cluster(**nodes: dict[str, Any]) -> Iterator[ChangingCluster]:
    """A cluster with these raylets to begin with, by name. Blocks for seconds."""
    with ray_process(_SERVER) as process:
        cluster = ChangingCluster(process)
        for name, node in nodes.items():
            cluster.add(name, **node)
        yield cluster


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
