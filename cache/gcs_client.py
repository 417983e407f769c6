"""One request to Google Cloud Storage through gcsfs, whose only importer this is.

gcsfs brings the credentials, the HTTP session and a thread with an event loop. Its retry, its
listing caches and its conveniences of several requests stay unused.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import concurrent.futures.thread  # with the rest of gcsfs it could not be imported at exit
import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hotstart.cache.errors import AccessDenied, RejectedRequest, StoreError, TransientError

CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 20.0
CLOSE_TIMEOUT_S = 1.0


class NotFound(StoreError):
    """404: the object or its bucket is not there. Does not leave `hotstart.cache.gcs`."""


class PreconditionFailed(StoreError):
    """412: the object is of another generation. Does not leave `hotstart.cache.gcs`."""


class _HttpFailure(Exception):
    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"HTTP {status}: {text}" if text else f"HTTP {status}")
        self.status = status


@dataclass
class _Connections:
    """This process's gcsfs file systems by endpoint: one session each, shared by all stores."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    filesystems: dict[str | None, Any] = field(default_factory=dict)
    inherited: list[Any] = field(default_factory=list)
    is_exiting: bool = False


_connections = _Connections()


def _start_anew_in_child() -> None:
    # The thread with the event loop is not in the child. What used it is kept, not closed: the
    # sockets are the parent's.
    global _connections
    inherited = [*_connections.inherited, *_connections.filesystems.values()]
    _connections = _Connections(inherited=inherited)


def _close_at_exit() -> None:
    _connections.is_exiting = True
    for filesystem in _connections.filesystems.values():
        _close(filesystem)


def _close(filesystem: Any) -> None:
    if filesystem.session is not None and not filesystem.session.closed:
        closing = asyncio.run_coroutine_threadsafe(filesystem.session.close(), filesystem.loop)
        with contextlib.suppress(TimeoutError):
            closing.result(timeout=CLOSE_TIMEOUT_S)


os.register_at_fork(after_in_child=_start_anew_in_child)
atexit.register(_close_at_exit)


class GcsClient:
    """Sends requests; the first one of a process makes the connection.

    `emulator` is a host or URL as in `STORAGE_EMULATOR_HOST`; empty for Google's own.
    """

    def __init__(self, *, emulator: str) -> None:
        if emulator in ("", "default"):  # as gcsfs reads it
            self._endpoint = None
        else:
            self._endpoint = (emulator if "://" in emulator else f"http://{emulator}").rstrip("/")

    def request(
        self,
        action: str,
        timeout_s: float,
        method: str,
        path: str,
        *path_parts: str,
        headers: Mapping[str, str] | None = None,
        data: bytes | None = None,
        **parameters: str | int | None,
    ) -> tuple[Mapping[str, str], bytes]:
        """Send one request and return the headers and the body of the answer.

        `path` is relative to `/storage/v1/`, or to `/upload/storage/v1/` where it starts with
        `upload/`; each `{}` in it stands for one of `path_parts`, quoted. Blocks for `timeout_s`
        at most (longer only while the first credentials are looked for). `action` says in error
        messages what was tried. Raises `NotFound`, `PreconditionFailed` and `StoreError`.
        """
        deadline = time.monotonic() + timeout_s
        future: concurrent.futures.Future[tuple[Mapping[str, str], bytes]] | None = None
        try:
            filesystem = _filesystem(self._endpoint)
            if path.startswith("upload/"):
                base = filesystem.base.removesuffix("storage/v1/")
                path = f"{base}upload/storage/v1/{path.removeprefix('upload/')}"
            call = filesystem._call(
                method, path, *path_parts, headers=headers, data=data, **parameters
            )
            future = asyncio.run_coroutine_threadsafe(call, filesystem.loop)
            answer = future.result(timeout=max(0.0, deadline - time.monotonic()))
            if _connections.is_exiting:  # nobody closes it after us
                _close(filesystem)
            return answer
        except Exception as error:
            if future is not None and not future.done():
                raise TransientError(
                    f"cannot {action}: no full answer within {timeout_s:.1f} s"
                ) from error
            raise _translate(error, action) from error
        finally:
            if future is not None:
                future.cancel()  # nothing, where it has ended


def _filesystem(endpoint: str | None) -> Any:
    connections = _connections
    filesystem = connections.filesystems.get(endpoint)
    if filesystem is None:
        with connections.lock:
            filesystem = connections.filesystems.get(endpoint)
            if filesystem is None:
                filesystem = _new_filesystem(endpoint)
                connections.filesystems[endpoint] = filesystem
    return filesystem


