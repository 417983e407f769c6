"""A store that fails at once while it is out, in place of once a deadline for each operation."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from hotstart.cache.circuit import Circuit, Permit
from hotstart.cache.errors import StoreError, StoreOut, TransientError
from hotstart.cache.store import Count, ObjectStat, Store, count_nothing

logger = logging.getLogger(__name__)

T = TypeVar("T")


class _Gate:
    """One circuit of this process, safe among threads; a forked child begins with a closed one."""

    _circuit: Circuit

    def __init__(self, url: str, count: Count, clock: Callable[[], float]) -> None:
        self._url = url
        self._count = count
        self._clock = clock
        self._start_anew()

    def run(self, operation: Callable[[], T], *, insist: bool) -> T:
        permit = self._ask(insist)
        try:
            result = operation()
        except StoreError as error:
            if isinstance(error, TransientError):
                self._note_failure(permit, error)
            else:
                self._note_answer()
            raise
        except BaseException:
            with self._lock:
                self._circuit = self._circuit.abandoned(permit)
            raise
        self._note_answer()
        return result

    def _ask(self, insist: bool) -> Permit:
        if os.getpid() != self._pid:  # one of the parent's threads may have had the lock
            self._start_anew()
        now_s = self._clock()
        with self._lock:
            permit, self._circuit = self._circuit.ask(now_s)
            open_until_s, failure = self._circuit.open_until_s, self._failure
        if permit is not Permit.REFUSED:
            return permit
        if insist:
            return Permit.GO
        again_s = max(0.0, (open_until_s or now_s) - now_s)
        raise StoreOut(
            f"{self._url} is out and left alone, to be tried again in {again_s:.0f} s; "
            f"the last failure: {failure}"
        )

    def _note_failure(self, permit: Permit, error: TransientError) -> None:
        now_s = self._clock()
        with self._lock:
            before = self._circuit
            self._circuit = now = before.failed(permit, now_s)
            if now != before:
                self._failure = str(error)
            if now.is_open and not before.is_open:
                self._opened_at_s = now_s
        if now.is_open and not before.is_open:
            self._count(outages=1)
            logger.warning(
                "%s is out: %d operations in a row have failed; reads fail at once until it "
                "answers again, tried first in %.0f s: %s",
                self._url, now.failures, now.pause_s, error,
            )  # fmt: skip

    def _note_answer(self) -> None:
        with self._lock:
            before, opened_at_s = self._circuit, self._opened_at_s
            self._circuit = before.answered()
        if before.is_open:
            logger.info("%s answers again after %.0f s", self._url, self._clock() - opened_at_s)

    def _start_anew(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._circuit = Circuit()
        self._failure = ""
        self._opened_at_s = 0.0


class GuardedStore:
    """A store with a circuit in front; `count` is told of `outages` as it opens.

    While the circuit is open (`circuit.py`), operations raise `StoreOut` without a request, but
    for one now and then that finds out whether the store is back.
    """

    def __init__(
        self,
        store: Store,
        *,
        count: Count = count_nothing,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._gate = _Gate(store.url, count, clock)
        self._insist = False

    @property
    def url(self) -> str:
        return self._store.url

    @property
    def insisting(self) -> GuardedStore:
        """The same store and circuit for who tries all the same.

        For writes in the background: they keep nobody waiting, what they don't bring is lost, and
        the first to arrive closes the circuit for all.
        """
        made = GuardedStore.__new__(GuardedStore)
        made._store, made._gate, made._insist = self._store, self._gate, True
        return made

    def get(self, name: str) -> bytes | None:
        return self._run(lambda: self._store.get(name))

    def create(self, name: str, data: bytes) -> bool:
        return self._run(lambda: self._store.create(name, data))

    def delete(self, name: str, generation: int) -> bool:
        return self._run(lambda: self._store.delete(name, generation))

    def stat(self, name: str) -> ObjectStat | None:
        return self._run(lambda: self._store.stat(name))

    def list(self, prefix: str) -> Iterator[ObjectStat]:
        found = self._store.list(prefix)
        while (stat := self._run(lambda: next(found, None))) is not None:
            yield stat

    def _run(self, operation: Callable[[], T]) -> T:
        return self._gate.run(operation, insist=self._insist)


def insisting(store: Store) -> Store:
    """`store`, or where that is guarded its `insisting` side."""
    return store.insisting if isinstance(store, GuardedStore) else store
