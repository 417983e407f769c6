"""One request of JAX, whatever becomes of it: what the cache is asked and told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.jax_lab import JaxLab, jax_lab

pytestmark = [pytest.mark.multiprocess, pytest.mark.internals]

# Stands between JAX and the cache; `calls` are what it was asked and told, with the module.
RECORDING = """
from hotstart.cache import active

class Recording:
    def __init__(self, cache):
        self.cache, self.calls, self.puts_are_superseded = cache, [], False
    def note(self, name, key):
        self.calls.append(name + " " + key.rpartition("-")[0])
    def get(self, key):
        self.note("get", key)
        return self.cache.get(key)
    def probe(self, key):
        self.note("probe", key)
        return self.cache.probe(key)
    def put(self, key, payload, meta, replaces=None, pack=None, parts=None):
        self.note("put replacing" if replaces else "put", key)
        self.cache.put(key, payload, meta, replaces, pack, parts)
        return self.puts_are_superseded
    def failed(self, key, entry):
        self.note("failed", key)
        self.cache.failed(key, entry)
    def done(self, key):
        self.note("done", key)
        self.cache.done(key)

def record():
    cache.enable(location)
    link = active._active.link
    link._serving._cache = recording = Recording(link._serving._cache)
    return link, recording
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JaxLab]:
    with jax_lab(tmp_path_factory.mktemp("home")) as running:
        yield running


