"""Nodes that go while a job runs: raylets that are drained and killed for real.

The cluster's head has no CPUs, so a job is never on it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.support.launch import Site, await_true, is_running, site
from tests.support.ray_process import RayProcess, cleared_environ, ray_process

RAY = Path(sys.executable).with_name("ray")
# In a script: says which attempt it is, and the raylet that its agent is a child of.
SAY_NODE = """
import os
with open(f"/proc/{os.getppid()}/stat") as stat:
    print("node", os.environ["HOTSTART_ATTEMPT"], stat.read().rpartition(")")[2].split()[1],
          flush=True)
"""
_NODE = re.compile(r"^\[(\d)\] node (\d+) (\d+)$", re.MULTILINE)
_CLUSTER = """
import json, sys, threading, time
from ray.cluster_utils import Cluster
cluster = Cluster()
cluster.add_node(num_cpus=0, include_dashboard=False)
print(cluster.address, flush=True)
raylets = []
def reap():
    while True:  # Ray's workers end when their raylet is gone, and a zombie is not
        for raylet in raylets:
            raylet.poll()
        time.sleep(0.1)
threading.Thread(target=reap, daemon=True).start()
for line in sys.stdin:
    node = cluster.add_node(num_cpus=1, include_dashboard=False, env_vars=json.loads(line))
    raylets.append(node.all_processes["raylet"][0].process)
    print(node.node_id, raylets[-1].pid, flush=True)
"""


class LeavingCluster:
    """A Ray cluster whose nodes, with one CPU each, come and go."""

    def __init__(self, address: str, process: RayProcess) -> None:
        self.address = address
        self._temp = process.temp
        self._process = process
        self._raylets: dict[str, int] = {}
        self._used: set[str] = set()

    def site(self) -> contextlib.AbstractContextManager[Site]:
        """A site that launches on this cluster."""
        return site(self.address, self._temp)

    def have(self, count: int) -> None:
        """Add nodes until `count` are there that nothing has happened to. Takes seconds each."""
        while len(self.unused()) < count:
            self.add({})

    def add(self, environ: Mapping[str, str]) -> str:
        """A node more, with this in its environment; Ray's id of it."""
        node_id, pid = self._process.tell(json.dumps(dict(environ))).split()
        self._raylets[node_id] = int(pid)
        return node_id

    def nodes_of(self, output: str) -> list[dict[int, str]]:
        """The node of each process, an attempt after the other, by what `SAY_NODE` has printed."""
        nodes = {pid: node_id for node_id, pid in self._raylets.items()}
        found: list[dict[int, str]] = []
        for index, attempt, raylet in _NODE.findall(output):
            while len(found) < int(attempt):
                found.append({})
            found[int(attempt) - 1][int(index)] = nodes[int(raylet)]
        return found

    def unused(self) -> set[str]:
        """The nodes that nothing has happened to."""
        return self._raylets.keys() - self._used

    def drain(self, node_id: str, left_s: int) -> None:
        """`ray drain-node`, as whoever takes a machine back does."""
        self._used.add(node_id)
        done = subprocess.run(
            [
                *(str(RAY), "drain-node", "--address", self.address, "--node-id", node_id),
                *("--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "goes"),
                *("--deadline-remaining-seconds", str(left_s)),
            ],
            env={**cleared_environ(), "RAY_AUTH_MODE": "disabled", "TMPDIR": str(self._temp)},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def kill(self, node_id: str) -> None:
        """Kill a node's raylet; its other processes end by themselves."""
        self._used.add(node_id)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._raylets[node_id], signal.SIGKILL)

    def end(self, node_id: str) -> None:
        """Take a node away that only one test could use."""
        self.kill(node_id)
        await_true(lambda: not is_running(self._raylets[node_id]), 5)


@contextlib.contextmanager
def leaving_cluster() -> Iterator[LeavingCluster]:
    """A cluster with no nodes but its head. Blocks for seconds."""
    with ray_process(_CLUSTER) as process:
        yield LeavingCluster(process.answer(), process)
