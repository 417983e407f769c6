"""A Ray cluster at a port that is known before: it can be killed as a whole, and come back."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.support.ray_head import free_ports
from tests.support.ray_process import kill_all_of, ray_environ, ray_folder

_NODES = """
import sys
from ray.cluster_utils import Cluster
head = {"gcs_server_port": int(sys.argv[1]), "num_cpus": 2, "include_dashboard": False}
if len(sys.argv) > 2:
    head["node_ip_address"] = sys.argv[2]
cluster = Cluster(initialize_head=True, head_node_args=head)
print(cluster.address, flush=True)
sys.stdin.read()
"""


class RayAt:
    """A place for a cluster: `start` and `kill` may be called again and again."""

    def __init__(self, root: Path, temp: Path) -> None:
        self.temp = temp
        self._root = root
        [self._port] = free_ports(1)
        self.address = f"{socket.gethostbyname(socket.gethostname())}:{self._port}"
        self._process: subprocess.Popen[str] | None = None

    def environment(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        """What its processes get."""
        return ray_environ(self._root, self.temp, more)

    def start(self, at: str | None = None, environ: Mapping[str, str] | None = None) -> None:
        """Start its head, with two CPUs; blocks for seconds. `at` is the address to take."""
        self._process = subprocess.Popen(
            [sys.executable, "-c", _NODES, str(self._port), *([at] if at else [])],
            env=self.environment(environ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        address = self._process.stdout.readline().strip()
        assert address, f"Ray did not start; see {self.temp}/ray"
        self.address = address

    def join_command(self, ip: str) -> list[str]:
        """The command of a raylet without CPUs that joins from another address."""
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block"]
        command += ["--address", self.address, "--node-ip-address", ip, "--num-cpus", "0"]
        return [*command, "--object-store-memory", str(100 << 20), "--disable-usage-stats"]

    def wait_for_nodes(self, count: int) -> None:
        """Block until so many raylets are alive."""
        code = (
            "import ray, sys, time\n"
            "from ray._raylet import GcsClient\n"
            "client = GcsClient(address=sys.argv[1])\n"
            "while sum(n.state == 0 for n in client.get_all_node_info().values()) < "
            "int(sys.argv[2]): time.sleep(0.2)\n"
        )
        command = [sys.executable, "-c", code, self.address, str(count)]
        subprocess.run(command, env=self.environment(), check=True, timeout=60)

    def kill(self) -> None:
        """SIGKILL to head, raylet, agents and workers, all at once."""
        for _ in range(50):
            if not kill_all_of(self.temp):
                break
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for stream in (self._process.stdin, self._process.stdout):
                if stream is not None:
                    stream.close()
            self._process = None


@contextlib.contextmanager
def ray_at() -> Iterator[RayAt]:
    """A place for a cluster, not started yet; all of it is gone in the end."""
    with ray_folder() as (root, temp):
        place = RayAt(root, temp)
        try:
            yield place
        finally:
            place.kill()
