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
import contextvars
import os
import socket
import threading
import time
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hotstart.cache.errors import AccessDenied, StoreError, TransientError
from hotstart.cache.gcs_answers import (
    CREDENTIALS,
    HttpFailure,
    error_text,
    retry_after_s,
    translate_status,
)
from hotstart.cache.retry import SLOWEST_BYTES_PER_S, try_timeout_s

CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 20.0
CLOSE_TIMEOUT_S = 1.0


class _TooSlow(Exception):
    """A try has used up its own bound."""


# The bound of the request that the current task sends; its answer's length moves it.
_bound: contextvars.ContextVar[asyncio.Timeout | None] = contextvars.ContextVar(
    "hotstart_request_bound", default=None
)


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
        operation_s: float | None = None,
        **parameters: str | int | Sequence[str] | None,
    ) -> tuple[Mapping[str, str], bytes]:
        """Send one request and return the headers and the body of the answer.

        `path` is relative to `/storage/v1/`, or to `/upload/storage/v1/` where it starts with
        `upload/`; each `{}` in it stands for one of `path_parts`, quoted. Blocks for `timeout_s`
        at most (longer only while the first credentials are looked for), and for no more than one
        try may take of an operation with the deadline `operation_s`, where that is given: see
        `try_timeout_s`. `action` says in error messages what was tried. Raises `NotFound`,
        `PreconditionFailed` and `StoreError`.
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
            size_bytes = len(data or b"")
            try_s = timeout_s if operation_s is None else try_timeout_s(operation_s, size_bytes)
            future = asyncio.run_coroutine_threadsafe(_within(try_s, call), filesystem.loop)
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


async def _within(
    try_s: float, call: Coroutine[Any, Any, tuple[Mapping[str, str], bytes]]
) -> tuple[Mapping[str, str], bytes]:
    started = time.monotonic()
    bound = asyncio.timeout(try_s)
    _bound.set(bound)
    try:
        async with bound:
            return await call
    except TimeoutError as error:
        if not bound.expired():
            raise
        raise _TooSlow(f"no full answer within {time.monotonic() - started:.1f} s") from error


def _allow_for(answer_bytes: int) -> None:
    """Move the bound of this task's request by what an answer of this length may take."""
    bound = _bound.get()
    when = bound.when() if bound is not None else None
    if bound is not None and when is not None and not bound.expired():
        bound.reschedule(when + answer_bytes / SLOWEST_BYTES_PER_S)


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
            text = error_text(await response.read())
            raise HttpFailure(response.status, text, retry_after_s(response.headers))
        _allow_for(response.content_length or 0)

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


def _translate(error: Exception, action: str) -> StoreError:
    if isinstance(error, HttpFailure):
        return translate_status(error, action)
    if isinstance(error, _TooSlow):
        return TransientError(f"cannot {action}: {error}")
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
    # A blip while a token is renewed: google.auth and gcsfs wrap it as if the token were bad.
    blip = any(
        isinstance(link, google.auth.exceptions.TransportError) or getattr(link, "retryable", False)
        for link in _causes(error)
    )
    if blip or isinstance(error, connection_failures):
        return TransientError(f"cannot {action}: {said}")
    if isinstance(error, credential_failures):
        return AccessDenied(f"cannot {action}: {said}; renew the credentials ({CREDENTIALS})")
    return StoreError(f"cannot {action}: {said}; the chained exception shows where")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__
