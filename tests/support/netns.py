"""A host with an address of its own on this machine, behind a link that can be cut.

A network namespace with a veth pair; root and iproute2 are needed. What listens on 127.0.0.1 out
here is reached from inside by `forward`.
"""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

needs_netns = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("ip") is None, reason="needs root and iproute2"
)


@dataclass(frozen=True)
class NetworkHost:
    """`outside` is this side's address of the link, `inside` that of the host."""

    name: str
    link: str
    outside: str
    inside: str

    def command(self, *arguments: str) -> list[str]:
        """These arguments, run on that host."""
        return ["ip", "netns", "exec", self.name, *arguments]

    def cut(self) -> None:
        """Cut the link: packets go nowhere, and nobody is told."""
        _ip("link", "set", self.link, "down")

    def mend(self) -> None:
        """Restore the link."""
        _ip("link", "set", self.link, "up")


@contextlib.contextmanager
def network_host() -> Iterator[NetworkHost]:
    """One host beside this one; gone in the end."""
    name = f"hs{secrets.token_hex(3)}"
    net = f"10.{random.SystemRandom().randrange(200, 250)}.{random.SystemRandom().randrange(250)}"
    host = NetworkHost(name, f"{name}o", f"{net}.1", f"{net}.2")
    _ip("netns", "add", name)
    try:
        _ip("link", "add", host.link, "type", "veth", "peer", "name", f"{name}i", "netns", name)
        _ip("addr", "add", f"{host.outside}/24", "dev", host.link)
        _ip("link", "set", host.link, "up")
        for arguments in (
            ("addr", "add", f"{host.inside}/24", "dev", f"{name}i"),
            ("link", "set", f"{name}i", "up"),
            ("link", "set", "lo", "up"),
        ):
            _ip("-n", name, *arguments)
        yield host
    finally:
        _ip("netns", "delete", name)  # its link goes with it


@contextlib.contextmanager
def forward(address: str, port: int) -> Iterator[int]:
    """Connections to the port that this gives, at `address`, reach `port` of 127.0.0.1."""
    listener = socket.create_server((address, 0))

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                server = socket.create_connection(("127.0.0.1", port))
                for a, b in ((client, server), (server, client)):
                    threading.Thread(target=_pump, args=(a, b), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(data)
    for end in (source, sink):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=20)
