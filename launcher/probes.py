"""Looking for an entry without a lease: a worker may compile another key meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from hotstart.cache.errors import StoreError
from hotstart.launcher.host_store import HostStore

Send = Callable[[dict[str, Any]], None]


class Probes:
    """Answers from the node directory and the store; safe among threads, does not block.

    Who probes a key that is being probed gets the same answer: the store is asked once.
    """

    def __init__(self, store: HostStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._asking: dict[str, list[tuple[int, Send]]] = {}

    def ask(self, key: str, number: int, failed: Sequence[Any], send: Send) -> None:
        """Answer request `number`, on another thread; nothing is there for who has `failed`."""
        if failed:
            send({"request": number, "answer": "compile", "leased": False})
            return
        with self._lock:
            asking = self._asking.setdefault(key, [])
            asking.append((number, send))
            if len(asking) > 1:
                return
        threading.Thread(target=self._look, args=(key,), name="hotstart-probe", daemon=True).start()

    def _look(self, key: str) -> None:
        answer: dict[str, Any] = {"answer": "compile", "leased": False}
        try:
            answer = self._answer(key)
        finally:
            with self._lock:
                asking = self._asking.pop(key, [])
            for number, send in asking:
                send({"request": number, **answer})

    def _answer(self, key: str) -> dict[str, Any]:
        digest = self._store.digest_here(key)
        if digest is not None:
            return {"answer": "node", "digest": digest.hex()}
        try:
            read = self._store.read_far(key)
        except StoreError as error:
            if self._store.strict:
                text = f"the cache is required and cannot be used: {error}"
                return {"answer": "required", "error": text}
            read = None
        if read is None:
            return {"answer": "compile", "leased": False}
        entry, data = read
        tier = "node" if self._store.keep(key, data) else "store"
        return {"answer": tier, "digest": entry.digest.hex()}
