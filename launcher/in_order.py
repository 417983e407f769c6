"""Reads that are done side by side, and whose results come in order.

So many at once that a bucket's answering time does not add up, so few and so small that memory is
bounded. The threads are daemons: a read that hangs holds up neither Ctrl-C nor the interpreter's
end, as those of a `ThreadPoolExecutor` would.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import TypeVar

AT_ONCE = 32
AHEAD_BYTES = 32 << 20

T = TypeVar("T")
R = TypeVar("R")


def in_order(
    read: Callable[[T], R],
    items: Iterable[T],
    *,
    size_of: Callable[[T], int] = lambda item: 0,
    at_once: int = AT_ONCE,
    ahead_bytes: int = AHEAD_BYTES,
) -> Iterator[tuple[T, R]]:
    """Each item with what `read` gives for it, in the items' order, as soon as that is there.

    `at_once` are read side by side, as long as those that were not taken yet have fewer than
    `ahead_bytes` together. Blocks; an error of `read` is raised in its item's place. Nothing more
    is begun once the iterator is closed.
    """
    todo: queue.SimpleQueue[tuple[Future[R], T] | None] = queue.SimpleQueue()
    waiting: deque[tuple[T, Future[R]]] = deque()
    threads, held_bytes = 0, 0
    coming = iter(items)
    is_more = True
    try:
        while True:
            while is_more and len(waiting) < at_once and held_bytes < ahead_bytes:
                try:
                    item = next(coming)
                except StopIteration:
                    is_more = False
                    break
                future: Future[R] = Future()
                waiting.append((item, future))
                held_bytes += size_of(item)
                todo.put((future, item))
                if threads < len(waiting):
                    threads += 1
                    threading.Thread(
                        target=_work, args=(read, todo), name="hotstart-read", daemon=True
                    ).start()
            if not waiting:
                return
            item, future = waiting.popleft()
            result = future.result()
            held_bytes -= size_of(item)
            yield item, result
    finally:
        for _, future in waiting:
            future.cancel()
        for _ in range(threads):
            todo.put(None)


def _work(read: Callable[[T], R], todo: queue.SimpleQueue[tuple[Future[R], T] | None]) -> None:
    while (task := todo.get()) is not None:
        future, item = task
        if not future.set_running_or_notify_cancel():
            continue
        try:
            future.set_result(read(item))
        except BaseException as error:  # the reader's, in its place
            future.set_exception(error)
