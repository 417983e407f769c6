"""One client's get or put of one object, timed in a process of its own, its requests counted.

    raw_client.py PROXY_URL CLIENT OPERATION SIZE_BYTES NAME

The object of a `get` is there already. One small request goes first, so that the connection is
up and everything imported. Prints one JSON object.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable

BUCKET = "ours"


def hotstart(url: str, name: str, data: bytes) -> tuple[Callable[[], object], Callable[[], object]]:
    """The store of hotstart's cache."""
    from hotstart.cache.gcs import GcsStore

    store = GcsStore(f"gs://{BUCKET}/raw")
    store.get("warm")
    return lambda: store.get(name), lambda: store.create(name, data)


def etils(url: str, name: str, data: bytes) -> tuple[Callable[[], object], Callable[[], object]]:
    """What stock JAX does on `gs://`: look whether it is there, then read or write."""
    from etils import epath

    folder = epath.Path(f"gs://{BUCKET}/raw")
    (folder / "warm").read_bytes()
    path = folder / name

    def get() -> bytes | None:
        return path.read_bytes() if path.exists() else None

    def put() -> None:
        if not path.exists():
            path.write_bytes(data)

    return get, put


def urllib3(url: str, name: str, data: bytes) -> tuple[Callable[[], object], Callable[[], object]]:
    """Bare HTTP requests: nothing verified, no precondition."""
    import urllib3

    pool = urllib3.PoolManager()
    objects = f"{url}/storage/v1/b/{BUCKET}/o/raw%2F"
    pool.request("GET", f"{objects}warm?alt=media")

    def get() -> bytes:
        return pool.request("GET", f"{objects}{name}?alt=media").data

    def put() -> object:
        upload = f"{url}/upload/storage/v1/b/{BUCKET}/o?uploadType=media&name=raw%2F{name}"
        return pool.request("POST", upload, body=data)

    return get, put


CLIENTS = {"hotstart": hotstart, "etils": etils, "urllib3": urllib3}


def main() -> None:
    """Time one operation; the result is checked."""
    from tests.support.gcs_proxy import GcsProxy

    url, client, operation, size_bytes, name = sys.argv[1:]
    proxy = GcsProxy(url)
    data = os.urandom(int(size_bytes)) if operation == "put" else b""
    get, put = CLIENTS[client](url, name, data)
    proxy.reset()
    started = time.monotonic()
    answer = get() if operation == "get" else put()
    seconds = time.monotonic() - started
    billed = [request.billed_as for request in proxy.requests()]
    if operation == "get" and len(answer or b"") != int(size_bytes):  # type: ignore[arg-type]
        raise SystemExit(f"{client} read {answer if answer is None else len(answer)} bytes")  # type: ignore[arg-type]
    counts = {"requests": len(billed), "class_a": billed.count("A"), "class_b": billed.count("B")}
    print(json.dumps({"seconds": seconds, "counts": counts}))


if __name__ == "__main__":
    main()
