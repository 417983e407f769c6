"""A stand-in for the metadata server of a Google Cloud machine, in a thread."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FACTS = {
    "project/numeric-project-id": "1001",
    "project/project-id": "jobs",
    "instance/zone": "projects/1001/zones/us-central1-b",
    "instance/service-accounts/default/email": "job@jobs.iam.gserviceaccount.com",
}


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        value = FACTS.get(self.path.removeprefix("/computeMetadata/v1/"))
        # As Google's: who does not ask for it by name is refused.
        ok = value is not None and self.headers.get("Metadata-Flavor") == "Google"
        self.send_response(200 if ok else 403)
        self.send_header("Metadata-Flavor", "Google")
        self.end_headers()
        if ok and value is not None:
            self.wfile.write(value.encode())

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def metadata_server() -> Iterator[str]:
    """Run one as long as the context lasts; `host:port`, for `GCE_METADATA_HOST`."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join(10)