@pytest.fixture
def location(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def play(lab: JaxLab, location: Path, code: str) -> Any:
    return lab.run(RECORDING + code, location=location)


def test_request_that_compiles_and_one_that_hits_end_with_done(lab, location):
    code = """
link, recording = record()
call(step)
jax.clear_caches()
call(step)
requests = link.requests.all()
result = recording.calls, [(r.module, r.outcome, r.size_bytes > 0) for r in requests], [
    requests[0].key == requests[1].key, requests[0].options is requests[1].options,
    requests[0].device_ids, requests[0].compile_s > 0, requests[1].digest is not None,
]
"""
    calls, logged, facts = play(lab, location, code)

    assert calls == ["get jit_step", "put jit_step", "done jit_step"] + [
        "get jit_step",
        "done jit_step",
    ]
    assert logged == [["jit_step", "compiled", True], ["jit_step", "hit", True]]
    assert facts == [True, True, [0], True, True]


def test_request_whose_compilation_raises_ends_with_done(lab, location):
    code = """
from jax._src import compiler
link, recording = record()
stock = compiler.backend_compile_and_load
def broken(*args, **kwargs):
    raise RuntimeError("out of memory")
compiler.backend_compile_and_load = broken
try:
    call(step)
except RuntimeError as error:
    raised = str(error)
finally:
    compiler.backend_compile_and_load = stock
after = call(step)
result = raised, recording.calls, [r.outcome for r in link.requests.all()], after["value"]
"""
    raised, calls, outcomes, value = play(lab, location, code)

    assert raised == "out of memory"
    assert calls[:2] == ["get jit_step", "done jit_step"]
    assert (outcomes, value) == (["unstored", "compiled"], 4.0)


def test_request_below_the_threshold_is_unstored_and_ends_with_done(lab, location):
    code = """
link, recording = record()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 1000.0)
call(step)
(request,) = link.requests.all()
result = recording.calls, request.outcome, request.size_bytes, request.digest
"""
    assert play(lab, location, code) == [["get jit_step", "done jit_step"], "unstored", 0, None]


def test_probe_of_another_key_takes_no_lease(lab, location):
    code = """
link, recording = record()
jax.config.update("jax_compilation_cache_expect_pgle", True)
try:
    call(step)
finally:
    jax.config.update("jax_compilation_cache_expect_pgle", False)
result = recording.calls
"""
    calls = play(lab, location, code)

    # The program with a profile, then, as JAX expects that one, the same without.
    assert calls == ["probe jit_step"] * 2 + ["get jit_step", "put jit_step", "done jit_step"]


UNLOADABLE = """
import jaxlib
def refuse(times):
    from jax._src import compilation_cache
    stock = compilation_cache.decompress_executable
    left = [times]
    def decompress_executable(data):
        if left[0]:
            left[0] -= 1
            raise ValueError("garbage")
        return stock(data)
    compilation_cache.decompress_executable = decompress_executable
    return lambda: setattr(compilation_cache, "decompress_executable", stock)
cache.enable(location)
call(step)
again()
link, recording = record()
undo = refuse({times})
recording.cache.failed = lambda key, entry: None  # the gang has another that is as good
try:
    start = call(step)
finally:
    undo()
result = recording.calls, start, [r.outcome for r in link.requests.all()]
"""


def test_entry_that_does_not_load_is_asked_for_once_more(lab, location):
    calls, start, outcomes = play(lab, location, UNLOADABLE.format(times=1))

    assert calls == ["get jit_step", "failed jit_step", "get jit_step", "done jit_step"] + [
        "done jit_step"
    ]
    assert (start["value"], start["compiled"], outcomes) == (4.0, [], ["hit"])
    assert (start["stats"]["hits"], start["stats"]["errors"], start["warned"]) == (1, 1, [])


def test_entries_that_do_not_load_twice_are_compiled_and_replaced(lab, location):
    calls, start, outcomes = play(lab, location, UNLOADABLE.format(times=2))

    assert (
        calls
        == ["get jit_step", "failed jit_step"] * 2
        + ["put replacing jit_step"]
        + ["done jit_step"] * 2
    )
    assert (start["value"], start["compiled"], outcomes) == (4.0, ["jit_step"], ["compiled"])
    assert (start["stats"]["hits"], start["stats"]["errors"]) == (0, 2)
    (warning,) = start["warned"]
    assert "Error reading persistent compilation cache entry for 'jit_step'" in warning


SUPERSEDED = """
from jax._src import compiler
link, recording = record()
recording.puts_are_superseded = True
{before}
returned = []
stock = compiler.compile_or_get_cached
def watching(*args, **kwargs):
    returned.append(stock(*args, **kwargs))
    return returned[-1]
compiler.compile_or_get_cached = watching
own = []
stock_compile = compiler.backend_compile_and_load
def compiling(*args, **kwargs):
    own.append(stock_compile(*args, **kwargs))
    return own[-1]
compiler.backend_compile_and_load = compiling
try:
    start = call(step)
finally:
    compiler.compile_or_get_cached = stock
    compiler.backend_compile_and_load = stock_compile
result = recording.calls, returned[0] is own[0], start
"""


def test_executable_that_another_process_has_published_is_run_in_place_of_the_own(lab, location):
    calls, runs_own, start = play(lab, location, SUPERSEDED.format(before=""))

    assert (
        calls
        == ["get jit_step", "put jit_step", "done jit_step", "get jit_step"] + ["done jit_step"] * 2
    )
    assert (runs_own, start["value"], start["warned"]) == (False, 4.0, [])
    assert start["compiled"] == ["jit_step"]
    counts = ("requests", "hits", "compiled", "errors")
    assert [start["stats"][name] for name in counts] == [1, 0, 1, 0]


def test_published_executable_that_is_not_there_leaves_the_own_with_one_warning(lab, location):
    before = "recording.cache.put = lambda *args: None"
    calls, runs_own, start = play(lab, location, SUPERSEDED.format(before=before))

    assert (
        calls
        == ["get jit_step", "put jit_step", "done jit_step", "get jit_step"] + ["done jit_step"] * 2
    )
    assert (runs_own, start["value"]) == (True, 4.0)
    (warning,) = start["warned"]
    assert "runs its own executable of jit_step-" in warning


def test_program_with_a_host_callback_is_logged_as_such(lab, location):
    code = """
link, recording = record()
def shouting(x):
    jax.debug.callback(lambda value: None, x)
    return x + 1
value = float(jax.jit(shouting)(1.0))
(request,) = [r for r in link.requests.all() if r.module == "jit_shouting"]
result = value, request.host_callbacks
"""
    assert play(lab, location, code) == [2.0, True]


def test_request_costs_the_main_thread_less_than_a_fifth_of_a_millisecond(lab, location):
    code = """
import time
link, recording = record()
call(step)
(request,) = link.requests.all()
serving = link._serving
class Options:
    def __init__(self):
        from jax._src.lib import xla_client
        self.options = xla_client.CompileOptions.ParseFromString(request.options)
    def SerializeAsString(self):
        return self.options.SerializeAsString()
options, devices = Options(), jax.devices()
def stock_read(*args):
    serving.get(request.key)
    return "executable", 0
def stock(backend, computation, devices, options, *rest):
    return serving.around_read(stock_read, request.key, options, backend, devices)
class Nothing:
    entry = recording.cache.get(request.key)
    def get(self, key): return self.entry
    def done(self, key): pass
serving._cache = Nothing()
best_s = 1.0
for _ in range(20):
    started = time.perf_counter()
    for _ in range(50):
        serving.around_request(stock, None, None, devices, options, ())
    best_s = min(best_s, (time.perf_counter() - started) / 50)
result = best_s, len(link.requests.all())
"""
    best_s, count = play(lab, location, code)

    assert count == 1001
    assert best_s < 0.0002