def prepare() -> None:
    """Import gcsfs, which takes 0.5 s to 1 s; better beside other work than in a first request."""
    # The probe for the bucket's type goes over gRPC, which hangs for a minute and more where
    # only HTTP answers.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    import gcsfs.core  # noqa: F401


def _new_filesystem(endpoint: str | None) -> Any:
    prepare()
    import aiohttp
    from aiohttp.abc import AbstractResolver, ResolveResult
    from gcsfs.core import GCSFileSystem

    class Resolver(AbstractResolver):
        """Looks names up in a thread; at interpreter exit, when none is to be had, without.

        Python shuts executors down before it runs `atexit` callbacks, in which the last uploads
        are flushed.
        """

        async def resolve(
            self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
        ) -> list[ResolveResult]:
            try:
                return await aiohttp.ThreadedResolver().resolve(host, port, family)
            except RuntimeError:  # cannot schedule new futures after shutdown
                found = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)
            return [
                ResolveResult(
                    hostname=host,
                    host=str(address[0]),
                    port=port,
                    family=found_family,
                    proto=protocol,
                    flags=socket.AI_NUMERICHOST,
                )
                for found_family, _, protocol, _, address in found
            ]

        async def close(self) -> None:
            pass

    async def raise_for_status(response: aiohttp.ClientResponse) -> None:
        # Before gcsfs looks: its exceptions keep the status of some answers only.
        if response.status >= 400:
            raise _HttpFailure(response.status, _error_text(await response.read()))

    class FileSystem(GCSFileSystem):
        cachable = False
        # Without gcsfs' decorator, which tries six times.
        _request = GCSFileSystem._request.__wrapped__
        _session: aiohttp.ClientSession | None

        async def _set_session(self) -> aiohttp.ClientSession:
            if self._session is not None and self._session.closed:
                self._session = None
            if self._session is None:
                session_kwargs: dict[str, Any] = {"raise_for_status": raise_for_status}
                if not self._use_client_cert:  # else gcsfs makes the connector, with mTLS
                    session_kwargs["connector"] = aiohttp.TCPConnector(resolver=Resolver())
                self.session_kwargs = session_kwargs
            return await super()._set_session()

        @staticmethod
        def close_session(*_: object) -> None:
            """Not when gcsfs' finalizer wants it, which may be before the last flush."""

    return FileSystem(
        token="anon" if endpoint else None,
        endpoint_url=endpoint,
        use_listings_cache=False,
        requests_timeout=aiohttp.ClientTimeout(
            total=None, connect=CONNECT_TIMEOUT_S, sock_read=READ_TIMEOUT_S
        ),
    )


def _error_text(body: bytes) -> str:
    """What the server says, for a person to read."""
    text = body.decode(errors="replace")
    with contextlib.suppress(ValueError, KeyError, TypeError):
        text = json.loads(text)["error"]["message"]
    return " ".join(str(text).split())[:300]


def _translate(error: Exception, action: str) -> StoreError:
    if isinstance(error, _HttpFailure):
        return _translate_status(error, action)
    import aiohttp
    import gcsfs.retry
    import google.auth.exceptions

    said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    connection_failures = (
        aiohttp.ClientError,
        OSError,
        TimeoutError,
        concurrent.futures.CancelledError,
    )
    credential_failures = (
        google.auth.exceptions.GoogleAuthError,
        gcsfs.retry.HttpError,  # only for credentials that could not be renewed
        gcsfs.retry.NonRetryableError,
    )
    if isinstance(error, connection_failures) or getattr(error, "retryable", False):
        return TransientError(f"cannot {action}: {said}")
    if isinstance(error, credential_failures):
        return AccessDenied(f"cannot {action}: {said}; renew the credentials ({_CREDENTIALS})")
    return StoreError(f"cannot {action}: {said}; the chained exception shows where")


_CREDENTIALS = "gcloud auth application-default login, or GOOGLE_APPLICATION_CREDENTIALS"


def _translate_status(failure: _HttpFailure, action: str) -> StoreError:
    status = failure.status
    if status == 404:
        return NotFound(f"cannot {action}: {failure}")
    if status == 412:
        return PreconditionFailed(f"cannot {action}: {failure}")
    if status in (401, 403):
        return AccessDenied(
            f"cannot {action}: {failure}; check the credentials ({_CREDENTIALS}) and the roles "
            f"(readers need roles/storage.objectViewer, writers roles/storage.objectCreator too)"
        )
    if status in (408, 429) or status >= 500:
        return TransientError(f"cannot {action}: {failure}")
    return RejectedRequest(
        f"cannot {action}: {failure}; sending it again does not help: check the location's "
        f"spelling and the bucket's settings"
    )
