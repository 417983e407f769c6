"""`restart --watch`: looks after a run until it is done or given up.

The driver runs in a child process, because a driver may be killed by what it has to survive: Ray
ends the process that lost its head, the kernel one that is out of memory. This process holds
nothing but the record's location, and the record decides: while another owner lives it waits, when
a run's owner has gone without an end, or its cluster was away, it starts a driver, and an end that
the job is responsible for (done, failed, budget spent, interrupted, stopped) is its own end. While
it has no driver `hotstart stop` reaches it by the record too (`watchers.py`).
"""

from __future__ import annotations

import contextlib
import logging
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hotstart.cache.errors import StoreError
from hotstart.launcher.cluster import check_address
from hotstart.launcher.errors import ClusterUnreachable, ExitCode, first_line
from hotstart.launcher.facts import RunEnd, state_of
from hotstart.launcher.identity import OwnerIdentity
from hotstart.launcher.record import RunRecord
from hotstart.launcher.stopping import stop_reason
from hotstart.launcher.watchers import WatcherFacts

logger = logging.getLogger(__name__)

POLL_S = 2.0
_WORD_S = 60.0
_FIRST_WAIT_S = 1.0
_LONGEST_WAIT_S = 60.0
# What a driver ends with only where its run has ended, whether or not the record says so.
_FINAL = (ExitCode.DONE, ExitCode.BUDGET_SPENT, ExitCode.CACHE_REQUIRED)
_STEADY_S = 120.0  # a driver that lived for so long did not fail by its start


@dataclass(frozen=True)
class Watch:
    """What to watch with: the driver's command line, where its cluster is, how long to wait."""

    command: Sequence[str]
    overrides: Sequence[str]
    address: str | None
    cluster_s: float | None


