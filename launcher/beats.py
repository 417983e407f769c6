"""The beats by which an owner keeps its run, and what it may believe between them.

An owner is sure of the run for `SURE_S` from the begin of a beat that is known to be written. That
ends before anybody may take the run (`ownership.py`), so while it is sure nobody has. An owner that
was not sure when its beat was written, since the store or itself had stood still, may have been
taken for dead just before. It looks for a later claim *after* that beat before it is sure again, as
who claims looks for a beat after the claim: one of the two sees the other.

Beats have a policy of their own, not the record's 30 s: a try begins every `BEAT_AGAIN_S` until one
is written, also while others hang, and each operation has `BEAT_DEADLINE_S`. So an outage that is
over within `SURE_S - BEAT_INTERVAL_S - BEAT_AGAIN_S`, 15 s, is not noticed.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from hotstart.cache.errors import AccessDenied
from hotstart.launcher.errors import first_line
from hotstart.launcher.facts import Owner
from hotstart.launcher.owner_watch import SURE_S
from hotstart.launcher.record import RunRecord

logger = logging.getLogger(__name__)

BEAT_INTERVAL_S = 5.0
BEAT_AGAIN_S = 2.0
BEAT_DEADLINE_S = 12.0  # of each operation on the store; `cache/retry.py` gives a try a third of it
_MOST_TRIES = 6  # at once
_LOOK_S = 1.0


class Ownership:
    """The right to start workers for a run, kept by beats. Made by `take_ownership`.

    Safe among threads.
    """

    def __init__(
        self,
        record: RunRecord,
        epoch: int,
        *,
        claimed_at: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Ownership of an epoch whose claim the caller has created, no sooner than `claimed_at`.

        That is a time of `clock`; None is now. `record` is for beats alone: its store's operations
        end with `BEAT_DEADLINE_S`.
        """
        self.epoch = epoch
        self._record = record
        self._lock = threading.Lock()
        self._beat = 0
        self._clock = clock
        self._beat_at = clock() if claimed_at is None else claimed_at
        self._problem = ""
        self._superseded = False
        self._may_delete = True
        self._tries = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def superseded(self) -> bool:
        """Whether a beat has found that another driver has taken the run."""
        return self._superseded

    def beat_age_s(self) -> float:
        """Seconds since the latest beat that is known to be written was begun."""
        return self._clock() - self._beat_at

    def doubt(self) -> str | None:
        """Why this owner can't be sure of the run now, or None where it is."""
        if self._superseded:
            return "another driver has taken the run"
        age_s = self.beat_age_s()
        if age_s < SURE_S:
            return None
        why = f": {self._problem}" if self._problem else ""
        return f"the owner's beat was not written for {age_s:.0f} s{why}"

    def beat(
        self,
        says: Mapping[str, Any] | None = None,
        on_stop: Callable[[], None] = lambda: None,
    ) -> bool:
        """Say that this owner lives; False once another owns the run, and then nothing is written.

        `says` is kept with the beat. `on_stop` is called if somebody has asked to stop the run.
        Blocks on the store (a list, a create, a delete; another list after a silence); raises
        `StoreError`.
        """
        begun_at = self._clock()
        owner, stop_asked = self._look()
        if self._superseded:
            return False
        with self._lock:
            self._beat += 1  # before the call: a beat whose fate is unknown is not sent again
            number = self._beat
        self._record.create_fact(self._name_of(number), says or {})
        if self.beat_age_s() >= SURE_S:  # somebody may have claimed the run between look and beat
            _, stop_asked = self._look()
            if self._superseded:
                return False
        with self._lock:
            self._beat_at, self._problem = max(self._beat_at, begun_at), ""
        if stop_asked:
            on_stop()
        if owner is not None:
            self._delete_older(owner, number)
        return True

    def keep(
        self,
        on_superseded: Callable[[], None],
        *,
        interval_s: float = BEAT_INTERVAL_S,
        on_stop: Callable[[], None] = lambda: None,
        says: Callable[[], Mapping[str, Any]] = dict,
    ) -> None:
        """Beat in a background thread until `stop`; errors of the store are logged, not fatal.

        `on_superseded` is called once, in that thread, when another driver has taken the run, and
        `on_stop` when somebody has asked to stop it, maybe again and in several threads. A
        directory is looked at each second for that, a bucket with each beat. `says` gives what a
        beat is to say.
        """
        self._thread = threading.Thread(
            target=self._keep,
            args=(on_superseded, interval_s, on_stop, says),
            name="owner-beats",
            daemon=True,
        )
        self._thread.start()

    def stop(self, timeout_s: float = 1.0) -> None:
        """End the background beats; blocks for at most `timeout_s`.

        A request to a slow store may outlast it: a beat after the run's end changes nothing.
        """
        self._stop.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout_s)

    def _keep(
        self,
        on_superseded: Callable[[], None],
        interval_s: float,
        on_stop: Callable[[], None],
        says: Callable[[], Mapping[str, Any]],
    ) -> None:
        again_s = min(BEAT_AGAIN_S, interval_s)
        wait_s = interval_s
        while not self._wait(wait_s, on_stop):
            begun_at = self._clock()
            ended = self._stop
            try:
                if self._tries < _MOST_TRIES:
                    ended = self._begin(says(), on_stop)
            except Exception as error:  # such as no thread to be had; without beats all is lost
                logger.warning("run %s: no beat is tried: %s", self._record.name, error)
            ended.wait(again_s)
            if self._superseded:
                name = self._record.name
                logger.warning("run %s: epoch %d is superseded", name, self.epoch)
                on_superseded()
                return
            is_written = self._beat_at >= begun_at
            wait_s = interval_s if is_written else max(0.0, begun_at + again_s - self._clock())

    def _begin(self, says: Mapping[str, Any], on_stop: Callable[[], None]) -> threading.Event:
        """Begin a try to beat, on a thread of its own; what is set when it has ended."""
        ended = threading.Event()
        with self._lock:
            self._tries += 1

        def beat() -> None:
            try:
                self.beat(says, on_stop)
            except Exception as error:  # whatever it is, it must not cost the run its owner
                level = logging.DEBUG if self._problem else logging.WARNING
                run = self._record.name
                logger.log(level, "run %s: an owner's beat was not written: %s", run, error)
                self._problem = first_line(error)
            finally:
                with self._lock:
                    self._tries -= 1
                ended.set()

        try:
            threading.Thread(target=beat, name="owner-beat", daemon=True).start()
        except RuntimeError:
            with self._lock:
                self._tries -= 1
            raise
        return ended

    def _wait(self, interval_s: float, on_stop: Callable[[], None]) -> bool:
        """Wait for the next beat; whether beats are to end."""
        if self._record.store.url.startswith("/"):  # a look there costs nothing
            while interval_s > _LOOK_S:
                if self._stop.wait(_LOOK_S):
                    return True
                interval_s -= _LOOK_S
                with contextlib.suppress(Exception):  # the next look, or beat, sees it too
                    if self._record.stop_request(self.epoch) is not None:
                        on_stop()
        return self._stop.wait(interval_s)

    def _look(self) -> tuple[Owner | None, bool]:
        """Look who owns the run; the owner where that was listed, whether a stop is asked for."""
        # Where old beats stay, all of them would be listed anew with each.
        owner = self._record.owner(identify=False) if self._may_delete else None
        if owner is not None:
            later, stop_asked = owner.epoch != self.epoch, owner.stop_asked
        elif self._may_delete:  # the record was removed
            later, stop_asked = True, False
        else:
            later, stop_asked = self._record.signs_for(self.epoch)
        if later:  # for good: another try may have looked before
            self._superseded = True
        return owner, stop_asked

    def _delete_older(self, owner: Owner, number: int) -> None:
        claim, mine = (f"{self._record.name}/{self._name_of(n)}" for n in (0, number))
        for name, generation in owner.beats:
            # The claim keeps later contenders out; a later beat may be written before this one.
            if claim < name < mine and self._may_delete:
                try:
                    self._record.store.delete(name, generation)
                except AccessDenied as e:
                    logger.warning("run %s: old beats stay: %s", self._record.name, e)
                    self._may_delete = False

    def _name_of(self, beat: int) -> str:
        return f"owner/{self.epoch:08d}/{beat:08d}"
