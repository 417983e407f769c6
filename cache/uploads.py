"""The background writer: `put` hands an entry over and goes on.

The queue holds what JAX gave us, and the work (encode, hash, node directory, one create in the
store) happens on threads of its own. Nothing is ever dropped and memory is bounded: an entry
that does not fit the budget is written on the caller's thread.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace

from hotstart.cache.entry import EntryMeta

logger = logging.getLogger(__name__)

_DESCRIBE_S = 10.0


@dataclass(frozen=True)
class Pending:
    """An entry on its way: to the store, or only into this host's node directory.

    pack: makes the entry's payload of `payload`, where that is a serialized executable still:
        compressing a large one takes long and need not hold up the first step.
    replaces: the digest of a stored entry that JAX could not load.
    node_copy: the encoded entry as it was read from the store, to be left in the node directory.
    digest: that of `node_copy`; of what was compiled here none is known yet.
    parts: what the key was made of, once that is described.
    """

    key: str
    payload: bytes | memoryview
    meta: EntryMeta
    replaces: bytes | None = None
    node_copy: bytes | None = None
    digest: bytes = b""
    pack: Callable[[bytes | memoryview], bytes] | None = None
    parts: Future[str] | None = None

    def described(self, *, wait: bool) -> EntryMeta:
        """The metadata with what the key was made of; "" where that is not there, or not yet."""
        parts = self.parts
        if parts is None or not (wait or parts.done()):
            return self.meta
        try:
            return replace(self.meta, parts=parts.result(_DESCRIBE_S))
        except Exception:  # cancelled as the interpreter ends, or stuck
            return self.meta

    def packed(self) -> bytes | memoryview:
        """The entry's payload. Takes as long as compressing does."""
        return self.payload if self.pack is None else self.pack(self.payload)


class Uploads:
    """Writes pending entries through `write` on `threads` daemon threads.

    `write` is called once for each submitted entry, in order and one by one for those of a key,
    blocks, and says whether the entry is where it belongs now.
    """

    def __init__(
        self,
        write: Callable[[Pending], bool],
        *,
        threads: int = 4,
        budget_bytes: int = 1 << 30,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._write = write
        self._threads = threads
        self._budget_bytes = budget_bytes
        self._clock = clock
        self._pid = os.getpid()
        self._changed = threading.Condition()
        self._queue: deque[Pending] = deque()
        self._open: dict[str, Pending] = {}
        self._writing: set[str] = set()
        self._open_bytes = 0
        self._failed: set[str] = set()
        self._workers: list[threading.Thread] = []

    def submit(self, pending: Pending) -> None:
        """Queue an entry; returns at once unless the budget is full, or in a forked child."""
        if os.getpid() != self._pid:
            self._write(pending)
            return
        with self._changed:
            fits = self._open_bytes + len(pending.payload) <= self._budget_bytes
            queued = fits and self._has_thread()
            if queued:
                self._open[pending.key] = pending
                self._open_bytes += len(pending.payload)
                self._queue.append(pending)
                self._changed.notify_all()
        if not queued:
            self._try_write(pending)

    def find(self, key: str) -> Pending | None:
        """The entry of `key` if it is still on its way."""
        if os.getpid() != self._pid:  # the parent may have held the lock when it forked
            return None
        with self._changed:
            return self._open.get(key)

    def flush(self, timeout_s: float) -> bool:
        """Block until everything submitted so far is written.

        False at the timeout, and if a write since the last flush has failed. In a forked child
        there is nothing to wait for: the threads live in the parent.
        """
        if os.getpid() != self._pid:
            return True
        deadline = self._clock() + timeout_s
        with self._changed:
            while self._open:
                left = deadline - self._clock()
                if left <= 0:
                    logger.warning(
                        "%d entries were not uploaded within %.1f s: %s",
                        len(self._open), timeout_s, ", ".join(sorted(self._open)[:5]),
                    )  # fmt: skip
                    return False
                self._changed.wait(left)
            failed, self._failed = self._failed, set()
        return not failed

    def _has_thread(self) -> bool:
        """Start one more thread where that helps; False if there is none and none can start."""
        if len(self._workers) < min(self._threads, len(self._open) + 1):
            thread = threading.Thread(target=self._run, name="hotstart-upload", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # a limit on processes, or the interpreter is ending
                return bool(self._workers)
            self._workers.append(thread)
        return True

    def _try_write(self, pending: Pending) -> None:
        try:
            written = self._write(pending)
        except Exception:
            logger.exception("writing the entry of %s failed", pending.key)
            written = False
        if not written:
            with self._changed:
                self._failed.add(pending.key)

    def _take(self) -> Pending | None:
        """The first entry of a key that no other thread is at: a key's are written in order."""
        for pending in self._queue:
            if pending.key not in self._writing:
                self._queue.remove(pending)
                self._writing.add(pending.key)
                return pending
        return None

    def _run(self) -> None:
        while True:
            with self._changed:
                while (pending := self._take()) is None:
                    self._changed.wait()
            self._try_write(pending)
            with self._changed:
                self._writing.discard(pending.key)
                if self._open.get(pending.key) is pending:
                    del self._open[pending.key]
                self._open_bytes -= len(pending.payload)
                self._changed.notify_all()
