"""Submit a run through Ray's Jobs API, follow its log, and come back with its exit code."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hotstart.launcher.errors import ClusterUnreachable, ContactLost, UsageError, first_line
from hotstart.launcher.job_ending import Ending, ending_of
from hotstart.launcher.jobs_address import jobs_address
from hotstart.launcher.shipment import Submission
from hotstart.launcher.timed_call import within

logger = logging.getLogger(__name__)

_QUIET_S = 15.0  # without a word from the log before the cluster is looked at
_LOST_CONTACT_S = 60.0
_POLL_S = 0.5
_WAIT_FOR_PLACE_S = 5.0
_REFUSED_S = 30.0
_ANSWER_S = 30.0  # Ray's client itself waits for ever
_SLOWEST_BYTES_S = 256 << 10  # of an upload


@dataclass(frozen=True)
class Known:
    """A submission that a cluster has: Ray's word for its state, and the run directory."""

    status: str
    exit_code: int | None
    run_dir: str

    @property
    def lives(self) -> bool:
        """Whether its driver runs, or is to."""
        return self.status not in ("SUCCEEDED", "FAILED", "STOPPED")


class RayJobs:
    """The Jobs API of one cluster. All methods block; a head that hangs is waited for 30 s."""

    def __init__(self, address: str | None = None) -> None:
        """Connect to an address of `jobs_address.py`.

        Raises `ClusterUnreachable` where nothing answers within 30 s or the client is refused.
        """
        address = jobs_address(address, os.environ)
        os.environ["RAY_API_SERVER_ADDRESS"] = address  # Ray puts it over its argument
        from ray.exceptions import AuthenticationError
        from ray.job_submission import JobSubmissionClient

        try:
            with _ray_logs_from(logging.ERROR):
                self._client: Any = within(_ANSWER_S, lambda: JobSubmissionClient(address))
        except AuthenticationError as error:
            raise _refused(address, error) from error
        except Exception as error:  # of requests, json and Ray, and no type says which
            raise ClusterUnreachable(
                f"no Ray Jobs API at {address}: {first_line(error)}; {_hint(address, error)}"
            ) from error
        self.address: str = self._client.get_address()

    def submissions_of(self, run: str) -> dict[str, Known]:
        """What this cluster knows of submissions of runs of this name, by their id.

        Raises `ClusterUnreachable`.
        """
        try:
            jobs = within(_ANSWER_S, self._client.list_jobs)
        except Exception as error:  # of requests, json and Ray
            raise ClusterUnreachable(
                f"Ray at {self.address} does not list its jobs: {first_line(error)}"
            ) from error
        return {
            job.submission_id: Known(
                str(job.status), job.driver_exit_code, job.metadata.get("run_dir", "")
            )
            for job in jobs
            if job.submission_id and (job.metadata or {}).get("hotstart_run") == run
        }

    def submit(
        self,
        submission: Submission,
        tell: Callable[[str], None] = lambda text: None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> bool:
        """Upload what is needed and start the job; False where its id is taken already.

        A head that has just been started refuses jobs for some seconds, so it is asked again for
        up to 30 s; `tell` is told. Where its answer is lost, the job may have been taken: it is
        looked for, for up to 60 s, and sent again, under the same id, where it is not there.
        Raises `UsageError` where Ray refuses it, and `ContactLost` where it can't be known.
        """
        with tempfile.TemporaryDirectory(prefix="hotstart-submit-") as scratch:
            send = self._sender(submission, Path(scratch))
            deadline, told = clock() + _REFUSED_S, False
            lost_s: float | None = None  # when an answer was lost first
            while True:
                try:
                    with _ray_logs_from(logging.WARNING):
                        send()
                    return True
                except OSError as error:  # of requests too: the head has not said anything
                    lost_s = clock() if lost_s is None else lost_s
                    if self._is_taken(submission, error, tell, clock, sleep):
                        return True
                    if clock() - lost_s > _LOST_CONTACT_S:
                        raise ContactLost(
                            f"Ray at {self.address} does not answer {submission.submission_id} "
                            f"({first_line(error)}), and did not have it so far; submit it again "
                            f"with --run {submission.run}, which is attached to where it lives"
                        ) from error
                    deadline = max(deadline, clock() + _REFUSED_S)
                except Exception as error:  # Ray raises RuntimeError for what the head says
                    with contextlib.suppress(Exception):
                        if submission.submission_id in self.submissions_of(submission.run):
                            return lost_s is not None  # it may be this one's, else somebody's
                    why = self._refusal(error)
                    if not isinstance(error, RuntimeError) or clock() > deadline:
                        raise UsageError(why) from error
                    if not told:
                        tell(f"{why}; asking again for up to {_REFUSED_S:.0f} s")
                    told = True
                sleep(1.0)

    def _refusal(self, error: BaseException) -> str:
        return f"Ray at {self.address} does not take the job: {first_line(error)}"

    def _sender(self, submission: Submission, scratch: Path) -> Callable[[], Any]:
        runtime_env = submission.write(scratch)
        size_bytes = sum(path.stat().st_size for path in scratch.rglob("*") if path.is_file())
        timeout_s = _ANSWER_S + size_bytes / _SLOWEST_BYTES_S
        return lambda: within(
            timeout_s,
            lambda: self._client.submit_job(
                entrypoint=submission.entrypoint,
                submission_id=submission.submission_id,
                runtime_env=dict(runtime_env),
                metadata={"hotstart_run": submission.run, "run_dir": submission.run_dir},
                **submission.driver.as_request(),
            ),
        )

    def _is_taken(
        self,
        submission: Submission,
        lost: OSError,
        tell: Callable[[str], None],
        clock: Callable[[], float],
        sleep: Callable[[float], None],
    ) -> bool:
        """Whether the cluster has a submission though its answer was `lost`."""
        why = f"the answer of Ray at {self.address} to {submission.submission_id} is lost"
        tell(f"{why} ({first_line(lost)}); looking whether it has taken the job")
        deadline = clock() + _LOST_CONTACT_S
        while True:
            try:
                return submission.submission_id in self.submissions_of(submission.run)
            except ClusterUnreachable as error:
                if clock() > deadline:
                    raise ContactLost(
                        f"{why}, and so is the cluster ({error}): the job may run there; submit "
                        f"it again with --run {submission.run}, which is attached to where it lives"
                    ) from lost
            sleep(1.0)

    def nodes(self) -> list[dict[str, Any]]:
        """`resources` and `labels` of the nodes that live; empty where Ray doesn't tell."""
        from ray.util.state import list_nodes

        try:
            found = list_nodes(self.address, limit=10_000, raise_on_missing_output=False)
        except Exception as error:  # of requests, and Ray's own
            logger.info("the nodes of %s can't be listed: %s", self.address, error)
            return []
        return [
            {"resources": node.resources_total or {}, "labels": node.labels or {}}
            for node in found
            if node.state == "ALIVE"
        ]

    def stop(self, submission_id: str) -> None:
        """Tell a job to stop; returns at once, and says nothing where it has ended."""
        with contextlib.suppress(Exception):
            within(_ANSWER_S, lambda: self._client.stop_job(submission_id))

    def follow(
        self,
        submission_id: str,
        write: Callable[[str], None],
        waiting: Callable[[float], None] = lambda waited_s: None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> Ending:
        """Hand on the job's log as it grows and say how the job ended; blocks until it has.

        `waiting` is called every 5 s for as long as its driver has not started, and may raise. A
        lost connection, or a head that does not answer, is tried again for up to 60 s without
        doubling a line. Raises `ContactLost` after that; the job may then still run.
        """
        import aiohttp
        from ray.exceptions import AuthenticationError

        log = _Log(write)
        heard_s = started_s = clock()

        def heard() -> None:
            nonlocal heard_s
            heard_s = clock()

        next_word_s = started_s + _WAIT_FOR_PLACE_S
        while True:
            try:
                info = self._info(submission_id)
                heard()
                if str(info.status) != "PENDING":
                    with _ray_logs_from(logging.WARNING):
                        asyncio.run(self._tail(submission_id, log, heard))
                    info = self._info(submission_id)
                    heard()
                if info.status.is_terminal():
                    return ending_of(str(info.status), info.driver_exit_code, info.message)
                if str(info.status) == "PENDING" and heard_s >= next_word_s:
                    next_word_s = heard_s + _WAIT_FOR_PLACE_S
                    waiting(heard_s - started_s)
            except AuthenticationError as error:
                raise _refused(self.address, error) from error
            except (OSError, RuntimeError, aiohttp.ClientError, ClusterUnreachable) as error:
                logger.info("lost the log of %s: %s", submission_id, error)
                if clock() - heard_s > _LOST_CONTACT_S:
                    raise ContactLost(
                        f"lost contact with Ray at {self.address}: {first_line(error)}; job "
                        f"{submission_id} may still run, and its run record tells how it ended"
                    ) from error
            sleep(_POLL_S)

    def _info(self, submission_id: str) -> Any:
        """Ray's `JobDetails`; raises TimeoutError where the head hangs."""
        return within(_ANSWER_S, lambda: self._client.get_job_info(submission_id))

    async def _tail(self, submission_id: str, log: _Log, heard: Callable[[], None]) -> None:
        """The log from its start to the job's end; raises where the head stops answering.

        Ray's client would wait for ever for a head that hangs, or was taken away without a
        goodbye. `heard` is called with each sign of life.
        """
        has_ended = False
        log.rewind()
        chunks = aiter(self._client.tail_job_logs(submission_id))
        reading = asyncio.ensure_future(anext(chunks))
        try:
            while True:
                done, _ = await asyncio.wait({reading}, timeout=_QUIET_S)
                if done:
                    log.feed(reading.result())
                    heard()
                    reading = asyncio.ensure_future(anext(chunks))
                else:
                    had_ended = has_ended
                    info = await asyncio.to_thread(self._info, submission_id)
                    heard()
                    has_ended = info.status.is_terminal()
                    if had_ended:  # and its log has had a while to end too
                        return
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


def _refused(address: str, error: BaseException) -> ClusterUnreachable:
    return ClusterUnreachable(
        f"Ray at {address} refuses this client ({first_line(error)}): its token is missing or "
        "another; set RAY_AUTH_MODE=token and the cluster's token in RAY_AUTH_TOKEN, or in a file "
        "that RAY_AUTH_TOKEN_PATH names"
    )


def _hint(address: str, error: BaseException) -> str:
    from requests.exceptions import SSLError

    if isinstance(error.__context__, SSLError):
        return (
            "for a certificate of your own authority set REQUESTS_CA_BUNDLE and SSL_CERT_FILE to "
            "its file"
        )
    return "check --address, it is the dashboard's URL"


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
