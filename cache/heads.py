"""Looks at entries that are no use of them: at their beginning, or at all of one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, TypeVar, runtime_checkable

from hotstart.cache.directory import DirectoryStore
from hotstart.cache.entry import HEAD_BYTES, Head, decode_head
from hotstart.cache.errors import EntryError, StoreError, StoreMissing
from hotstart.cache.store import ObjectStat, Store

Item = TypeVar("Item")
Result = TypeVar("Result")


@runtime_checkable
class _ReadsHeads(Protocol):
    def read_head(self, name: str, size_bytes: int) -> bytes | None: ...


def read_head(store: Store, stat: ObjectStat) -> Head | str | None:
    """What an entry says of itself, or what is wrong with that; None where it is gone.

    Unverified. One request for 32 KiB; raises `StoreMissing`.
    """
    try:
        if isinstance(store, _ReadsHeads):
            data = store.read_head(stat.name, HEAD_BYTES)
        else:
            data = store.get(stat.name)
        return None if data is None else decode_head(stat.name, data[:HEAD_BYTES])
    except StoreMissing:
        raise
    except (StoreError, EntryError) as error:
        return str(error)


def read_whole(store: Store, name: str) -> bytes | None:
    """All of an object, in memory; no use of it in a directory. Raises `StoreError`."""
    if isinstance(store, DirectoryStore):
        return store.read_head(name, -1)
    return store.get(name)


def in_order(
    work: Callable[[Item], Result], items: Iterable[Item], *, threads: int = 8
) -> Iterator[Result]:
    """The results of `work` in the order of `items`, of which few are taken ahead.

    So what is read is let go of before more is. Raises what `work` raises, and what `items` does
    once all that came before has been told.
    """
    with ThreadPoolExecutor(threads, thread_name_prefix="hotstart-look") as pool:
        waiting: deque[Future[Result]] = deque()
        remaining = iter(items)
        failure: Exception | None = None
        try:
            while failure is None:
                try:
                    waiting.append(pool.submit(work, next(remaining)))
                except StopIteration:
                    break
                except Exception as error:
                    failure = error
                if len(waiting) >= 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
            if failure is not None:
                raise failure
        finally:
            for future in waiting:
                future.cancel()
