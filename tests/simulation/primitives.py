"""What stands in for `threading`, thread pools and futures on the simulation's scheduler.

Only what the product uses of them, with the same meaning. A lock that is free is taken without
regard to who waits for it, as with the real ones.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from tests.simulation.scheduler import Scheduler, Task


class Lock:
    """`threading.Lock`; `reentrant` makes it an `RLock`."""

    def __init__(self, scheduler: Scheduler, *, reentrant: bool = False) -> None:
        self._scheduler = scheduler
        self._reentrant = reentrant
        self._owner: Task | None = None
        self._depth = 0
        self._waiting: list[Task] = []

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        scheduler = self._scheduler
        scheduler.may_switch()
        task = scheduler.check()
        if self._owner is task and not self._reentrant:
            raise RuntimeError(f"{task.name} would wait for itself")
        while self._owner is not None and self._owner is not task:
            if not blocking:
                return False
            self._waiting.append(task)
            scheduler.wait()
        self._owner = task
        self._depth += 1
        return True

    def release(self) -> None:
        self._depth -= 1
        if self._depth:
            return
        self._owner = None
        waiting, self._waiting = self._waiting, []
        for task in waiting:
            self._scheduler.wake(task)

    def locked(self) -> bool:
        return self._owner is not None

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *error: Any) -> None:
        self.release()


class Condition:
    """`threading.Condition` with a lock of its own."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._lock = Lock(scheduler, reentrant=True)
        self._waiting: list[Task] = []

    def __enter__(self) -> bool:
        return self._lock.acquire()

    def __exit__(self, *error: Any) -> None:
        self._lock.release()

    def wait(self, timeout: float | None = None) -> bool:
        scheduler, lock = self._scheduler, self._lock
        task = scheduler.check()
        self._waiting.append(task)
        depth, lock._depth = lock._depth, 1
        lock.release()
        woken = False
        try:
            woken = scheduler.wait(timeout)
        finally:
            if task in self._waiting:
                self._waiting.remove(task)
            if task.process.alive:
                lock.acquire()
                lock._depth = depth
            else:  # it unwinds, through the end of the `with` block
                lock._owner, lock._depth = task, depth
        return woken

    def wait_for(self, predicate: Callable[[], Any], timeout: float | None = None) -> Any:
        end_s = None if timeout is None else self._scheduler.now_s + timeout
        while not (result := predicate()):
            left_s = None if end_s is None else end_s - self._scheduler.now_s
            if left_s is not None and left_s <= 0:
                return result
            self.wait(left_s)
        return result

    def notify_all(self) -> None:
        waiting, self._waiting = self._waiting, []
        for task in waiting:
            self._scheduler.wake(task)

    def notify(self, n: int = 1) -> None:
        for task in self._waiting[:n]:
            self._waiting.remove(task)
            self._scheduler.wake(task)


class Event:
    """`threading.Event`."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._changed = Condition(scheduler)
        self._is_set = False

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        with self._changed:
            self._is_set = True
            self._changed.notify_all()

    def wait(self, timeout: float | None = None) -> bool:
        with self._changed:
            return bool(self._changed.wait_for(lambda: self._is_set, timeout))


class Thread:
    """`threading.Thread`, of the process whose task starts it."""

    def __init__(
        self,
        scheduler: Scheduler,
        target: Callable[..., Any],
        args: Sequence[Any] = (),
        name: str = "thread",
        daemon: bool | None = None,
    ) -> None:
        self._scheduler = scheduler
        self._run = lambda: target(*args)
        self.name = name
        self.daemon = daemon
        self.task: Task | None = None

    def start(self) -> None:
        creator = self._scheduler.check()
        name = f"{creator.name.partition('/')[0]}/{self.name}"
        self.task = self._scheduler.spawn(creator.process, name, self._run)
        self.task.thread = self

    def join(self, timeout: float | None = None) -> None:
        scheduler = self._scheduler
        task, end_s = self.task, None if timeout is None else scheduler.now_s + timeout
        while task is not None and not task.is_over:
            if end_s is not None and scheduler.now_s >= end_s:
                return
            task.joining.append(scheduler.check())
            scheduler.wait(None if end_s is None else end_s - scheduler.now_s)

    def is_alive(self) -> bool:
        return self.task is not None and not self.task.is_over


class Timer(Thread):
    """`threading.Timer`."""

    def __init__(self, scheduler: Scheduler, interval: float, function: Callable[[], Any]) -> None:
        super().__init__(scheduler, self._ring, name="timer")
        self._interval_s = interval
        self._function = function
        self._cancelled = Event(scheduler)

    def cancel(self) -> None:
        self._cancelled.set()

    def _ring(self) -> None:
        if not self._cancelled.wait(self._interval_s):
            self._function()


class Future:
    """`concurrent.futures.Future`."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._changed = Condition(scheduler)
        self._done = False
        self._result: Any = None
        self._error: BaseException | None = None

    def set_result(self, result: Any) -> None:
        with self._changed:
            self._done, self._result = True, result
            self._changed.notify_all()

    def set_exception(self, error: BaseException) -> None:
        with self._changed:
            self._done, self._error = True, error
            self._changed.notify_all()

    def result(self, timeout: float | None = None) -> Any:
        with self._changed:
            if not self._changed.wait_for(lambda: self._done, timeout):
                raise TimeoutError
        if self._error is not None:
            raise self._error
        return self._result

    def done(self) -> bool:
        return self._done


class Pool:
    """`concurrent.futures.ThreadPoolExecutor`."""

    def __init__(
        self, scheduler: Scheduler, max_workers: int = 4, thread_name_prefix: str = "pool"
    ) -> None:
        self._scheduler = scheduler
        self._max_workers = max_workers
        self._name = thread_name_prefix
        self._changed = Condition(scheduler)
        self._queue: deque[tuple[Future, Callable[[], Any]]] = deque()
        self._threads: list[Thread] = []
        self._idle = 0
        self._closed = False

    def submit(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Future:
        with self._changed:
            if self._closed:
                raise RuntimeError("cannot schedule new futures after shutdown")
            future = Future(self._scheduler)
            self._queue.append((future, lambda: function(*args, **kwargs)))
            if self._idle < len(self._queue) and len(self._threads) < self._max_workers:
                thread = Thread(self._scheduler, self._run, name=self._name)
                self._threads.append(thread)
                thread.start()
            self._changed.notify()
        return future

    def map(self, function: Callable[..., Any], *items: Iterable[Any]) -> Iterator[Any]:
        futures = [self.submit(function, *each) for each in zip(*items, strict=False)]
        return iter([future.result() for future in futures])

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        with self._changed:
            self._closed = True
            if cancel_futures:
                self._queue.clear()
            self._changed.notify_all()
        for thread in self._threads if wait else ():
            thread.join()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error: Any) -> None:
        self.shutdown()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._idle += 1
                while not self._queue and not self._closed:
                    self._changed.wait()
                self._idle -= 1
                if not self._queue:
                    return
                future, call = self._queue.popleft()
            try:
                result = call()
            except Exception as error:
                future.set_exception(error)
            else:
                future.set_result(result)
