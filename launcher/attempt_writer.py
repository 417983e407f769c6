"""What attempts leave in the run's record, written beside the attempts, in order.

Only the start of an attempt is waited for: no worker starts before it is in the record. All else is
written by one thread, for which the next attempt does not wait. While the record is out nothing
of it is given up (`record_patience.py`).
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from hotstart.cache.errors import StoreError
from hotstart.launcher.outcome import Outcome, WorkerExit
from hotstart.launcher.record import RunRecord
from hotstart.launcher.record_patience import Patience

logger = logging.getLogger(__name__)


class AttemptWriter:
    """Writes the facts of one driver's attempts. For one thread; only `start` and `close` block."""

    def __init__(
        self, record: RunRecord, patience: Patience, is_interrupted: Callable[[], bool]
    ) -> None:
        self._record = record
        self._patience = patience
        self._is_interrupted = is_interrupted
        self._starter = secrets.token_hex(8)
        self._is_closing = False
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="hotstart-record")

    def start(
        self,
        number: int,
        info: Mapping[str, Any],
        may_start: Callable[[], bool],
        pause: Callable[[float], None],
    ) -> bool:
        """Record that an attempt begins, as soon as the record takes it; blocks for so long.

        False where `may_start`, which is asked before each try and after the last one, says no, or
        where the run was interrupted: then the attempt has no worker, and has ended if it is in the
        record at all. Raises `RunOwned` where another driver has started it, `StoreError` where
        the store refuses.
        """
        started = False

        def write() -> bool:
            nonlocal started
            if not may_start():
                return False
            started = True  # from here on: a try that failed may have arrived
            self._record.start_attempt(number, info, starter=self._starter)
            return may_start()

        try:
            if self._patience.keep(write, gives_up=self._is_interrupted, pause=pause):
                return True
        except StoreError:
            if not self._is_interrupted():
                raise
        if started:
            self._submit(self._end_unstarted, number)
        return False

    def first_step(self, number: int, reports: Sequence[Mapping[str, Any]]) -> None:
        """See `RunRecord.first_step`."""
        self._submit(self._record.first_step, number, reports)

    def differences(self, number: int, stage: str, found: Sequence[Mapping[str, Any]]) -> None:
        """See `RunRecord.differences`."""
        self._submit(self._record.differences, number, stage, found)

    def stacks(self, number: int, stacks: Mapping[int, str]) -> str:
        """Keep what the workers did; where it will be."""
        self._submit(self._record.stacks, number, stacks)
        return self._record.stacks_location(number)

    def end(
        self,
        number: int,
        outcome: Outcome,
        reports: Mapping[int, Mapping[str, Any]],
        hosts: Sequence[Mapping[str, Any]] = (),
        preemption: Sequence[Mapping[str, Any]] = (),
        first: WorkerExit | None = None,
    ) -> None:
        """Keep the workers' reports, and how the attempt and the `first` worker to fail ended."""
        info = {
            "ended_at_s": time.time(),
            "hosts": list(hosts),
            "preemption": list(preemption),
            "first_exit": first
            and {"host": first.host, "exit_code": first.exit_code, "signal": first.signal},
        }

        def write() -> None:
            try:
                self._record.worker_reports(number, reports)
            finally:
                self._record.end_attempt(number, outcome, info)

        self._submit(write)

    def then(self, act: Callable[..., None], *args: Any, **more: Any) -> Future[None]:
        """Do this after all that was given before it; it is not tried again."""
        return self._writer.submit(act, *args, **more)

    def close(self) -> None:
        """Wait for all of it, for as long as there is patience."""
        self._is_closing = True
        self._writer.shutdown()

    def _end_unstarted(self, number: int) -> None:
        if self._record.has_started(number, self._starter):
            reason = "the driver was told to stop, or superseded, before workers were started"
            outcome = Outcome("interrupted", reason, None)
            self._record.end_attempt(number, outcome, {"ended_at_s": time.time()})

    def _submit(self, write: Callable[..., None], *args: Any) -> None:
        self._writer.submit(self._keep, lambda: write(*args))

    def _keep(self, write: Callable[[], None]) -> None:
        try:
            self._patience.keep(write, gives_up=self._gives_up)
        except StoreError as error:  # the job goes on, or has ended, as it has
            logger.warning("something of an attempt is not in the record: %s", error)
        except Exception:  # a defect; no job fails for it
            logger.exception("something of an attempt is not in the record")

    def _gives_up(self) -> bool:
        return self._is_closing and self._is_interrupted()
