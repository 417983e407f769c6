"""The address of a cluster's Jobs API: the forms it is given in, and whether somebody is there.

A dashboard's URL (`http://head:8265`, `https://...`), `host:port` of the dashboard or of what
`ray.init` takes, or `auto`. Given as argument, else `RAY_API_SERVER_ADDRESS`, else `RAY_ADDRESS`.
"""

from __future__ import annotations

import http.client
import socket
from collections.abc import Mapping
from urllib.parse import urlsplit

from hotstart.launcher.errors import ClusterUnreachable

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
_CONNECT_S = 10.0


def jobs_address(given: str | None, environ: Mapping[str, str]) -> str:
    """The address to use, as a URL where HTTP is spoken there; blocks for up to 20 s.

    Raises `ClusterUnreachable` for a form that can't be right, and where nobody listens.
    """
    sources = {"--address": given, **{name: environ.get(name) for name in _VARIABLES}}
    source, address = next(
        ((source, address.strip().rstrip("/")) for source, address in sources.items() if address),
        ("default", DEFAULT_ADDRESS),
    )
    scheme, separator, _ = address.partition("://")
    wrong = None
    if separator and scheme == "ray":
        wrong = "is of Ray Client, which takes no jobs"
    elif separator and scheme not in ("http", "https"):
        wrong = f"has {scheme}:// in front, which is not a dashboard's"
    elif address == "local":
        wrong = "names no cluster (`hotstart launch` can start Ray by itself)"
    elif address != "auto" and _host_and_port(address)[0] is None:
        wrong = "has no port" if ":" not in address else "is no address"
    if wrong:
        raise ClusterUnreachable(
            f"{source}: {address} {wrong}; give the dashboard's URL, by default http://HEAD:8265"
        )
    check_listening(address)
    return _as_url(address)


def check_listening(address: str) -> None:
    """Raise `ClusterUnreachable` where nobody listens at an address that names host and port."""
    host, port = _host_and_port(address)
    if host is None:
        return
    try:
        socket.create_connection((host, port), timeout=_CONNECT_S).close()
    except OSError as error:
        raise ClusterUnreachable(
            f"no Ray cluster answers at {address}: {error.strerror or error}; check --address, "
            "RAY_API_SERVER_ADDRESS and RAY_ADDRESS (the dashboard's URL, by default port 8265)"
        ) from error


def _as_url(address: str) -> str:
    """`host:port` as the URL of the dashboard where HTTP is spoken there; others unchanged."""
    host, port = _host_and_port(address)
    if "://" in address or host is None:
        return address
    connection = http.client.HTTPConnection(host, port, timeout=_CONNECT_S)
    try:
        connection.request("GET", "/api/version")
        connection.getresponse()
        return f"http://{address}"
    except (OSError, http.client.HTTPException):
        return address
    finally:
        connection.close()


def _host_and_port(address: str) -> tuple[str, int] | tuple[None, None]:
    """None for `auto`, and for what is no address."""
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        return None, None
    return (parts.hostname, port) if parts.hostname and port else (None, None)
