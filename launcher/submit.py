"""Submit a run through Ray's Jobs API, follow its log, and come back with its exit code."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import logging
import os
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from hotstart.launcher.errors import (
    ClusterUnreachable,
    ExitCode,
    LauncherError,
    UsageError,
    first_line,
)
from hotstart.launcher.shipment import Submission, stage_package

logger = logging.getLogger(__name__)

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
_CONNECT_S = 10.0
_QUIET_S = 15.0  # without a word from the log before the cluster is looked at
_LOST_CONTACT_S = 60.0


@dataclass(frozen=True)
class Ending:
    """How a submitted job ended: Ray's word for it, hotstart's exit code, and a reason."""

    status: str
    exit_code: ExitCode
    reason: str


class RayJobs:
    """The Jobs API of one cluster. All methods block."""

    def __init__(self, address: str | None = None) -> None:
        """Connect to `address`, else `RAY_API_SERVER_ADDRESS`, `RAY_ADDRESS`, else port 8265 here.

        An address is a dashboard's URL, or what `ray.init` takes. Raises `ClusterUnreachable`
        where nothing answers within 10 s or the client is refused.
        """
        environ = os.environ
        given = environ.get("RAY_API_SERVER_ADDRESS") or environ.get("RAY_ADDRESS")
        address = _as_url(address or given or DEFAULT_ADDRESS)
        _check_listening(address)
        environ["RAY_API_SERVER_ADDRESS"] = address  # Ray puts both variables over its argument
        from ray.exceptions import AuthenticationError
        from ray.job_submission import JobSubmissionClient

        try:
            with _ray_logs_from(logging.ERROR):
                self._client: Any = JobSubmissionClient(address)
        except AuthenticationError as error:
            raise ClusterUnreachable(
                f"Ray at {address} refuses this client: its token is missing or another; set "
                "RAY_AUTH_MODE=token and the cluster's token in RAY_AUTH_TOKEN, or in a file "
                "that RAY_AUTH_TOKEN_PATH names"
            ) from error
        except Exception as error:  # of requests, json and Ray, and no type says which
            raise ClusterUnreachable(
                f"no Ray Jobs API at {address}: {first_line(error)}; check --address, it is the "
                "dashboard's URL"
            ) from error
        self.address: str = self._client.get_address()

    def submit(self, submission: Submission) -> None:
        """Upload what is needed and start the job; raises `UsageError` where Ray refuses it."""
        with tempfile.TemporaryDirectory(prefix="hotstart-submit-") as scratch:
            runtime_env = {
                "working_dir": str(submission.folder),
                "py_modules": [str(stage_package(Path(scratch)))],
                "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(submission.stop_wait_s)},
            }
            try:
                with _ray_logs_from(logging.WARNING):
                    self._client.submit_job(
                        entrypoint=submission.entrypoint,
                        submission_id=submission.submission_id,
                        runtime_env=runtime_env,
                        metadata={"hotstart_run": submission.run, "run_dir": submission.run_dir},
                    )
            except Exception as error:  # Ray raises RuntimeError and ValueError for all of it
                raise UsageError(
                    f"Ray at {self.address} does not take the job: {first_line(error)}; the "
                    f"working folder is {submission.folder}, and a .rayignore file in it keeps "
                    "what is large from being sent"
                ) from error

    def follow(
        self,
        submission_id: str,
        write: Callable[[str], None],
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> Ending:
        """Hand on the job's log as it grows and say how the job ended; blocks until it has.

        A lost connection is taken up again for up to 60 s without doubling a line. Raises
        `LauncherError` after that; the job may then still run.
        """
        import aiohttp

        log = _Log(write)
        heard_s = clock()
        while True:
            try:
                with _ray_logs_from(logging.WARNING):
                    asyncio.run(self._tail(submission_id, log))
                info = self._client.get_job_info(submission_id)
                heard_s = clock()
                if info.status.is_terminal():
                    return ending_of(str(info.status), info.driver_exit_code, info.message)
            except (OSError, RuntimeError, aiohttp.ClientError, ClusterUnreachable) as error:
                logger.info("lost the log of %s: %s", submission_id, error)
                if clock() - heard_s > _LOST_CONTACT_S:
                    raise LauncherError(
                        f"lost contact with Ray at {self.address}: {first_line(error)}; job "
                        f"{submission_id} may still run, and its run record tells how it ended"
                    ) from error
            sleep(0.5)

    async def _tail(self, submission_id: str, log: _Log) -> None:
        """The log from its start to the job's end; raises where the host stops answering.

        Ray's client would wait for ever for a head that was taken away without a goodbye.
        """
        log.rewind()
        chunks = aiter(self._client.tail_job_logs(submission_id))
        reading = asyncio.ensure_future(anext(chunks))
        try:
            while True:
                done, _ = await asyncio.wait({reading}, timeout=_QUIET_S)
                if done:
                    log.feed(reading.result())
                    reading = asyncio.ensure_future(anext(chunks))
                else:
                    await asyncio.to_thread(_check_listening, self.address)
        except StopAsyncIteration:
            return
        finally:
            reading.cancel()


class _Log:
    """Hands on each character of a log once, however often it is read from its start."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._written = 0
        self._position = 0

    def rewind(self) -> None:
        self._position = 0

    def feed(self, text: str) -> None:
        fresh = text[max(0, self._written - self._position) :]
        self._position += len(text)
        if fresh:
            self._written = self._position
            self._write(fresh)


def ending_of(status: str, driver_exit_code: int | None, message: str | None) -> Ending:
    """What Ray tells of a job that has ended, in hotstart's words."""
    if status == "SUCCEEDED":
        return Ending(status, ExitCode.DONE, "done")
    if status == "STOPPED":
        return Ending(status, ExitCode.INTERRUPTED, "the job was stopped")
    if driver_exit_code is None:
        reason = (message or "").strip().partition("\n")[0]
        return Ending(status, ExitCode.JOB_FAILED, reason or "Ray gives no reason")
    if driver_exit_code < 0:
        name = signal.Signals(-driver_exit_code).name
        reason = f"the launcher on the cluster was killed by {name}"
        return Ending(status, ExitCode.JOB_FAILED, reason)
    reason = f"the launcher on the cluster ended with exit code {driver_exit_code}"
    if driver_exit_code in (126, 127):  # see sh(1)
        reason += "; the head's PATH has no `python` that runs"
    known = driver_exit_code in set(ExitCode)
    return Ending(status, ExitCode(driver_exit_code) if known else ExitCode.JOB_FAILED, reason)


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


def _check_listening(address: str) -> None:
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


def _host_and_port(address: str) -> tuple[str, int] | tuple[None, None]:
    """None for `auto` and for addresses of other kinds, which are Ray's to understand."""
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        return None, None
    return (parts.hostname, port) if parts.hostname and port else (None, None)


@contextlib.contextmanager
def _ray_logs_from(level: int) -> Iterator[None]:
    """Keep what Ray's client logs below `level` off the terminal for the length of the block."""
    handlers = logging.getLogger("ray").handlers
    before = [handler.level for handler in handlers]
    for handler in handlers:
        handler.setLevel(level)
    try:
        yield
    finally:
        for handler, old in zip(handlers, before, strict=True):
            handler.setLevel(old)
