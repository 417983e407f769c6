"""A TCP proxy whose connections can be cut, or lose bytes, and which can speak TLS."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit


class TcpProxy:
    """Forwards connections to the host and port of a URL. Made by `tcp_proxy`."""

    def __init__(self, target: str, context: ssl.SSLContext | None) -> None:
        parts = urlsplit(target)
        self.target = (parts.hostname or "", parts.port or 0)
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._ways: dict[str, list[_Way]] = {"to_server": [], "to_client": []}
        self.refuses = False  # new connections end at once
        self.url = f"{'https' if context else 'http'}://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> int:
        """Close all connections; how many there were."""
        with self._lock:
            ends, self._open = self._open, set()
            for ways in self._ways.values():
                ways.clear()
        for end in ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        return len(ends) // 2

    def lose(self, way: str, after_bytes: int = 0) -> Callable[[], int]:
        """Of the connections there are, let so many bytes more through `to_server` or `to_client`.

        Returns what tells how many were lost since.
        """
        with self._lock:
            ways = list(self._ways[way])
            for one in ways:
                one.left_bytes = after_bytes
        return lambda: sum(one.lost_bytes for one in ways)

    @property
    def connections(self) -> int:
        """How many there are."""
        with self._lock:
            return len(self._open) // 2

    @property
    def port(self) -> int:
        """Where it listens, on 127.0.0.1."""
        return int(self._listener.getsockname()[1])

    def close(self) -> None:
        """Close all, the listener too."""
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self.refuses:
                client.close()
                continue
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            if self._context is not None:
                client = self._context.wrap_socket(client, server_side=True)
            server = socket.create_connection(self.target)
            there, back = _Way(client, server), _Way(server, client)
            with self._lock:
                self._open |= {client, server}
                self._ways["to_server"].append(there)
                self._ways["to_client"].append(back)
            returning = threading.Thread(target=back.pump, daemon=True)
            returning.start()
            there.pump()
            returning.join()
            server.close()
            with self._lock:
                self._open -= {client, server}
        client.close()


class _Way:
    """One direction of a connection."""

    def __init__(self, source: socket.socket, sink: socket.socket) -> None:
        self.left_bytes: int | None = None  # that come through; None is all
        self.lost_bytes = 0
        self._source = source
        self._sink = sink

    def pump(self) -> None:
        """Until an end is closed, which closes the other."""
        with contextlib.suppress(OSError):
            while data := self._source.recv(1 << 16):
                passes = data if self.left_bytes is None else data[: self.left_bytes]
                if self.left_bytes is not None:
                    self.left_bytes -= len(passes)
                self._sink.sendall(passes)
                self.lost_bytes += len(data) - len(passes)
        for end in (self._source, self._sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def tcp_proxy(target: str, context: ssl.SSLContext | None = None) -> Iterator[TcpProxy]:
    """A proxy to a URL for as long as the context lasts."""
    proxy = TcpProxy(target, context)
    try:
        yield proxy
    finally:
        proxy.close()


def own_authority(folder: Path) -> tuple[ssl.SSLContext, Path]:
    """A server's context for 127.0.0.1, and the certificate that a client has to trust."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    certificate, private = folder / "cert.pem", folder / "key.pem"
    certificate.write_bytes(made.public_bytes(pem))
    private.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, private)
    return context, certificate
