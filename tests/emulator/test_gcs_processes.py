"""GcsStore in real processes: racing ones, forked ones, ending ones."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable

import pytest

from hotstart.cache.gcs import GcsStore
from tests.support.gcs_proxy import Fault, GcsProxy

pytestmark = pytest.mark.emulator

RACER = """
import sys
from hotstart.cache.store import open_store
store = open_store(sys.argv[1])
assert store.get("warm-up") is None
print("ready", flush=True)
sys.stdin.readline()
created = store.create("raced", sys.argv[2].encode() * 100_000)
print(created, store.get("raced")[:2].decode(), store.stat("raced").generation, flush=True)
"""

FORKER = """
import os, sys
from hotstart.cache.store import open_store
store = open_store(sys.argv[1])
store.create("parent", b"1")
child = os.fork()
if child == 0:
    store.create("child", store.get("parent") + b"2")
    sys.exit(0)
_, status = os.waitpid(child, 0)
print(status, store.get("child"))
"""

AT_EXIT = """
import atexit, sys, threading

def create_last():
    print(store.create("last", b"data"), flush=True)

when, used = sys.argv[2:]
if when == "atexit-early":
    atexit.register(create_last)
from hotstart.cache.store import open_store
store = open_store(sys.argv[1])
if when == "atexit":
    atexit.register(create_last)
if when == "threading":
    threading._register_atexit(create_last)
if used == "warm":
    store.get("absent")
"""

STALLED = """
import sys, threading
from hotstart.cache.store import open_store
store = open_store(sys.argv[1])
store.get("absent")
threading.Thread(target=store.get, args=("stalled",), daemon=True).start()
sys.stdin.readline()
"""


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def run(code: str, *arguments: str) -> str:
    # Python 3.12 and later warn of any fork in a process with threads.
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_create_16_racing_processes_one_object_one_generation_all_carry_on(
    bucket: str, proxy: GcsProxy
) -> None:
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, bucket, f"{index:02}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for index in range(16)
    ]
    try:
        for racer in racers:
            assert racer.stdout is not None
            assert racer.stdout.readline() == "ready\n"
        for racer in racers:
            assert racer.stdin is not None
            racer.stdin.write("go\n")
            racer.stdin.flush()
        answers = [racer.communicate(timeout=60)[0].split() for racer in racers]
    finally:
        for racer in racers:
            racer.kill()
            racer.wait()

    assert [racer.returncode for racer in racers] == [0] * 16
    created = [index for index, answer in enumerate(answers) if answer[0] == "True"]
    assert len(created) == 1
    assert {seen for _, seen, _ in answers} == {f"{created[0]:02}"}
    (found,) = GcsStore(bucket).list("")
    assert {int(generation) for _, _, generation in answers} == {found.generation}
    uploads = Counter(request.status for request in proxy.requests("POST", "raced"))
    assert uploads == {200: 1, 412: 15}


def test_fork_child_and_parent_both_go_on(bucket: str) -> None:
    assert run(FORKER, bucket) == "0 b'12'\n"


@pytest.mark.parametrize("when", ["atexit", "atexit-early", "threading"])
@pytest.mark.parametrize("used", ["warm", "cold"])
def test_create_at_interpreter_exit_by_host_name_works(
    proxy: GcsProxy, bucket: str, monkeypatch: pytest.MonkeyPatch, when: str, used: str
) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.url.replace("127.0.0.1", "localhost"))

    assert run(AT_EXIT, bucket, when, used) == "True\n"
    assert GcsStore(bucket).get("last") == b"data"


def test_exit_while_a_request_stalls_is_not_held_up(bucket: str, proxy: GcsProxy) -> None:
    proxy.inject(Fault("stall", object_contains="stalled"))
    process = subprocess.Popen([sys.executable, "-c", STALLED, bucket], stdin=subprocess.PIPE)
    try:
        wait_until(lambda: proxy.faults_left() == 0)
        started = time.monotonic()
        process.communicate(b"\n", timeout=10)
    finally:
        process.kill()
        process.wait()

    assert process.returncode == 0
    assert time.monotonic() - started < 3


def test_hns_probe_setting_of_the_user_is_kept(bucket: str) -> None:
    code = (
        "import os, sys; from hotstart.cache.store import open_store;"
        "open_store(sys.argv[1]).get('x'); print(os.environ['GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT'])"
    )
    environment = {**os.environ, "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "true"}
    command = [sys.executable, "-c", code, bucket]

    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)

    assert done.stdout == "true\n"
    assert run(code, bucket) == "false\n"
