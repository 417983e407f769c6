"""Google Cloud's metadata server: whether this VM is preempted, or terminated for maintenance.

The server holds a request with `wait_for_change` until the value changes, so this costs one idle
connection a key: `instance/preempted` (FALSE, TRUE) and `instance/maintenance-event` (NONE,
MIGRATE_ON_HOST_MAINTENANCE, TERMINATE_ON_HOST_MAINTENANCE). See
https://cloud.google.com/compute/docs/metadata/querying-metadata; for the 30 seconds of a
preempted VM, https://cloud.google.com/compute/docs/instances/preemptible; for the 60 of one that
is terminated for maintenance, an hour where it has GPUs,
https://cloud.google.com/compute/docs/instances/monitor-plan-host-maintenance-event and
https://cloud.google.com/compute/docs/gpus/gpu-host-maintenance.

It is asked only where this is a VM of Google's by its firmware, or where `GCE_METADATA_HOST` names
the server; `NO_GCE_CHECK=true` turns it off, as for Google's own libraries.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import http.client

logger = logging.getLogger(__name__)

PREEMPTED_LEFT_S = 30.0
MAINTENANCE_LEFT_S = 60.0
GPU_MAINTENANCE_LEFT_S = 3600.0
_HOST = "169.254.169.254"
_PRODUCT = Path("/sys/class/dmi/id/product_name")
_NVIDIA = Path("/proc/driver/nvidia/version")
_PROBE_S = 3.0
_HOLD_S = 60
_RETRY_S = (1.0, 2.0, 5.0, 15.0, 60.0)
_HEADERS = {"Metadata-Flavor": "Google"}


class MetadataWatch:
    """Watches on threads of its own from now on; `close` ends them and does not block."""

    def __init__(
        self,
        notice: Callable[[float | None, str], None],
        environ: Mapping[str, str] = os.environ,
        product: Path = _PRODUCT,
        nvidia: Path = _NVIDIA,
    ) -> None:
        """`notice` is called at most once, with the seconds left and the server's own word."""
        self._notice = notice
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._connections: set[http.client.HTTPConnection] = set()
        self._address = _address(environ, product)
        self._maintenance_s = GPU_MAINTENANCE_LEFT_S if nvidia.exists() else MAINTENANCE_LEFT_S
        if self._address is not None:
            threading.Thread(target=self._run, name="hotstart-metadata", daemon=True).start()

    @property
    def is_on(self) -> bool:
        """Whether there is a server to ask."""
        return self._address is not None

    def close(self) -> None:
        """Watch no more."""
        self._over.set()
        with self._lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    if connection.sock is not None:
                        connection.sock.shutdown(2)

    def _run(self) -> None:
        import http.client  # of use on Google's machines alone, and slow to import

        for pause_s in _RETRY_S:  # it may not answer yet in a pod's first seconds
            try:
                answer = self._get("/", _PROBE_S)
                break
            except (OSError, http.client.HTTPException) as error:
                logger.info("no metadata server at %s: %s", self._address, error)
                if self._over.wait(pause_s):
                    return
        else:
            logger.warning("no metadata server at %s: it gives no notices", self._address)
            return
        if answer.getheader("Metadata-Flavor") != "Google":
            logger.info("what answers at %s is not Google's metadata server", self._address)
            return
        maintenance = threading.Thread(
            target=self._watch,
            args=("maintenance-event", "TERMINATE_ON_HOST_MAINTENANCE", self._maintenance_s),
            name="hotstart-maintenance",
            daemon=True,
        )
        maintenance.start()
        self._watch("preempted", "TRUE", PREEMPTED_LEFT_S)

    def _watch(self, key: str, value: str, left_s: float | None) -> None:
        """Wait until the key has the value; ends where the server doesn't have the key."""
        import http.client

        etag, failures = "0", 0
        while not self._over.is_set():
            path = f"/computeMetadata/v1/instance/{key}?wait_for_change=true"
            try:
                answer = self._get(f"{path}&last_etag={etag}&timeout_sec={_HOLD_S}", _HOLD_S + 10)
                if answer.status == 404:
                    return
                if answer.status != 200:
                    raise http.client.HTTPException(f"status {answer.status}")
            except (OSError, http.client.HTTPException) as error:
                logger.info("metadata server: %s: %s", key, error)
                self._over.wait(_RETRY_S[min(failures, len(_RETRY_S) - 1)])
                failures += 1
                continue
            etag, failures = answer.getheader("ETag") or "0", 0
            if answer.text == value:
                self._say(left_s, key if value == "TRUE" else value)
                return
            if etag == "0":
                self._over.wait(_RETRY_S[0])  # it answers at once, whatever is there

    def _say(self, left_s: float | None, detail: str) -> None:
        with self._lock:
            first = not self._over.is_set()
            self._over.set()
        if first:
            self._notice(left_s, detail)

    def _get(self, path: str, timeout_s: float) -> _Answer:
        import http.client

        assert self._address is not None
        connection = http.client.HTTPConnection(self._address, timeout=timeout_s)
        try:
            connection.connect()
            with self._lock:
                if self._over.is_set():  # `close` has been, and found nothing to shut down
                    raise ConnectionAbortedError("closed")
                self._connections.add(connection)
            connection.request("GET", path, headers=_HEADERS)
            response = connection.getresponse()
            return _Answer(response, response.read(1 << 10).decode(errors="replace").strip())
        finally:
            with self._lock:
                self._connections.discard(connection)
            connection.close()


class _Answer:
    def __init__(self, response: http.client.HTTPResponse, text: str) -> None:
        self.status = response.status
        self.text = text
        self.getheader = response.getheader


def _address(environ: Mapping[str, str], product: Path) -> str | None:
    if environ.get("NO_GCE_CHECK", "").lower() in ("true", "1"):
        return None
    if named := environ.get("GCE_METADATA_HOST"):
        return named
    with contextlib.suppress(OSError):
        if product.read_text().strip().startswith("Google"):
            return _HOST
    return None
