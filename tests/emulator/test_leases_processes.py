"""Leases among real processes: racing ones and killed ones, in a bucket and in a directory."""

from __future__ import annotations

import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hotstart.cache.leases import LONGEST_POLL_S, StoreLeases
from hotstart.cache.store import open_store
from tests.support.gcs_proxy import GcsProxy

pytestmark = pytest.mark.emulator

PROCESSES = 8
TTL_S = 6.0
LONG_TTL_S = 300.0
SLACK_S = 6.0  # eight processes on two busy cores
PATIENCE_S = 60.0
HASH = "0123456789abcdef" * 4
KEY = f"jit_step-{HASH}"

# Each line that it reads is one call; each verdict is a line. With the lease it is alone in the
# folder "inside", or ends with a traceback.
RACER = """
import os, sys
from hotstart.cache.leases import StoreLeases
from hotstart.cache.store import open_store

location, key, ttl_s, inside = sys.argv[1:]
store = open_store(location)
store.get("warm-up")
leases = StoreLeases(store, ttl_s=float(ttl_s))
print("ready", flush=True)
for line in sys.stdin:
    if line == "wait\\n":
        print(leases.await_or_claim(key), flush=True)
    if line == "release\\n":
        leases.release(key)
    if line == "take turns\\n":
        while leases.await_or_claim(key) != "mine":
            pass
        os.mkdir(inside)
        for _ in range(5):
            store.get("warm-up")
        os.rmdir(inside)
        leases.release(key)
        print("had it", flush=True)
"""


class Racer:
    """One process, whose lines come to a queue that all share."""

    def __init__(self, arguments: list[str], lines: queue.Queue[tuple[Racer, str]]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", RACER, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, args=(lines,), daemon=True)
        self._reader.start()

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join(PATIENCE_S)
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()

    def _read(self, lines: queue.Queue[tuple[Racer, str]]) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            lines.put((self, line.strip()))


class Race:
    """All racers, ready to be told."""

    def __init__(self, location: str, inside: Path, ttl_s: float) -> None:
        self.lines: queue.Queue[tuple[Racer, str]] = queue.Queue()
        arguments = [location, KEY, str(ttl_s), str(inside)]
        self.racers = [Racer(arguments, self.lines) for _ in range(PROCESSES)]

    def next_line(self, timeout_s: float = PATIENCE_S) -> tuple[Racer, str]:
        return self.lines.get(timeout=timeout_s)

    def next_words(self, count: int) -> list[str]:
        return [self.next_line()[1] for _ in range(count)]

    def tell_all(self, line: str) -> None:
        for racer in self.racers:
            racer.tell(line)


@pytest.fixture(params=["bucket", "directory"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "directory":
        return str(tmp_path / "store")
    return str(request.getfixturevalue("bucket")) + "/prefix"


@pytest.fixture
def ttl_s() -> float:
    return TTL_S


@pytest.fixture
def race(location: str, tmp_path: Path, ttl_s: float) -> Iterator[Race]:
    running = Race(location, tmp_path / "inside", ttl_s)
    try:
        assert running.next_words(PROCESSES) == ["ready"] * PROCESSES
        yield running
    finally:
        for racer in running.racers:
            racer.end()


def leases_left(location: str) -> list[str]:
    return [found.name for found in open_store(location).list("leases/")]


def test_race_of_8_processes_has_one_holder_at_a_time_and_each_gets_its_turn(
    race: Race, location: str
) -> None:
    race.tell_all("take turns")

    assert race.next_words(PROCESSES) == ["had it"] * PROCESSES
    assert leases_left(location) == []


def test_race_of_8_processes_one_has_it_and_the_others_wait_for_its_release(
    race: Race, location: str
) -> None:
    race.tell_all("wait")
    holder, word = race.next_line()
    assert word == "mine"
    with pytest.raises(queue.Empty):  # longer than the time to live: it beats
        race.next_line(TTL_S + LONGEST_POLL_S)
    holder.tell("release")

    assert race.next_words(PROCESSES - 1) == ["released"] * (PROCESSES - 1)
    assert leases_left(location) == []


@pytest.mark.parametrize(
    ("how", "ttl_s", "within_s"),
    [
        pytest.param(signal.SIGKILL, LONG_TTL_S, LONGEST_POLL_S, id="killed"),
        pytest.param(signal.SIGSTOP, TTL_S, TTL_S + LONGEST_POLL_S, id="stopped"),
    ],
)
def test_holder_that_gives_no_sign_is_succeeded_by_exactly_one(
    race: Race, location: str, how: signal.Signals, within_s: float
) -> None:
    race.tell_all("wait")
    holder, word = race.next_line()
    assert word == "mine"

    holder.process.send_signal(how)
    stopped_s = time.monotonic()
    successor, word = race.next_line()
    taken_over_after_s = time.monotonic() - stopped_s

    assert (successor is holder, word) == (False, "mine")
    assert taken_over_after_s < within_s + SLACK_S
    with pytest.raises(queue.Empty):
        race.next_line(LONGEST_POLL_S)
    successor.tell("release")
    assert race.next_words(PROCESSES - 2) == ["released"] * (PROCESSES - 2)
    assert leases_left(location) == []


def test_claim_and_release_without_contention_are_three_requests(
    bucket: str, proxy: GcsProxy
) -> None:
    leases = StoreLeases(open_store(bucket))

    assert leases.claim(KEY) is True
    leases.release(KEY)

    sent = [(request.method, request.object_name) for request in proxy.requests()]
    claim = f"leases/v1/{HASH}-jit_step@00001"
    assert sent == [("POST", claim), ("GET", ""), ("DELETE", claim)]
    assert leases_left(bucket) == []


def test_release_after_a_takeover_leaves_the_successors_lease(bucket: str) -> None:
    slow = StoreLeases(open_store(bucket), renew_in_background=False)
    successor = StoreLeases(open_store(bucket), ttl_s=0.5)
    slow.claim(KEY)
    assert successor.await_or_claim(KEY) == "mine"

    slow.release(KEY)

    assert StoreLeases(open_store(bucket)).claim(KEY) is False
    successor.release(KEY)
    assert leases_left(bucket) == []
