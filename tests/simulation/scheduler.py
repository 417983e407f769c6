"""One thread runs at a time; at each point where another could, a seed chooses which.

The product's code is blocking code on threads, and runs here unchanged, each task on a thread of
its own. A task has the *baton* or waits for it; whoever blocks, sleeps or comes to a point of
choice hands it on. So nothing depends on the operating system's scheduler, and a run is a
function of its seed. Time is virtual: it goes on, to the next timer, when no task can run.

Only code between two points of choice is not interrupted. They are at each acquisition of a lock,
each wait, each request to a store, each message: where threads of the product meet.
"""

from __future__ import annotations

import heapq
import itertools
import random
import threading
from collections.abc import Callable
from typing import Any, Protocol

MAX_SWITCHES = 400_000


class Killed(BaseException):
    """The process of this task was killed. It has no effect any more, and only unwinds."""


class Process(Protocol):
    """What a task belongs to."""

    alive: bool

    @property
    def stalled_until_s(self) -> float: ...


class Task:
    """One thread of a simulated process."""

    def __init__(self, name: str, process: Process) -> None:
        self.name = name
        self.process = process
        self.baton = threading.Lock()
        self.baton.acquire()
        self.thread_id = 0
        self.thread: Any = self  # what `current_thread` says
        self.ticket = 0  # of the wait that it is in: an older wake-up is void
        self.is_ready = False
        self.timed_out = False
        self.is_over = False
        self.has_returned = False
        self.joining: list[Task] = []


class Scheduler:
    """Runs tasks one by one. All methods but `run` are called by who has the baton."""

    def __init__(self, rng: random.Random, *, restlessness: float = 0.2) -> None:
        """`restlessness` is how likely a point of choice is used to run another task."""
        self.now_s = 0.0
        self.switches = 0
        self.current: Task | None = None
        self.failure: BaseException | None = None
        self._rng = rng
        self._restlessness = restlessness
        self._tasks: list[Task] = []
        self._ready: list[Task] = []
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._done = threading.Lock()
        self._done.acquire()
        self._stopped = False
        self._horizon_s = 0.0
        self._threads: list[threading.Thread] = []

    def spawn(self, process: Process, name: str, run: Callable[[], Any]) -> Task:
        """A new task, ready to run."""
        task = Task(name, process)

        def body() -> None:
            task.thread_id = threading.get_ident()
            task.baton.acquire()
            try:
                if process.alive:
                    run()
                    task.has_returned = True
            except Killed:
                pass
            except BaseException as error:  # a task of the simulation itself, or a defect
                self.failure = self.failure or error
            task.is_over = True
            self._tasks.remove(task)
            for waiting in task.joining:
                self.wake(waiting)
            self._pass_on(None)

        thread = threading.Thread(target=body, name=name, daemon=True)
        thread.start()
        self._tasks.append(task)
        self._threads.append(thread)
        self._make_ready(task)
        return task

    def run(self, horizon_s: float) -> None:
        """Run until `stop`, a task's failure, or until nothing can happen before the horizon.

        Tasks that are left are unwound, their processes being dead by then. Called once.
        """
        self._horizon_s = horizon_s
        self._pass_on(None)
        self._done.acquire()
        self._stopped = True
        for task in list(self._tasks):
            task.process.alive = False
        while self._tasks:
            self._resume(self._tasks[0])
            self._done.acquire()
        for thread in self._threads:
            thread.join()

    def stop(self, failure: BaseException | None = None) -> None:
        """End the run after this step."""
        self.failure = self.failure or failure
        self._stopped = True

    def at(self, delay_s: float, act: Callable[[], None]) -> None:
        """Have `act` called after a while; it must not block."""
        heapq.heappush(self._timers, (self.now_s + delay_s, next(self._numbers), act))

    def check(self) -> Task:
        """The task that runs; raises `Killed` where its process is dead."""
        task = self.current
        if task is None or task.thread_id != threading.get_ident():
            raise RuntimeError("a thread that the simulation does not know comes into it")
        if not task.process.alive:
            raise Killed
        return task

    def may_switch(self) -> None:
        """A point of choice."""
        task = self.check()
        if self._rng.random() < self._restlessness and self._ready:
            self._make_ready(task)
            self._pass_on(task)
            self.check()

    def sleep(self, delay_s: float) -> None:
        """Let others run for a while."""
        self.wait(max(delay_s, 0.0))

    def wait(self, timeout_s: float | None = None) -> bool:
        """Block until `wake`; False at the timeout."""
        task = self.check()
        task.ticket += 1
        task.timed_out = False
        if timeout_s is not None:
            ticket = task.ticket

            def ring() -> None:
                if task.ticket == ticket and not task.is_ready:
                    task.timed_out = True
                    self._make_ready(task)

            self.at(max(timeout_s, 0.0), ring)
        self._pass_on(task)
        task.ticket += 1
        self.check()
        return not task.timed_out

    def wake(self, task: Task) -> None:
        """Let a task that waits go on; without effect on one that does not."""
        if task is not self.current and not task.is_ready and not task.is_over:
            self._make_ready(task)

    def kill(self, process: Process) -> None:
        """Let all tasks of a process unwind."""
        process.alive = False
        for task in self._tasks:
            if task.process is process:
                self.wake(task)

    def _make_ready(self, task: Task) -> None:
        task.is_ready = True
        self._ready.append(task)

    def _next(self) -> Task | None:
        while not self._stopped and self.failure is None:
            if self._ready:
                index = self._rng.randrange(len(self._ready)) if len(self._ready) > 1 else 0
                task = self._ready[index]
                self._ready[index] = self._ready[-1]
                self._ready.pop()
                if task.process.stalled_until_s > self.now_s:
                    stall_s = task.process.stalled_until_s - self.now_s
                    self.at(stall_s, lambda task=task: self._ready.append(task))
                    continue
                self.switches += 1
                if self.switches > MAX_SWITCHES:
                    self.failure = RuntimeError(f"no end after {MAX_SWITCHES} steps")
                    return None
                return task
            if not self._timers:
                return None
            due_s, _, act = heapq.heappop(self._timers)
            if due_s > self._horizon_s or not self._tasks:
                return None
            self.now_s = max(self.now_s, due_s)
            try:
                act()
            except BaseException as error:
                self.failure = self.failure or error
        return None

    def _pass_on(self, task: Task | None) -> None:
        """Hand the baton on; returns once `task` has it again."""
        self.current = None  # a timer's act is nobody's
        following = self._next()
        if following is task and task is not None:
            task.is_ready = False
            self.current = task
            return
        if following is None:
            self._done.release()
        else:
            self._resume(following)
        if task is not None:
            task.baton.acquire()

    def _resume(self, task: Task) -> None:
        task.is_ready = False
        self.current = task
        task.baton.release()
