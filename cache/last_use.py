"""What is used in a node directory is told to the directory behind it, at most once a day an entry.

A directory goes by access times: its bound and `hotstart cache gc` let go first what was used
longest ago. Reads in front of it leave no trace there, so entries that every start uses would look
unused. Where the location is a directory, each process that reads the node directory, or the agent
for all workers of a host, looks in the background how old an entry's time there is, and moves it
only once it is a day old: one `stat` an entry, process and day, and over all hosts about one write.
Where the file is another user's, a byte of it is read, and the kernel moves the time likewise once
a day (`relatime`, see mount(8)). A bucket keeps no last use, and gets no request.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable

from hotstart.cache.directory import DirectoryStore
from hotstart.cache.errors import StoreError
from hotstart.cache.store import Store

EVERY_S = 86_400.0

logger = logging.getLogger(__name__)


class LastUses:
    """Notes uses for the store behind a node directory. Safe among threads."""

    def __init__(self, store: Store | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._directory = store if isinstance(store, DirectoryStore) else None
        self._clock = clock
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._again_at: dict[str, float] = {}
        self._names: deque[str] = deque()
        self._thread: threading.Thread | None = None

    def note(self, name: str) -> None:
        """An entry of this name was read in front. Neither blocks nor raises."""
        if self._directory is None or os.getpid() != self._pid:
            return  # in a forked child, one of the parent's threads may have had the lock
        now = self._clock()
        with self._lock:
            if now < self._again_at.get(name, now):
                return
            self._again_at[name] = now + EVERY_S
            self._names.append(name)
            if self._thread is not None:
                return
            thread = threading.Thread(target=self._tell, name="hotstart-last-use", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # a limit on processes, or the interpreter is ending
                return
            self._thread = thread

    def settle(self, timeout_s: float) -> bool:
        """Block until all that was noted has been told; False at the timeout."""
        thread = self._thread
        if thread is not None:
            thread.join(timeout_s)
        return not self._names

    def _tell(self) -> None:
        assert self._directory is not None
        while True:
            with self._lock:
                if not self._names:
                    self._thread = None
                    return
                name = self._names[0]
            try:
                self._directory.note_use(name, unless_within_s=EVERY_S)
            except StoreError as error:
                logger.debug("the last use of %s is not noted: %s", name, error)
            with self._lock:
                self._names.popleft()
