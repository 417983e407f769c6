"""How a process ends, and what is in the store then; and how the cache gets there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hotstart.cache.entry import decode
from tests.support.entries import key_in
from tests.support.plain_gang import find_free_port

pytestmark = [pytest.mark.multiprocess, pytest.mark.internals]

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 60.0

# A program that has compiled `step` when it goes on, while the store still takes its time.
SLOW_STORE = """
import os, signal, sys, threading, time
import hotstart.cache, jax
from hotstart.cache.directory import DirectoryStore

stock = DirectoryStore.create
def slow_create(self, name, data):
    time.sleep({store_s})
    return stock(self, name, data)
DirectoryStore.create = slow_create
{first}
hotstart.cache.enable(sys.argv[1])
{second}
def step(x): return x * 4
assert float(jax.jit(step)(1.0)) == 4.0
"""


def script(end: str, *, first: str = "", second: str = "", store_s: float = 0.5) -> str:
    return SLOW_STORE.format(first=first, second=second, store_s=store_s) + end


@contextmanager
def running(
    code: str, *arguments: object, **environment: object
) -> Iterator[subprocess.Popen[str]]:
    """A process of its own that is gone when the block ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={
            **{n: v for n, v in os.environ.items() if n != "JAX_COMPILATION_CACHE_DIR"},
            "PYTHONPATH": str(ROOT),
            "JAX_PLATFORMS": "cpu",
            **{name: str(value) for name, value in environment.items()},
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def run(code: str, *arguments: object, **environment: object) -> tuple[int, str, str]:
    """Exit code, output and errors of a process that ends by itself."""
    with running(code, *arguments, **environment) as process:
        output, errors = process.communicate(timeout=TIMEOUT_S)
        return process.returncode, output, errors


def terminate_when_ready(process: subprocess.Popen[str]) -> tuple[int, str]:
    """SIGTERM after the first line; exit code and later output."""
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line == "ready\n", line + process.communicate(timeout=TIMEOUT_S)[1]
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=TIMEOUT_S)
    return process.returncode, output


def assert_step_is_stored(location: Path) -> None:
    (path,) = (location / "entries" / "v1").glob("*-jit_step")
    data = path.read_bytes()
    decode(key_in(data), data)


@pytest.mark.parametrize(
    ("end", "exit_code"),
    [("", 0), ("sys.exit(3)", 3), ("raise ValueError('of the program')", 1)],
    ids=["normal", "exit 3", "exception"],
)
def test_end_of_the_program_flushes_and_keeps_its_exit_code(tmp_path, end, exit_code):
    code, _, errors = run(script(end), tmp_path)

    assert (code, "of the program" in errors) == (exit_code, "raise" in end)
    assert_step_is_stored(tmp_path)


def test_sigterm_flushes_and_ends_the_process_by_it(tmp_path):
    end = "print('ready', flush=True); signal.pause(); print('went on')"
    with running(script(end), tmp_path) as process:
        assert terminate_when_ready(process) == (-signal.SIGTERM, "")
    assert_step_is_stored(tmp_path)


def test_sigterm_inside_a_computation_flushes_and_ends_the_process_by_it(tmp_path):
    end = """
@jax.jit
def long(x): return jax.lax.while_loop(lambda y: y < 10, lambda y: jax.numpy.sin(y) + 1, x)
compiled = long.lower(1.0).compile()
# The main thread is in there by then; were it not, the test would still not fail.
threading.Timer(0.5, lambda: print('ready', flush=True)).start()
compiled(1.0).block_until_ready()  # never
"""
    with running(script(end, store_s=2.0), tmp_path) as process:
        assert terminate_when_ready(process) == (-signal.SIGTERM, "")
    assert_step_is_stored(tmp_path)


def test_sigterm_where_the_program_has_a_handler_is_the_programs(tmp_path):
    own = "signal.signal(signal.SIGTERM, lambda *_: (print('mine'), sys.exit(7)))"
    end = "print('ready', flush=True); signal.pause()"
    with running(script(end, first=own), tmp_path / "before") as process:
        assert terminate_when_ready(process) == (7, "mine\n")
    with running(script(end, second=own), tmp_path / "after") as process:
        assert terminate_when_ready(process) == (7, "mine\n")
    assert_step_is_stored(tmp_path / "before")
    assert_step_is_stored(tmp_path / "after")


