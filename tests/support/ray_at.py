"""A Ray cluster at a port that is known before: it can be killed as a whole, and come back."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.support.launch import _CLEARED, _all_processes

_PORTS = range(3000, 9900)  # below Ray's worker ports, which begin at 10002
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

    def __init__(self, root: Path) -> None:
        self.temp = root / "t"
        (self.temp / "ray").mkdir(parents=True)
        self._root = root
        self._port = _free_port()
        self.address = f"{socket.gethostbyname(socket.gethostname())}:{self._port}"
        self._process: subprocess.Popen[str] | None = None

    def environment(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        """What its processes get."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(_CLEARED)}
        own = {"HOME": str(self._root), "TMPDIR": str(self.temp), "RAY_AUTH_MODE": "disabled"}
        return {**kept, **own, "RAY_USAGE_STATS_ENABLED": "0", **(more or {})}

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
            found = [pid for pid, env, _ in _all_processes() if f"TMPDIR={self.temp}" in env]
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if not found:
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
    root = Path(tempfile.mkdtemp(prefix="hs-", dir="/tmp"))
    place = RayAt(root)
    try:
        yield place
    finally:
        place.kill()
        shutil.rmtree(root, ignore_errors=True)


def _free_port() -> int:
    for port in random.SystemRandom().sample(_PORTS, 100):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("0.0.0.0", port))
            return port
    raise RuntimeError("no free port")
