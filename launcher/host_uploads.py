"""What workers left in the node directory is brought to the store, also after they have gone.

    pending/<entry name>    in the node directory: the key of an entry that is still to be uploaded

A mark is made before the entry is, and removed once the entry is in the store. So an entry whose
worker was killed before it could publish it is uploaded too, and the next agent goes on where one
was killed. `create` never overwrites: two agents that share a node directory may upload the same
entry, and one of them makes the object.

What an outage has kept out of the store is tried again while the agent lives, less and less often,
and by each `flush`; who waits for it hears of the first failure.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from hotstart.cache.directory import DirectoryStore
from hotstart.cache.entry import PENDING, decode, entry_name, pending_name
from hotstart.cache.errors import EntryError, StoreError, TransientError
from hotstart.cache.repair import make_room
from hotstart.cache.signing import UNSEALED, Seal
from hotstart.cache.store import Store

logger = logging.getLogger(__name__)

_AGAIN_S = (10.0, 20.0, 40.0, 80.0, 160.0)

Then = Callable[[bool], None]


@dataclass(frozen=True)
class _Upload:
    key: str
    repair: bool = False
    replaces: bytes | None = None


class HostUploads:
    """Uploads on `threads` threads of its own; safe among threads."""

    def __init__(
        self,
        near: DirectoryStore,
        far: Store,
        on_created: Callable[[int], None],
        on_trouble: Callable[[str, Store, str, Exception], None],
        *,
        seal: Seal = UNSEALED,
        threads: int = 4,
        again_s: Sequence[float] = _AGAIN_S,
    ) -> None:
        """`on_created` gets the bytes of each object made; `on_trouble` verb, store, name, error.

        They are called on the uploading threads. `again_s` are the waits before what an outage has
        kept out is tried again, the last of them from then on.
        """
        self._near = near
        self._far = far
        self._seal = seal
        self._on_created = on_created
        self._on_trouble = on_trouble
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="hotstart-upload")
        self._changed = threading.Condition()
        self._open: dict[str, list[Then]] = {}
        self._failed: set[str] = set()
        self._kept_out: dict[str, _Upload] = {}
        self._again_s = again_s
        self._outages = 0  # in a row
        self._timer: threading.Timer | None = None
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
            self._near.create(pending_name(key), key.encode())
        try:
            self._pool.submit(self._upload, _Upload(key, repair, replaces))
        except RuntimeError:  # closed; the mark stays
            self._end(key, False)

    def upload_again(self) -> None:
        """Upload what an outage has kept out of the store."""
        with self._changed:
            kept_out = list(self._kept_out.values())
        for kept in kept_out:
            self.upload(kept.key, _nobody, repair=kept.repair, replaces=kept.replaces)

    def resume(self) -> None:
        """Upload what is marked."""
        with contextlib.suppress(StoreError):
            for mark in list(self._near.list(PENDING)):
                data = self._near.get(mark.name)
                key = "" if data is None else data.decode(errors="replace")
                if key and self.is_left(key):
                    self.upload(key, _nobody)

    def is_left(self, key: str) -> bool:
        """Whether there is a marked entry of `key`; a mark without one is removed."""
        name = entry_name(key)
        try:
            if self._near.stat(pending_name(key)) is None:
                return False
            if self._near.stat(name) is not None:
                return True
        except StoreError:
            return False
        self._unmark(name)  # its writer has ended before the entry was there
        return False

    def flush(self, timeout_s: float) -> bool:
        """Block until nothing is open; False at the timeout, or where an entry is not stored."""
        self.upload_again()
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
            if self._timer is not None:
                self._timer.cancel()
            self._changed.notify_all()

    def _upload(self, upload: _Upload) -> None:
        try:
            done = self._copy(upload)
        except Exception:
            logger.exception("uploading the entry of %s failed", upload.key)
            done = False
        self._end(upload.key, done)

    def _note_outage(self, upload: _Upload) -> None:
        with self._changed:
            self._kept_out[upload.key] = upload
            if self._timer is not None or self._closed:
                return
            wait_s = self._again_s[min(self._outages, len(self._again_s) - 1)]
            self._outages += 1
            self._timer = threading.Timer(wait_s, self._timer_rings)
            self._timer.daemon = True
            self._timer.start()

    def _timer_rings(self) -> None:
        with self._changed:
            self._timer = None
        self.upload_again()

    def _end(self, key: str, done: bool) -> None:
        with self._changed:
            for_whom = self._open.pop(key, [])
            (self._failed.discard if done else self._failed.add)(key)
            self._changed.notify_all()
        for then in for_whom:
            then(done)

    def _copy(self, upload: _Upload) -> bool:
        key = upload.key
        name = entry_name(key)
        try:
            data = self._near.get(name)
            if data is None:
                raise StoreError(f"the entry of {key} has gone from {self._near.url}")
            decode(key, data, self._seal)
        except (EntryError, StoreError) as error:
            self._on_trouble("upload", self._near, name, error)
            self._unmark(name)  # another attempt would end in the same way
            return False
        try:
            if upload.repair:
                name = make_room(self._far, key, self._seal, upload.replaces)
            created = self._far.create(name, data)
            if not created and not upload.repair:  # another's; who found it bad may be another host
                name = make_room(self._far, key, self._seal)
                created = self._far.create(name, data)
            if created:
                self._on_created(len(data))
        except StoreError as error:
            self._on_trouble("write", self._far, name, error)
            if isinstance(error, TransientError):
                self._note_outage(upload)
            return False
        with self._changed:
            self._kept_out.pop(key, None)
            self._outages = 0
        self._unmark(entry_name(key))
        return True

    def _unmark(self, name: str) -> None:
        with contextlib.suppress(StoreError):
            found = self._near.stat(PENDING + name)
            if found is not None:
                self._near.delete(found.name, found.generation)


def _nobody(in_store: bool) -> None:
    """The worker has been told already, or has gone."""
