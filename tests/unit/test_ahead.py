"""Load ahead: what JAX gets, what is dropped, and that nobody waits for nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from hotstart.cache.ahead import LoadAhead, Loaded, Planned
from hotstart.cache.counters import Counters
from hotstart.cache.entry import Entry, EntryMeta

pytestmark = pytest.mark.unit

OPTIONS = b"options"
DEVICES = (0, 1)
TIMEOUT_S = 10.0


@dataclass(frozen=True)
class FakeBackend:
    platform: str = "cpu"


BACKEND = FakeBackend()


@dataclass
class FakeRuntime:
    """Loads one entry after another, each when it is let through."""

    ready: Any = BACKEND
    started: list[str] = field(default_factory=list)
    loaded: list[str] = field(default_factory=list)
    gate: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    broken: tuple[str, ...] = ()

    def backend(self) -> Any:
        return self.ready

    def unpack(self, entry: Entry) -> tuple[bytes, int]:
        return bytes(entry.payload), 7

    def load(self, backend: Any, planned: Planned, serialized: bytes) -> Any:
        self.started.append(planned.key)
        assert self.gate.acquire(timeout=TIMEOUT_S)
        if planned.key in self.broken:
            raise RuntimeError("cannot be loaded")
        self.loaded.append(planned.key)
        return f"executable of {planned.key}"


def planned(key: str) -> Planned:
    return Planned(key, OPTIONS, DEVICES)


def read(key: str) -> Entry | None:
    return Entry(key, b"payload 10", EntryMeta(compile_s=7.5), digest=key.encode())


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.002)


class Case:
    def __init__(self, ahead: LoadAhead, runtime: FakeRuntime, counters: Counters) -> None:
        self.ahead, self.runtime, self.counters = ahead, runtime, counters

    def take(self, key: str, options: bytes = OPTIONS, devices: tuple[int, ...] = DEVICES) -> Any:
        loaded = self.ahead.take(key, options, devices, BACKEND)
        return None if loaded is None else loaded.executable

    def let_load(self, count: int) -> None:
        self.runtime.gate.release(count)

    def counts(self) -> tuple[int, int]:
        """Taken and dropped."""
        stats = self.counters.snapshot()
        return stats.loaded_ahead, stats.load_ahead_dropped

    def ended(self) -> bool:
        return not any(thread.is_alive() for thread in self.ahead._threads)


@contextmanager
def loading(
    *keys: str,
    runtime: FakeRuntime | None = None,
    read: Callable[[str], Entry | None] = read,
    **settings: Any,
) -> Iterator[Case]:
    runtime = runtime or FakeRuntime()
    counters = Counters()
    entries = [planned(key) for key in keys]
    ahead = LoadAhead(entries, read, runtime=runtime, counters=counters, **settings)
    ahead.start()
    try:
        yield Case(ahead, runtime, counters)
    finally:
        runtime.gate.release(1000)
        ahead.close()
        until(lambda: not any(thread.is_alive() for thread in ahead._threads))


def test_take_of_a_loaded_program_hands_it_out_once():
    with loading("a") as case:
        case.let_load(1)
        until(case.ended)
        loaded = case.ahead.take("a", OPTIONS, DEVICES, BACKEND)
        again = case.take("a")

    meta = EntryMeta(compile_s=7.5)
    assert loaded == Loaded("executable of a", BACKEND, 7, meta, digest=b"a", size_bytes=10)
    assert again is None
    assert case.counts() == (1, 0)


def test_programs_are_loaded_the_last_one_first():
    with loading("b", "a", "c", "a") as case:
        case.let_load(3)
        until(case.ended)

    assert case.runtime.started == ["c", "a", "b"]


def test_take_of_the_program_that_is_being_loaded_waits_for_it():
    with loading("a") as case:
        until(lambda: case.runtime.started == ["a"])
        threading.Timer(0.05, case.let_load, [1]).start()

        assert case.take("a") == "executable of a"
    assert case.counts() == (1, 0)


def test_take_of_a_program_not_begun_goes_jaxs_own_way_and_is_not_loaded():
    with loading("c", "b", "a") as case:
        until(lambda: case.runtime.started == ["a"])
        assert case.take("b") is None
        case.let_load(2)
        until(case.ended)
        assert case.take("c") == "executable of c"

    assert case.runtime.loaded == ["a", "c"]


def test_take_of_a_program_that_is_only_being_read_does_not_wait():
    reading, go_on = threading.Event(), threading.Event()

    def slow_read(key: str) -> Entry | None:
        reading.set()
        assert go_on.wait(TIMEOUT_S)
        return read(key)

    with loading("a", read=slow_read) as case:
        assert reading.wait(TIMEOUT_S)
        assert case.take("a") is None
        go_on.set()
        until(case.ended)

    assert (case.runtime.started, case.counts()) == ([], (0, 0))


@pytest.mark.parametrize(
    ("options", "devices"),
    [
        pytest.param(b"other", DEVICES, id="options"),
        pytest.param(OPTIONS, (1, 0), id="order of devices"),
        pytest.param(OPTIONS, (0,), id="fewer devices"),
    ],
)
def test_take_with_other_options_or_devices_drops_it(options, devices):
    with loading("a") as case:
        case.let_load(1)
        until(case.ended)
        assert case.take("a", options, devices) is None
        assert case.take("a") is None

    assert case.counts() == (0, 1)


def test_take_with_other_options_does_not_wait_for_the_load():
    with loading("a") as case:
        until(lambda: case.runtime.started == ["a"])
        assert case.take("a", b"other") is None
        case.let_load(1)
        until(case.ended)

    assert case.counts() == (0, 1)


def test_take_on_another_backend_drops_it():
    with loading("a") as case:
        case.let_load(1)
        until(case.ended)
        assert case.ahead.take("a", OPTIONS, DEVICES, FakeBackend("other")) is None

    assert case.counts() == (0, 1)


def test_skipped_program_is_dropped():
    with loading("a") as case:
        case.let_load(1)
        until(case.ended)
        case.ahead.skip("a")
        assert case.take("a") is None

    assert case.counts() == (0, 1)


def test_unknown_program_is_not_taken():
    with loading("a") as case:
        assert case.take("x") is None


def test_program_that_does_not_load_is_counted_and_the_next_ones_are_loaded():
    with loading("a", "b", runtime=FakeRuntime(broken=("a",))) as case:
        case.let_load(2)
        until(case.ended)
        assert (case.take("a"), case.take("b")) == (None, "executable of b")

    assert case.counts() == (1, 1)


def test_take_of_a_program_whose_load_fails_meanwhile_ends():
    with loading("a", runtime=FakeRuntime(broken=("a",))) as case:
        until(lambda: case.runtime.started == ["a"])
        threading.Timer(0.05, case.let_load, [1]).start()
        assert case.take("a") is None
        until(case.ended)

    assert case.counts() == (0, 1)


def test_read_that_raises_is_counted():
    def broken_read(key: str) -> Entry | None:
        raise OSError("no such device")

    with loading("a", read=broken_read) as case:
        until(case.ended)
        assert case.take("a") is None

    assert case.counts() == (0, 1)


def test_entry_that_is_not_there_is_passed_over():
    with loading("a", "b", read=lambda key: read(key) if key == "b" else None) as case:
        case.let_load(1)
        until(case.ended)
        assert (case.take("a"), case.take("b")) == (None, "executable of b")

    assert case.counts() == (1, 0)


def test_nothing_is_loaded_before_the_backend_is_there():
    runtime = FakeRuntime(ready=None)
    with loading("a", runtime=runtime) as case:
        case.let_load(1)
        threading.Event().wait(0.1)
        assert runtime.started == []
        runtime.ready = BACKEND
        until(lambda: runtime.loaded == ["a"])


def test_unfamiliar_jax_is_one_warning_and_nothing_is_loaded(caplog):
    class Unfamiliar(FakeRuntime):
        def backend(self) -> Any:
            raise AttributeError("_backends")

    with loading("a", runtime=Unfamiliar()) as case:
        until(case.ended)
        assert case.take("a") is None

    assert caplog.messages == [
        "nothing is loaded ahead: this JAX is not known to hotstart: _backends"
    ]


@pytest.mark.parametrize(("platforms", "loaded"), [(("cpu",), []), (("gpu",), ["a"])])
def test_nothing_is_loaded_on_another_platform_unless_asked(platforms, loaded):
    runtime = FakeRuntime(ready=FakeBackend("gpu"))
    with loading("a", runtime=runtime, platforms=platforms) as case:
        case.let_load(1)
        until(case.ended)

    assert runtime.loaded == loaded


def test_budget_is_kept_and_goes_on_when_one_is_taken():
    with loading("c", "b", "a", budget_bytes=20) as case:
        case.let_load(3)
        until(lambda: case.runtime.loaded == ["a", "b"])
        assert case.take("a") == "executable of a"
        until(case.ended)

    assert case.runtime.loaded == ["a", "b", "c"]


def test_program_waiting_for_the_budget_goes_jaxs_own_way():
    with loading("b", "a", budget_bytes=10) as case:
        case.let_load(2)
        until(lambda: case.runtime.loaded == ["a"])
        assert case.take("b") is None
        until(case.ended)

    assert case.runtime.loaded == ["a"]


def test_program_larger_than_the_budget_is_passed_over():
    with loading("a", budget_bytes=9) as case:
        until(case.ended)
        assert case.take("a") is None

    assert (case.runtime.started, case.counts()) == ([], (0, 0))


def test_program_not_asked_for_within_the_patience_is_dropped():
    with loading("a", "b", patience=3) as case:
        case.let_load(2)
        until(case.ended)
        for _ in range(3):
            assert case.take("x") is None
        assert case.counts() == (0, 0)
        assert case.take("x") is None
        assert case.counts() == (0, 1)
        assert (case.take("a"), case.take("b")) == (None, None)

    assert case.counts() == (0, 2)


def test_drop_frees_all_and_loads_no_more():
    with loading("c", "b", "a") as case:
        case.let_load(1)
        until(lambda: case.runtime.started == ["a", "b"])
        case.ahead.drop()
        assert case.counts() == (0, 1)
        case.let_load(1)
        until(case.ended)
        assert [case.take(key) for key in "abc"] == [None, None, None]

    assert case.runtime.loaded == ["a", "b"]
    assert case.counts() == (0, 2)


def test_close_waits_for_a_load_but_not_for_a_read():
    reading, go_on = threading.Event(), threading.Event()

    def slow_read(key: str) -> Entry | None:
        if key == "b":
            reading.set()
            assert go_on.wait(TIMEOUT_S)
        return read(key)

    with loading("a", "b", read=slow_read, threads=2) as case:
        until(lambda: case.runtime.started == ["a"])
        assert reading.wait(TIMEOUT_S)
        closing = threading.Thread(target=case.ahead.close)
        closing.start()
        closing.join(0.05)
        assert closing.is_alive()
        case.let_load(1)
        closing.join(TIMEOUT_S)
        assert not closing.is_alive()
        go_on.set()

    assert case.runtime.started == ["a"]


def test_drop_ends_a_wait_for_a_load():
    taken: list[object] = []
    with loading("a") as case:
        until(lambda: case.runtime.started == ["a"])
        thread = threading.Thread(target=lambda: taken.append(case.take("a")))
        thread.start()
        case.ahead.drop()
        thread.join(TIMEOUT_S)
        assert taken == [None]


def test_threads_that_ask_for_one_program_get_it_once():
    taken: list[object] = []
    with loading("a") as case:
        until(lambda: case.runtime.started == ["a"])
        threads = [threading.Thread(target=lambda: taken.append(case.take("a"))) for _ in range(4)]
        [thread.start() for thread in threads]
        case.let_load(1)
        [thread.join(TIMEOUT_S) for thread in threads]

    assert sorted(map(str, taken)) == ["None", "None", "None", "executable of a"]
    assert case.counts() == (1, 0)


def test_two_threads_load_two_programs_at_once():
    with loading("a", "b", threads=2) as case:
        until(lambda: sorted(case.runtime.started) == ["a", "b"])
        case.let_load(2)
        until(case.ended)
        assert case.take("b") == "executable of b"
