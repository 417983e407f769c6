"""The agent's event queue: what the driver has not taken yet, of bounded size."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass

from hotstart.launcher.workers import LEFT_OUT, Event, Output, Reached

_BATCH_BYTES = 1 << 20
_QUEUE_BYTES = 4 << 20
_LAST_WORDS_BYTES = 1 << 20
_STR_BYTES = 64  # what an empty line costs


@dataclass(frozen=True)
class Batch:
    """Events from a cursor on, each with its attempt, and the cursor that follows them.

    `answered_at` is the agent's own clock, for `owner_watch.Sign`.
    """

    events: tuple[tuple[int, Event], ...]
    next_cursor: int
    answered_at: float = 0.0


class EventQueue:
    """What the driver has not taken yet, in order, and of bounded size; safe among threads.

    A worker that prints faster than the driver takes it is made to wait by its full pipe. An
    attempt that is `open` is ending and waits no more; what finds no room is left out then.
    """

    def __init__(self, limit_bytes: int = _QUEUE_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._changed = threading.Condition()
        self._events: deque[tuple[int, Event, int]] = deque()
        self._first = 0  # the cursor of the oldest event that is kept
        self._queued_bytes = 0
        self._urgent = 0  # queued events that a poll is answered for at once
        self._open_attempt = -1
        self._cut: set[tuple[int, int]] = set()

    @property
    def end(self) -> int:
        """The cursor behind the last event."""
        with self._changed:
            return self._first + len(self._events)

    def put(self, attempt: int, event: Event) -> None:
        """Add an event; output blocks while there is no room for it, unless its attempt is open."""
        size_bytes = _size_bytes(event)
        with self._changed:
            if isinstance(event, Output):
                self._changed.wait_for(
                    lambda: self._queued_bytes < self._limit_bytes or attempt <= self._open_attempt
                )
                worker = attempt, event.process_index
                if worker in self._cut:
                    return
                if self._queued_bytes >= self._limit_bytes + _LAST_WORDS_BYTES:
                    self._cut.add(worker)
                    event, size_bytes = Output(event.process_index, (LEFT_OUT,)), _STR_BYTES
            self._events.append((attempt, event, size_bytes))
            self._queued_bytes += size_bytes
            self._urgent += _is_urgent(event)
            self._changed.notify_all()

    def open(self, attempt: int) -> None:
        """Let output of this attempt, and of earlier ones, wait no more."""
        with self._changed:
            self._open_attempt = attempt
            self._changed.notify_all()

    def after(self, cursor: int, timeout_s: float) -> Batch:
        """Events from `cursor` on, about 1 MB at most, and forget those before it.

        Blocks until there is one that is more than a worker's whereabouts, at most `timeout_s`.
        """
        with self._changed:
            while self._events and self._first < cursor:
                _, event, size_bytes = self._events.popleft()
                self._queued_bytes -= size_bytes
                self._urgent -= _is_urgent(event)
                self._first += 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._urgent, timeout=timeout_s)
            taken: list[tuple[int, Event]] = []
            taken_bytes = 0
            for attempt, event, size_bytes in self._events:
                if taken and taken_bytes + size_bytes > _BATCH_BYTES:
                    break
                taken.append((attempt, event))
                taken_bytes += size_bytes
            return Batch(tuple(taken), self._first + len(taken))


def _is_urgent(event: Event) -> bool:
    return not isinstance(event, Reached)


def _size_bytes(event: Event) -> int:
    lines = event.lines if isinstance(event, Output) else ()
    return _STR_BYTES + sum(_STR_BYTES + len(line) for line in lines)
