"""A real `ray start --head` with its dashboard, apart from every other cluster of the machine.

Ports, temporary folder and authentication token are its own. `ray stop` would end other
clusters too, so its processes are found by a variable that all of them inherit, and killed by
process id.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

START_TIMEOUT_S = 90.0
_MARKER = "HOTSTART_TEST_RAY_HEAD"
_PORTS = range(3000, 9900)  # below Ray's worker ports, which begin at 10002
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class RayHead:
    """A running head: `url` is its dashboard, `address` what `ray.init` wants.

    `environ` is what a client needs to be let in; `log` is what `ray start` wrote; `mark` is in
    the environment of all its processes.
    """

    url: str
    address: str
    environ: Mapping[str, str]
    log: Path
    mark: Mapping[str, str]


@contextlib.contextmanager
def ray_head(environ: Mapping[str, str], num_cpus: int = 4) -> Iterator[RayHead]:
    """Run a head whose jobs inherit `environ`. Call from a thread that outlives it."""
    marker, token = secrets.token_hex(8), secrets.token_hex(32)
    folder = Path(tempfile.mkdtemp(prefix="rh-", dir="/tmp"))  # Ray's sockets need short paths
    client = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    temporary = folder / "t"  # what its processes leave when they are killed
    temporary.mkdir()
    try:
        ports = free_ports(6)
        url = f"http://127.0.0.1:{ports[1]}"
        log = folder / "start.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
                + _options(ports, folder, num_cpus),
                env=_clean_environ()
                | {"TMPDIR": str(temporary)}
                | dict(environ)
                | client
                | {_MARKER: marker},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        try:
            _wait_until_up(url, token, process, log)
            yield RayHead(url, f"127.0.0.1:{ports[0]}", client, log, {_MARKER: marker})
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            _kill_marked(marker)
            process.wait()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def ray_node(head: RayHead, environ: Mapping[str, str], *options: str) -> Iterator[None]:
    """One more raylet of a head's cluster, with `options` of `ray start`; it ends with the head."""
    metrics, agent, agent_http = map(str, free_ports(3))
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block"),
            *("--address", head.address, "--node-ip-address", "127.0.0.1"),
            *("--metrics-export-port", metrics, "--runtime-env-agent-port", agent),
            *("--dashboard-agent-listen-port", agent_http, "--num-gpus", "0"),
            *("--object-store-memory", str(100 << 20), "--disable-usage-stats", *options),
        ],
        env=_clean_environ()
        | {"TMPDIR": str(head.log.parent / "t")}
        | dict(environ)
        | dict(head.environ)
        | dict(head.mark),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=_die_with_parent,
    )
    try:
        yield
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()
        process.wait()


def _options(ports: list[int], folder: Path, num_cpus: int) -> list[str]:
    gcs, dashboard, client, metrics, agent, agent_http = map(str, ports)
    return [
        *("--port", gcs, "--ray-client-server-port", client, "--metrics-export-port", metrics),
        *("--include-dashboard", "true", "--dashboard-host", "127.0.0.1"),
        *("--dashboard-port", dashboard, "--runtime-env-agent-port", agent),
        *("--dashboard-agent-listen-port", agent_http, "--node-ip-address", "127.0.0.1"),
        *("--temp-dir", str(folder / "ray"), "--num-cpus", str(num_cpus), "--num-gpus", "0"),
        *("--object-store-memory", str(100 << 20), "--disable-usage-stats"),
    ]


def _clean_environ() -> dict[str, str]:
    """This process's environment without Ray's and hotstart's, and with its Python first."""
    environ = {
        k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "HOTSTART_", "JAX_"))
    }
    bin_folder = str(Path(sys.executable).parent)
    return environ | {"PATH": f"{bin_folder}{os.pathsep}{environ.get('PATH', '')}"}


def free_ports(count: int) -> list[int]:
    """Ports below Ray's own that nobody listens at now."""
    found: list[int] = []
    for port in random.SystemRandom().sample(_PORTS, len(_PORTS)):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("0.0.0.0", port))
            found.append(port)
        if len(found) == count:
            return found
    raise RuntimeError(f"no {count} free ports from {_PORTS.start} to {_PORTS.stop}")


def _wait_until_up(url: str, token: str, process: subprocess.Popen[bytes], log: Path) -> None:
    request = urllib.request.Request(
        f"{url}/api/jobs/", headers={"Authorization": f"Bearer {token}"}
    )
    deadline = time.monotonic() + START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline:
        with (
            contextlib.suppress(urllib.error.URLError, OSError),
            urllib.request.urlopen(request, timeout=5),
        ):
            return
        time.sleep(0.1)
    raise RuntimeError(f"ray start --head did not come up:\n{log.read_text()[-4000:]}")


def _kill_marked(marker: str) -> None:
    """Kill every process that inherited the marker until none is left."""
    deadline = time.monotonic() + 20
    while (marked := list(_marked(marker))) and time.monotonic() < deadline:
        for process in marked:
            with contextlib.suppress(psutil.Error):
                process.kill()
        time.sleep(0.05)
    if marked:
        raise RuntimeError(f"still there after SIGKILL: {marked}")


def _marked(marker: str) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            alive = process.status() != psutil.STATUS_ZOMBIE
            if alive and process.environ().get(_MARKER) == marker:
                yield process


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
