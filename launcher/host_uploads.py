"""What workers left in the node directory is brought to the store, also after they have gone.

    pending/<entry name>    in the node directory: the key of an entry that is still to be uploaded

A mark is made before the upload starts and removed once the entry is in the store, so the next
agent goes on where one was killed. `create` never overwrites: two agents that share a node
directory may upload the same entry, and one of them makes the object.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from hotstart.cache.directory import DirectoryStore
from hotstart.cache.entry import decode, entry_name
from hotstart.cache.errors import EntryError, StoreError
from hotstart.cache.repair import discard_bad
from hotstart.cache.store import Store

logger = logging.getLogger(__name__)

_PENDING = "pending/"

Then = Callable[[bool], None]


class HostUploads:
    """Uploads on `threads` threads of its own; safe among threads."""

    def __init__(
        self,
        near: DirectoryStore,
        far: Store,
        on_created: Callable[[int], None],
        on_trouble: Callable[[str, Store, str, Exception], None],
        *,
        threads: int = 4,
    ) -> None:
        """`on_created` gets the bytes of each object made; `on_trouble` verb, store, name, error.

        They are called on the uploading threads.
        """
        self._near = near
        self._far = far
        self._on_created = on_created
        self._on_trouble = on_trouble
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="hotstart-upload")
        self._changed = threading.Condition()
        self._open: dict[str, list[Then]] = {}
        self._failed: set[str] = set()
        self._closed = False

    def upload(
        self, key: str, then: Then, *, repair: bool = False, replaces: bytes | None = None
    ) -> None:
        """Bring the entry of `key` to the store; `then` gets whether it is there, on any thread.

        With `repair`, what the store has goes first if it does not verify or is `replaces`.
        """
        with self._changed:
            if key in self._open:
                self._open[key].append(then)
                return
            self._open[key] = [then]
        with contextlib.suppress(StoreError):
            self._near.create(_PENDING + entry_name(key), key.encode())
        try:
            self._pool.submit(self._upload, key, repair, replaces)
        except RuntimeError:  # closed; the mark stays
            self._end(key, False)

    def resume(self) -> None:
        """Upload what is marked."""
        with contextlib.suppress(StoreError):
            for mark in list(self._near.list(_PENDING)):
                key = self._near.get(mark.name)
                if key is not None:
                    self.upload(key.decode(errors="replace"), lambda in_store: None)

    def flush(self, timeout_s: float) -> bool:
        """Block until nothing is open; False at the timeout, or where an entry is not stored."""
        with self._changed:
            done = self._changed.wait_for(lambda: not self._open or self._closed, timeout_s)
            left = sorted(self._open)
            failed = bool(self._failed)
        if not done:
            logger.warning(
                "%d entries were not uploaded within %.1f s: %s",
                len(left), timeout_s, ", ".join(left[:5]),
            )  # fmt: skip
        return not left and not failed

    def close(self) -> None:
        """Give up what has not begun; its marks stay."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _upload(self, key: str, repair: bool, replaces: bytes | None) -> None:
        try:
            done = self._copy(key, repair, replaces)
        except Exception:
            logger.exception("uploading the entry of %s failed", key)
            done = False
        self._end(key, done)

    def _end(self, key: str, done: bool) -> None:
        with self._changed:
            for_whom = self._open.pop(key, [])
            (self._failed.discard if done else self._failed.add)(key)
            self._changed.notify_all()
        for then in for_whom:
            then(done)

    def _copy(self, key: str, repair: bool, replaces: bytes | None) -> bool:
        name = entry_name(key)
        try:
            data = self._near.get(name)
            if data is None:
                raise StoreError(f"the entry of {key} has gone from {self._near.url}")
            decode(key, data)
        except (EntryError, StoreError) as error:
            self._on_trouble("upload", self._near, name, error)
            self._unmark(name)  # another attempt would end in the same way
            return False
        try:
            if repair:
                discard_bad(self._far, key, replaces)
            if self._far.create(name, data):
                self._on_created(len(data))
        except StoreError as error:
            self._on_trouble("write", self._far, name, error)
            return False
        self._unmark(name)
        return True

    def _unmark(self, name: str) -> None:
        with contextlib.suppress(StoreError):
            found = self._near.stat(_PENDING + name)
            if found is not None:
                self._near.delete(found.name, found.generation)