class Watcher:
    """Looks after one run. `run` blocks until that is over, or `stop` was called."""

    def __init__(
        self,
        record: RunRecord,
        watch: Watch,
        tell: Callable[[str], None],
        *,
        poll_s: float = POLL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._record = record
        self._watch = watch
        self._tell = tell
        self._poll_s = poll_s
        self._clock = clock
        self._me = OwnerIdentity.of_this_process()
        self._facts = WatcherFacts(record, self._me)
        self._stopped = threading.Event()
        self._child: subprocess.Popen[bytes] | None = None
        self._overrides = tuple(watch.overrides)
        self._word_at: dict[str, float] = {}

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Pass a signal on to the driver, if there is one, and end; safe in a signal handler."""
        self._stopped.set()
        child = self._child
        if child is not None and child.poll() is None:
            child.send_signal(number)

    def run(self) -> int:
        """The exit code to end with: the run's, or 130 where it was told to stop."""
        try:
            return self._run()
        finally:
            with contextlib.suppress(StoreError):
                self._facts.go()

    def _run(self) -> int:
        wait_s, seen = _FIRST_WAIT_S, self._end()
        while not self._stopped.is_set():
            end = self._end()
            if end is not None and not end.may_restart and end != seen:
                return self._over(end)
            if end is not None and end.state == "done":
                return self._over(end)
            if self._is_owned():
                self._word("owned", "another driver looks after the run; waiting for its end")
                self._wait(self._poll_s)
                continue
            if not self._wait_for_cluster():
                return int(ExitCode.USAGE)
            self._look_for_request()
            if self._stopped.is_set():
                break
            seen = self._end()
            began = self._clock()
            code = self._drive()
            end = self._end()
            if end is not None and end != seen:
                self._overrides = ()  # they are in the record now
                if not end.may_restart:
                    return self._over(end)
            elif code in _FINAL:
                self._tell(
                    f"the run is over (exit code {code}), though its record has no end of it"
                )
                return code
            elif code == ExitCode.USAGE and self._has_cluster() and not self._is_owned():
                return code  # it has said why
            wait_s = _FIRST_WAIT_S if self._clock() - began > _STEADY_S else wait_s
            if not self._stopped.is_set():
                why = f"ended with code {code}" if code >= 0 else f"was ended by signal {-code}"
                self._tell(f"the driver {why}; looking at the run again in {wait_s:.0f} s")
            self._wait(wait_s)
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
        end = self._end()
        return int(ExitCode.INTERRUPTED) if end is None or end == seen else end.exit_code

    def _over(self, end: RunEnd) -> int:
        self._tell(f"the run is {end.state}: {end.reason}")
        return end.exit_code

    def _end(self) -> RunEnd | None:
        """The run's end where it is that of its latest owner."""
        while True:
            try:
                owner, end = self._record.owner(), self._record.end()
                return None if end is None or owner is None or end.epoch < owner.epoch else end
            except StoreError as error:
                self._word("store", f"the run's record can't be read: {first_line(error)}")
                if self._wait(self._poll_s):
                    return None

    def _is_owned(self) -> bool:
        """Whether a driver may live that has not ended the run; it is watched by who takes over."""
        try:
            owner, end = self._record.owner(), self._record.end()
            if state_of(owner, end, self._me) == "running":
                return True
            if state_of(owner, end, self._me) != "unknown" or owner is None:
                return False
            self._wait(self._poll_s)
            now = self._record.owner()
            moved = now is None or now.epoch != owner.epoch or now.beats != owner.beats
            return moved or self._seems_alive(owner.beats)
        except StoreError as error:
            self._word("store", f"the run's record can't be read: {first_line(error)}")
            return True

    def _seems_alive(self, beats: Any) -> bool:
        """Whether the beat moves within 10 s; `take_ownership` watches for longer."""
        until = self._clock() + 10.0
        while self._clock() < until and not self._wait(self._poll_s):
            now = self._record.owner()
            if now is None or now.beats != beats:
                return True
        return False

    def _wait_for_cluster(self) -> bool:
        """Block until a cluster answers at the address; False where that took too long."""
        began = self._clock()
        while not self._stopped.is_set():
            try:
                check_address(self._watch.address)
                return True
            except ClusterUnreachable as error:
                limit_s, waited_s = self._watch.cluster_s, self._clock() - began
                if limit_s is not None and waited_s >= limit_s:
                    self._tell(f"{error}; gave up after {waited_s:.0f} s (--wait-cluster)")
                    return False
                self._word("cluster", f"waiting for the cluster: {error}")
            self._wait(self._poll_s)
        return True

    def _has_cluster(self) -> bool:
        try:
            check_address(self._watch.address)
        except ClusterUnreachable:
            return False
        return True

    def _drive(self) -> int:
        self._tell("starting a driver")
        # A group of its own: the terminal's Ctrl-C is passed on, and must not come twice.
        command = [*self._watch.command, *self._overrides]
        self._child = subprocess.Popen(command, process_group=0)
        if self._stopped.is_set():  # the signal came before there was anybody to pass it to
            self._child.terminate()
        try:
            return self._child.wait()
        finally:
            self._child = None

    def _wait(self, delay_s: float) -> bool:
        """Wait, as long as nobody asks it to stop; whether somebody has."""
        until = self._clock() + delay_s
        while not self._stopped.is_set() and (left_s := until - self._clock()) > 0:
            self._look_for_request()
            self._stopped.wait(min(left_s, self._poll_s))
        return self._stopped.is_set()

    def _look_for_request(self) -> None:
        with contextlib.suppress(StoreError):  # the next look finds it
            self._facts.come()
            request = self._facts.stop_request()
            if request is not None and not self._stopped.is_set():
                self._tell(f"{stop_reason(request)}; nobody looks after the run any more")
                self._stopped.set()

    def _word(self, about: str, text: str) -> None:
        """Say this now, and again once a minute."""
        now = self._clock()
        if now - self._word_at.get(about, -_WORD_S) >= _WORD_S:
            self._word_at[about] = now
            self._tell(text)


def driver_command(
    run: str, run_dir: str, address: str | None, *, as_json: bool, verbose: int
) -> list[str]:
    """The command line of the driver that a watcher starts; overrides go behind it."""
    command = [sys.executable, "-P", "-m", "hotstart.launcher.cli"]
    command += ["-" + "v" * verbose] if verbose else []
    command += ["restart", run, "--run-dir", run_dir]
    command += ["--address", address] if address is not None else []
    return command + (["--json"] if as_json else [])
