"""Workers' logs on their way to a bucket while the job runs.

The agent writes each worker's output to its own disk (`worker_log.py`) and a thread copies what
is new into the run's store, one create-only object a chunk:

    <run>/logs/attempt-<n:05d>/worker-<i:05d>/<offset:015d>-<milliseconds:013d>

The offset is that of the chunk's first byte in all that the worker has written, the time is the
host's wall clock when it was taken. A chunk is taken 5 s after the one before (30 s in an attempt
that is older than an hour) if there is output, and at once when a worker has ended; so an agent
that is killed loses that much. Memory holds one chunk, the disk `LogBounds` a worker. The bucket
keeps as much: past the bounds older chunks are deleted; where the role may not delete, nothing
more is shipped but the last MiB. Failures are retried with the next round and fail nothing.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hotstart.cache.errors import AccessDenied, StoreError, TransientError
from hotstart.launcher.worker_log import LogBounds, WorkerLog

if TYPE_CHECKING:
    from hotstart.cache.store import Store

logger = logging.getLogger(__name__)

CHUNK_BYTES = 1 << 20
SHIP_S = 5.0
SHIP_LATER_S = 30.0
_LATER_S = 3600.0
_ATTEMPTS_KEPT = 3  # that are not shipped yet: a bucket that is out must not fill the disk
_DEADLINE_S = 10.0


def chunk_name(attempt: int, process_index: int, offset: int, at_ms: int) -> str:
    """Where a chunk is, below the run's logs."""
    return f"attempt-{attempt:05d}/worker-{process_index:05d}/{offset:015d}-{at_ms:013d}"


@dataclass
class _Shipped:
    """One worker's log, and what of it is in the store."""

    attempt: int
    process_index: int
    log: WorkerLog
    offset: int = 0
    tail: list[tuple[str, int]] = field(default_factory=list)  # chunks behind the head: name, size
    full: bool = False

    @property
    def done(self) -> bool:
        return self.log.closed and self.offset >= self.log.end


class LogShipper:
    """Copies logs to one location; a thread of its own from the first `add` on."""

    def __init__(
        self,
        open_location: Callable[[], Store],
        bounds: LogBounds | None = None,
        *,
        interval_s: Callable[[float], float] = lambda age_s: (
            SHIP_S if age_s < _LATER_S else SHIP_LATER_S
        ),
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`open_location` is called in the thread; `interval_s` goes by an attempt's age."""
        self._open_location = open_location
        self._bounds = bounds or LogBounds()
        self._interval_s = interval_s
        self._clock = clock
        self._wall = wall
        self._store: Store | None = None
        self._changed = threading.Condition()
        self._logs: list[_Shipped] = []
        self._began_at = clock()
        self._hurry = False
        self._rounds = 0
        self._closed = False
        self._failing = False
        self._thread: threading.Thread | None = None

    def add(self, attempt: int, process_index: int, log: WorkerLog) -> None:
        """Ship this log from now on."""
        with self._changed:
            if not any(shipped.attempt == attempt for shipped in self._logs):
                self._began_at = self._clock()
            self._logs.append(_Shipped(attempt, process_index, log))
            kept = sorted({shipped.attempt for shipped in self._logs})[-_ATTEMPTS_KEPT:]
            if any(shipped.attempt not in kept for shipped in self._logs):
                logger.warning("logs of attempts before %d are not in the run's store", kept[0])
            self._logs = [shipped for shipped in self._logs if shipped.attempt in kept]
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="hotstart-logs", daemon=True)
                self._thread.start()

    def hurry(self) -> None:
        """Ship what there is now; does not block."""
        with self._changed:
            self._hurry = True
            self._changed.notify_all()

    def flush(self, timeout_s: float) -> bool:
        """Block until the logs of ended workers are shipped; False at the timeout or a failure."""
        deadline = self._clock() + timeout_s
        with self._changed:
            if not self._logs:
                return True
            self._hurry = True
            self._changed.notify_all()
            asked = self._rounds
            self._changed.wait_for(
                lambda: self._all_done() or self._rounds > asked + 1,
                timeout=max(0.0, deadline - self._clock()),
            )
            return self._all_done()

    def close(self, timeout_s: float) -> None:
        """Ship what is left, at most for `timeout_s`, and end the thread."""
        self.flush(timeout_s)
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _all_done(self) -> bool:
        return all(shipped.done for shipped in self._logs)

    def _run(self) -> None:
        while True:
            with self._changed:
                interval_s = self._interval_s(self._clock() - self._began_at)
                self._changed.wait_for(lambda: self._hurry or self._closed, timeout=interval_s)
                if self._closed:
                    return
                self._hurry = False
                logs = list(self._logs)
            failed = False
            for shipped in logs:
                try:
                    self._ship(shipped)
                except Exception as error:  # nothing about a log may end more than its own copy
                    level = logging.DEBUG if self._failing else logging.WARNING
                    logger.log(level, "workers' logs are not in the run's store for now: %s", error)
                    self._failing = failed = True
                    if isinstance(error, TransientError):  # each of the others would wait as long
                        break
            self._failing = failed
            with self._changed:
                self._rounds += 1
                self._logs = [shipped for shipped in self._logs if not shipped.done]
                self._changed.notify_all()

    def _ship(self, shipped: _Shipped) -> None:
        if self._store is None:
            self._store = self._open_location()
        while True:
            closed = shipped.log.closed  # before the look: what is read then is all
            if shipped.full:
                if not closed:
                    return
                shipped.offset = max(shipped.offset, shipped.log.end - CHUNK_BYTES)
            offset, data = shipped.log.read(shipped.offset, CHUNK_BYTES)
            if not data:
                if closed:  # also where it could not be written to the disk
                    shipped.offset = shipped.log.end
                return
            at_ms = int(self._wall() * 1000)
            name = chunk_name(shipped.attempt, shipped.process_index, offset, at_ms)
            self._store.create(name, data)
            shipped.offset = offset + len(data)
            if offset >= self._bounds.head_bytes:
                shipped.tail.append((name, len(data)))
                self._drop_oldest(self._store, shipped)

    def _drop_oldest(self, store: Store, shipped: _Shipped) -> None:
        over = sum(size for _, size in shipped.tail)
        over -= self._bounds.segment_bytes * self._bounds.segments
        while over > 0 and not shipped.full:
            name, size = shipped.tail[0]
            try:
                stat = store.stat(name)
                if stat is not None:
                    store.delete(name, stat.generation)
            except AccessDenied as error:
                logger.warning("worker %d: its log ends here: %s", shipped.process_index, error)
                shipped.full = True
                return
            except StoreError as error:
                logger.debug("%s stays for now: %s", name, error)
                return
            shipped.tail.pop(0)
            over -= size


def shipper_to(log_location: str) -> LogShipper:
    """A shipper to a run's logs in a bucket, with this host's credentials."""

    def open_location() -> Store:
        from hotstart.cache.store import open_store

        return open_store(log_location, deadline_s=_DEADLINE_S)

    return LogShipper(open_location)
