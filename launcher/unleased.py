"""What workers ask of their agent without a lease: to look for an entry, and to flush."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from hotstart.cache.errors import StoreError
from hotstart.launcher.host_store import HostStore
from hotstart.launcher.questions import Send


class Unleased:
    """Answers on threads of its own; safe among threads, does not block."""

    def __init__(self, store: HostStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._asking: dict[str, list[tuple[int, Send]]] = {}

    def probe(self, key: str, number: int, failed: Sequence[Any], send: Send) -> None:
        """Say where the entry is; nothing is there for who has `failed`.

        Who probes a key that is being probed gets the same answer: the store is asked once.
        """
        if failed:
            send({"request": number, "answer": "compile", "leased": False})
            return
        with self._lock:
            asking = self._asking.setdefault(key, [])
            asking.append((number, send))
            if len(asking) > 1:
                return
        threading.Thread(target=self._look, args=(key,), name="hotstart-probe", daemon=True).start()

    def flush(self, number: int, timeout_s: float, send: Send) -> None:
        """Say whether all that was published is in the store, at the latest after `timeout_s`."""

        def flush() -> None:
            send({"request": number, "flushed": self._store.flush(timeout_s)})

        threading.Thread(target=flush, name="hotstart-flush", daemon=True).start()

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
