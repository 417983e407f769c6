"""Raylets with addresses of their own: a network namespace each on a bridge, links to be cut.

Each host has its own network, host name, /etc/hosts and Ray folder; the rest of the file system
they share. Ray's head, without CPUs, is on the bridge's address. Needs root and iproute2.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.support.launch import RayNodes, await_true
from tests.support.ray_process import kill_all_of, ray_environ, ray_folder

_RAY = str(Path(sys.executable).with_name("ray"))
# A host is given up after 6 to 15 s without an answer; Ray's defaults take 30 to 60.
_HEALTH = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1500",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "4",
}
_ENTER = 'mount --bind "$1" /etc/hosts; mount --bind "$2" "$3"; hostname "$4"; shift 4; exec "$@"'


def is_possible() -> bool:
    """Whether this process may make network namespaces."""
    name = f"hs{os.getpid()}t"
    try:
        made = subprocess.run(["ip", "netns", "add", name], capture_output=True, timeout=10)
    except OSError:
        return False
    subprocess.run(["ip", "netns", "del", name], capture_output=True)
    return made.returncode == 0


class OwnAddresses:
    """A cluster of hosts 0, 1, ...; `cut` and `restore` take effect at once."""

    def __init__(self, root: Path, environ: dict[str, str]) -> None:
        pid = os.getpid()
        self.temp = root / "t"
        self.address = ""
        self._root = root
        self._environ = environ
        self._mark = f"hs{pid % 1_000_000}"
        self._net = f"10.{100 + pid % 100}.{pid // 100 % 250}"
        self._hosts = 0

    @property
    def nodes(self) -> RayNodes:
        """As other tests take a cluster."""
        return RayNodes(self.address, self.temp)

    def begin(self) -> None:
        """The bridge, and Ray's head at its address."""
        bridge = f"{self._mark}b"
        _ip("link", "add", bridge, "type", "bridge")
        _ip("addr", "add", f"{self._net}.1/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        port = 6379 + os.getpid() % 3000
        self.address = f"{self._net}.1:{port}"
        self._start(
            [], ["--head", f"--port={port}", "--num-cpus=0", "--include-dashboard=false"], 1
        )
        await_true(lambda: _answers(self.address, self._environ), 60)

    def add(self) -> int:
        """One more host with one CPU; blocks until its raylet has started.

        One by one: on a busy machine a raylet gives up that waits too long for its helpers.
        """
        index = self._hosts
        self._hosts += 1
        name, ours, theirs = (f"{self._mark}{letter}{index}" for letter in "nvw")
        _ip("netns", "add", name)
        _ip("link", "add", ours, "type", "veth", "peer", "name", theirs, "netns", name)
        _ip("link", "set", ours, "master", f"{self._mark}b", "up")
        _ip("-n", name, "addr", "add", f"{self._net}.{index + 10}/24", "dev", theirs)
        for device in ("lo", theirs):
            _ip("-n", name, "link", "set", device, "up")
        _ip("-n", name, "route", "add", "default", "via", f"{self._net}.1")
        folder = self._root / f"ray-{index}"
        folder.mkdir()
        hosts = self._root / f"hosts-{index}"
        lines = [f"{self._net}.{i + 10} host-{i}" for i in range(20)]
        hosts.write_text("\n".join(["127.0.0.1 localhost", *lines, ""]))
        enter = ["ip", "netns", "exec", name, "unshare", "--uts", "--mount", "sh", "-c", _ENTER]
        places = ["sh", str(hosts), str(folder), str(self.temp / "ray"), f"host-{index}"]
        options = [f"--address={self.address}", "--num-cpus=1"]
        for _ in range(3):
            if self._has_started(self._start([*enter, *places], options, index + 10), index + 10):
                return index
        raise AssertionError(f"host {index} does not start\n{self._log(index + 10).read_text()}")

    def cut(self, index: int) -> None:
        """Take a host's link down: nothing it sends arrives, and nothing is sent back."""
        _ip("link", "set", f"{self._mark}v{index}", "down")

    def restore(self, index: int) -> None:
        """Its link is up again."""
        _ip("link", "set", f"{self._mark}v{index}", "up")

    def end(self) -> None:
        """Kill what runs there and take the network away."""
        kill_all_of(self.temp)
        for index in range(self._hosts):
            subprocess.run(["ip", "link", "del", f"{self._mark}v{index}"], capture_output=True)
            subprocess.run(["ip", "netns", "del", f"{self._mark}n{index}"], capture_output=True)
        subprocess.run(["ip", "link", "del", f"{self._mark}b"], capture_output=True)

    def _log(self, number: int) -> Path:
        return self._root / f"ray-{number}.log"

    def _has_started(self, process: subprocess.Popen[bytes], number: int) -> bool:
        log = self._log(number)
        await_true(lambda: "will now block" in log.read_text() or process.poll() is not None, 90)
        return process.poll() is None

    def _start(self, enter: list[str], options: list[str], number: int) -> subprocess.Popen[bytes]:
        ip = f"--node-ip-address={self._net}.{number}"
        size = "--object-store-memory=80000000"
        with self._log(number).open("w") as log:
            return subprocess.Popen(
                [*enter, _RAY, "start", *options, ip, size, "--block"],
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )


@contextlib.contextmanager
def own_addresses(count: int) -> Iterator[OwnAddresses]:
    """A cluster of so many hosts, all there. Blocks for seconds."""
    with ray_folder() as (root, temp):
        made = OwnAddresses(root, ray_environ(root, temp, {"RAY_TMPDIR": str(temp), **_HEALTH}))
        try:
            made.begin()
            for _ in range(count):
                made.add()
            yield made
        finally:
            made.end()


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=20)


def _answers(address: str, environ: dict[str, str]) -> bool:
    command = [_RAY, "health-check", f"--address={address}"]
    return subprocess.run(command, env=environ, capture_output=True).returncode == 0