def test_sigterm_of_a_forked_child_ends_the_child_alone(tmp_path):
    end = """
import warnings; warnings.simplefilter("ignore")
child = os.fork()
if child == 0:
    signal.alarm(30)  # nobody is left to reap it if the test fails
    signal.pause()
os.kill(child, signal.SIGTERM)
_, status = os.waitpid(child, 0)
print(os.waitstatus_to_exitcode(status), "parent", hotstart.cache.flush())
"""
    code, output, _ = run(script(end), tmp_path)

    assert (code, output) == (0, "-15 parent True\n")


@pytest.mark.parametrize("when", ["first", "second"])
def test_sigterm_of_a_distributed_process_stays_the_preemption_notice_of_jax(tmp_path, when):
    initialize = f"jax.distributed.initialize('127.0.0.1:{find_free_port()}', 1, 0)"
    end = """
from jax.experimental import multihost_utils
print("ready", flush=True)
deadline = time.monotonic() + 30
number = 0
while not multihost_utils.reached_preemption_sync_point(number):
    assert time.monotonic() < deadline
    number += 1
    time.sleep(0.01)
print("noticed")
"""
    code = script(end, **{when: initialize})
    with running(code, tmp_path) as process:
        assert terminate_when_ready(process) == (0, "noticed\n")
    assert_step_is_stored(tmp_path)


def test_enable_without_a_location_adopts_jaxs_and_names_what_was_compiled_before(tmp_path):
    code = """
import json, sys
import jax, hotstart.cache
def early(x): return x + 1
def late(x): return x + 2
jitted = jax.jit(early)
jitted(1.0)
hotstart.cache.enable()
jax.jit(late)(1.0)
hotstart.cache.flush()
stats = hotstart.cache.stats()
print(json.dumps([stats.compiled_before_enable_names, stats.compiled_before_enable,
                  stats.requests, stats.compiled]))
"""
    done = run(code, JAX_COMPILATION_CACHE_DIR=tmp_path / "adopted")

    assert done[::2] == (0, "")
    assert json.loads(done[1]) == [["jit_early"], 1, 1, 1]
    (path,) = (tmp_path / "adopted" / "entries" / "v1").iterdir()
    assert path.name.endswith("-jit_late")


def test_enable_without_any_location_takes_hotstarts_home(tmp_path):
    code = """
import jax, hotstart.cache
hotstart.cache.enable()
def step(x): return x
jax.jit(step)(1.0)
"""
    assert run(code, HOTSTART_HOME=tmp_path) == (0, "", "")
    assert_step_is_stored(tmp_path / "cache")


def test_enable_strict_with_an_unreachable_bucket_raises_in_bounded_time(tmp_path):
    code = """
import time
import gcsfs, jax, hotstart.cache
from hotstart.cache.errors import CacheRequired, DeadlineExceeded
started = time.monotonic()
try:
    hotstart.cache.enable("gs://bucket/prefix", strict=True, deadline_s=1.0)
except CacheRequired as error:
    print(time.monotonic() - started < 4, type(error.__cause__) is DeadlineExceeded)
    print(error)
"""
    closed = f"http://127.0.0.1:{find_free_port()}"
    exit_code, output, _ = run(code, STORAGE_EMULATOR_HOST=closed, HOTSTART_HOME=tmp_path)

    first, _, message = output.partition("\n")
    assert (exit_code, first) == (0, "True True")
    assert message.startswith("the cache is required and cannot be read: cannot read gs://bucket/")


def test_end_of_a_program_waits_for_the_import_of_the_buckets_client(tmp_path):
    """Python ends daemon threads wherever they are; inside of an import that aborts the process."""
    client = tmp_path / "gcsfs"
    client.mkdir()
    (client / "__init__.py").touch()
    (client / "core.py").write_text("import time\ntime.sleep(2)\nprint('imported')\n")
    code = "import jax, hotstart.cache\nhotstart.cache.enable('gs://bucket/prefix')\nprint('ends')"
    path = f"{tmp_path}{os.pathsep}{ROOT}"

    assert run(code, PYTHONPATH=path, HOTSTART_HOME=tmp_path) == (0, "ends\nimported\n", "")
