"""Google Cloud's metadata server as its documentation describes it, over real HTTP.

https://cloud.google.com/compute/docs/metadata/querying-metadata: the `Metadata-Flavor` header is
asked for and given; `wait_for_change` with `last_etag` answers at once where the etag differs, else
when the value changes, or after `timeout_sec` with the value as it is.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

_PREFIX = "/computeMetadata/v1/"
_VALUES = {
    "instance/maintenance-event": "NONE",
    "instance/preempted": "FALSE",
    "instance/service-accounts/default/email": "job@jobs.iam.gserviceaccount.com",
    "instance/zone": "projects/1001/zones/us-central1-b",
    "project/numeric-project-id": "1001",
    "project/project-id": "jobs",
}


class MetadataServer:
    """The values of a running server, that of a machine in us-central1 of the project `jobs`.

    `address` is what `GCE_METADATA_HOST` wants. `set` changes a value and answers those who wait.
    """

    def __init__(self) -> None:
        self.values = dict(_VALUES)
        self.requests: list[str] = []
        self.failures = 0
        self.address = ""
        self._changed = threading.Condition()

    def set(self, key: str, value: str) -> None:
        with self._changed:
            self.values[key] = value
            self._changed.notify_all()

    def fail(self, times: int) -> None:
        """Answer this many requests with 503."""
        self.failures = times

    def answer(self, path: str, flavored: bool) -> tuple[int, str]:
        """Status and body; blocks as long as the request asks for."""
        parts = urlsplit(path)
        self.requests.append(path)
        if parts.path == "/":
            return 200, "computeMetadata/"
        if not flavored:
            return 403, "Missing Metadata-Flavor:Google header."
        if self.failures:
            self.failures -= 1
            return 503, "try again"
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        key = parts.path.removeprefix(_PREFIX)
        with self._changed:
            if key not in self.values:
                return 404, "not found"
            if query.get("wait_for_change") == "true":
                self._changed.wait_for(
                    lambda: etag_of(self.values[key]) != query.get("last_etag"),
                    float(query["timeout_sec"]) if "timeout_sec" in query else None,
                )
            return 200, self.values[key]


def etag_of(value: str) -> str:
    return hashlib.sha256(value.encode()).hexdigest()[:16]


@contextlib.contextmanager
def metadata_server() -> Iterator[MetadataServer]:
    """A server on a free port of this machine."""
    state = MetadataServer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = state.answer(self.path, self.headers.get("Metadata-Flavor") == "Google")
            with contextlib.suppress(OSError):
                self.send_response(status)
                self.send_header("Metadata-Flavor", "Google")
                self.send_header("ETag", etag_of(body))
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body.encode())

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.address = f"127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
