"""Executables loaded ahead in real processes: used, exact, and never in the way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.jax_lab import JaxLab, jax_lab
from tests.support.plain_gang import run_plain_gang

pytestmark = [pytest.mark.multiprocess, pytest.mark.internals]

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 60.0

# `plan()` is what a manifest of this start would hold; `load(plan)` starts again and loads it.
PLANNING = """
import dataclasses, threading, time
from hotstart.cache import active
from hotstart.cache.ahead import Planned

def plan():
    requests = active._active.link.requests.all()
    return [Planned(r.key, r.options, r.device_ids) for r in requests]

def load(planned, wait=True, **settings):
    cache.enable(location)
    link, shared = active._active.link, active._active.cache
    link.load_ahead(planned, shared.probe, **settings)
    ahead = link._serving.ahead
    if wait:
        deadline = time.monotonic() + 30
        while any(thread.is_alive() for thread in ahead._threads):
            assert time.monotonic() < deadline
            time.sleep(0.002)
    return link

def counts():
    stats = cache.stats()
    return [stats.hits, stats.compiled, stats.loaded_ahead, stats.load_ahead_dropped]

cache.enable(location)
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JaxLab]:
    with jax_lab(tmp_path_factory.mktemp("home")) as running:
        yield running


@pytest.fixture
def location(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def play(lab: JaxLab, location: Path, code: str) -> Any:
    return lab.run(PLANNING + code, location=location)


def test_programs_loaded_ahead_answer_the_next_start(lab, location):
    code = """
call(step), call(other)
planned = plan()
again()
link = load(planned)
before = counts()
starts = call(step), call(other)
logged = [(r.module, r.outcome, r.size_bytes > 0, r.digest is not None) for r in
          link.requests.all()]
result = before, [s["value"] for s in starts], counter.compiled, counts(), logged, plan() == planned
"""
    before, values, compiled, counts, logged, same_plan = play(lab, location, code)

    assert before == [0, 0, 0, 0]
    assert (values, compiled, counts) == ([4.0, 5.0], [], [2, 0, 2, 0])
    assert logged == [["jit_step", "hit", True, True], ["jit_other", "hit", True, True]]
    assert same_plan is True


def test_executable_loaded_ahead_is_handed_out_once(lab, location):
    code = """
call(step)
planned = plan()
again()
load(planned)
call(step)
jax.clear_caches()
result = call(step)["value"], counts()
"""
    assert play(lab, location, code) == [4.0, [2, 0, 1, 0]]


# Each of these is refused before XLA sees it: over some it would abort the process.
STALE = {
    "no options": "dataclasses.replace(p, options=b'')",
    "options cut short": "dataclasses.replace(p, options=p.options[:-3])",
    "other compile options": "dataclasses.replace(p, options=p.options + b'\\x08\\x01')",
    "options that are none": "dataclasses.replace(p, options=b'\\xff' * 50)",
    "another device": "dataclasses.replace(p, device_ids=(1,))",
    "no device": "dataclasses.replace(p, device_ids=())",
    "a device that is not there": "dataclasses.replace(p, device_ids=(77,))",
}


@pytest.mark.parametrize("change", STALE.values(), ids=STALE.keys())
def test_plan_that_does_not_agree_is_dropped_and_the_stored_entry_used(lab, location, change):
    code = f"""
call(step)
planned = [{change} for p in plan()]
again()
load(planned)
result = call(step)["value"], counts()
"""
    assert play(lab, location, code) == [4.0, [1, 0, 0, 1]]


def test_entry_of_another_jaxlib_is_not_loaded_ahead(lab, location):
    code = """
from hotstart.cache import jaxlink
stock = jaxlink._describe
jaxlink._describe = lambda s: dataclasses.replace(stock(s), jaxlib="0.0.1")
again()
cache.enable(location)
try:
    call(step)
finally:
    jaxlink._describe = stock
planned = plan()
again()
load(planned)
result = call(step)["value"], counts()
"""
    assert play(lab, location, code) == [4.0, [1, 0, 0, 1]]


def test_plan_of_programs_that_are_not_stored_or_not_asked_for_is_harmless(lab, location):
    code = """
call(step)
missing = dataclasses.replace(plan()[0], key="jit_gone-" + "0" * 64)
planned = [missing, *plan()]
again()
link = load(planned)
value = call(other)["value"]
link.drop_ahead()
result = value, call(step)["value"], counts()
"""
    assert play(lab, location, code) == [5.0, 4.0, [1, 1, 0, 1]]


def test_disable_drops_what_was_loaded(lab, location):
    code = """
call(step)
planned = plan()
again()
load(planned)
counters = active._active.counters
cache.disable()
result = counters.snapshot().load_ahead_dropped, float(jax.jit(step)(1.0))
"""
    assert play(lab, location, code) == [1, 4.0]


def test_program_with_a_host_callback_runs_its_own_callback(lab, location):
    code = """
said = []
def shouting(x):
    jax.debug.callback(lambda value: said.append(float(value)), x)
    return x + 1
def run(x):
    value = float(jax.jit(shouting)(x))
    jax.effects_barrier()
    return value
run(1.0)
planned = plan()
again()
load(planned)
result = run(2.0), said, counts()[2]
"""
    assert play(lab, location, code) == [3.0, [1.0, 2.0], 0]


def test_loading_beside_tracing_and_compiling_gives_exact_results(lab, location):
    code = """
import numpy as np
def layer(x, w):
    return jnp.tanh(x @ w) + x
def program(index):
    def loss(ws, x):
        for w in ws:
            x = layer(x, w)
        return jnp.sum(x * index)
    loss.__name__ = f"loss{index}"
    return loss
weights = [np.full((16, 16), 0.01 * i, "float32") for i in range(4)]
x = np.ones((8, 16), "float32")
def run(indices):
    return [
        [np.asarray(w).tobytes() for w in jax.jit(jax.grad(program(i)))(weights, x)]
        for i in indices
    ]
stored, fresh = range(12), range(12, 20)
expected = run(stored)
planned = plan()
assert cache.flush(60)
again()
load(planned, wait=False, threads=2)
compiling = run(fresh)
taken = run(stored)
stats = cache.stats()
again()
cache.enable(location + "-other")
result = taken == expected, run(fresh) == compiling, stats.hits, stats.compiled
"""
    assert play(lab, location, code) == [True, True, 12, 8]


def test_donated_and_sharded_programs_of_a_gang_are_loaded_ahead_exactly(tmp_path):
    script = tmp_path / "gang.py"
    script.write_text(GANG)
    cold, warm = (
        run_plain_gang(
            script,
            [str(tmp_path / "cache"), str(tmp_path / "plan")],
            count=2,
            environment={
                "PYTHONPATH": str(ROOT),
                "JAX_PLATFORMS": "cpu",
                "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
                "JAX_COMPILATION_CACHE_DIR": None,
            },
            timeout_s=TIMEOUT_S,
        )
        for _ in range(2)
    )
    for process in (*cold, *warm):
        assert process.exit_code == 0, process.output
    before, after = (
        [json.loads(p.lines("gang ")[0].removeprefix("gang ")) for p in gang]
        for gang in (cold, warm)
    )

    assert [member["results"] for member in after] == [member["results"] for member in before]
    assert [member["results"]["everywhere"] for member in after] == [60.0, 60.0]
    # By now both are loaded or being loaded: JAX waits for the latter.
    assert [member["compiled"] for member in after] == [0, 0]
    assert [member["loaded_ahead"] for member in after] == [3, 3]


GANG = """
import json, os, pickle, sys, time
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import hotstart.cache
from hotstart.cache import active
from hotstart.cache.ahead import Planned

location, plan, _, distributed = sys.argv[1:]
address, count, index = distributed.split(",")
plan += index
hotstart.cache.enable(location)
link = active._active.link
if os.path.exists(plan):
    with open(plan, "rb") as file:
        link.load_ahead(pickle.load(file), active._active.cache.probe)
jax.distributed.initialize(address, int(count), int(index))
jax.devices()
ahead = link._serving.ahead
while ahead is not None and any(thread.is_alive() for thread in ahead._threads):
    time.sleep(0.002)

def over(devices):
    return NamedSharding(Mesh(np.array(devices), "d"), PartitionSpec("d"))

def everywhere(x):
    return jnp.sum(x) * 10

def spread(x):
    return x @ x.T

def donated(x):
    return x * 3

values = np.arange(4.0)
x = jax.make_array_from_callback(values.shape, over(jax.devices()), values.__getitem__)
y = jax.device_put(np.arange(8.0).reshape(2, 4), over(jax.local_devices()))
results = {
    "everywhere": float(jax.jit(everywhere)(x)),
    "spread": np.asarray(jax.jit(spread)(y)).tolist(),
    "donated": np.asarray(jax.jit(donated, donate_argnums=0)(y)).tolist(),
    "deleted": y.is_deleted(),
}
assert hotstart.cache.flush(60)
stats = hotstart.cache.stats()
requests = link.requests.all()
with open(plan, "wb") as file:
    pickle.dump([Planned(r.key, r.options, r.device_ids) for r in requests], file)
print("gang " + json.dumps({
    "results": results, "compiled": stats.compiled, "loaded_ahead": stats.loaded_ahead,
}), flush=True)
"""


ALONE = """
import pickle, sys, time
import hotstart.cache, jax
from hotstart.cache import active
from hotstart.cache.ahead import Planned
from jax._src import xla_bridge

location, plan = sys.argv[1:]
hotstart.cache.enable(location)
link, shared = active._active.link, active._active.cache
def step(x):
    for _ in range(40):
        x = jax.numpy.tanh(x @ x) + x
    return x
def run():
    return jax.jit(step)(jax.numpy.ones((8, 8))).sum()
def load():
    with open(plan, "rb") as file:
        link.load_ahead(pickle.load(file), shared.probe)
"""


def run_alone(tmp_path: Path, code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", ALONE + code, str(tmp_path / "cache"), str(tmp_path / "plan")],
        env={
            **{n: v for n, v in os.environ.items() if n != "JAX_COMPILATION_CACHE_DIR"},
            "PYTHONPATH": str(ROOT),
            "JAX_PLATFORMS": "cpu",
        },
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )


def write_plan(tmp_path: Path) -> None:
    done = run_alone(
        tmp_path,
        """
run()
with open(plan, "wb") as file:
    pickle.dump([Planned(r.key, r.options, r.device_ids) for r in link.requests.all()], file)
""",
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_backend_is_never_initialized_by_loading_ahead(tmp_path):
    write_plan(tmp_path)

    done = run_alone(
        tmp_path,
        """
load()
time.sleep(0.3)
early = bool(xla_bridge._backends)
jax.config.update("jax_num_cpu_devices", 3)
run()
print(early, len(jax.devices()))
""",
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, "False 3\n", "")


@pytest.mark.parametrize("delay_s", [0.0, 0.005, 0.02])
def test_process_that_ends_while_loading_ends_well(tmp_path, delay_s):
    write_plan(tmp_path)

    done = run_alone(
        tmp_path, f"load()\njax.devices()\ntime.sleep({delay_s})\nprint('over')\nsys.exit(3)"
    )

    assert (done.returncode, done.stdout, done.stderr) == (3, "over\n", "")


def test_process_that_never_uses_jax_ends_well(tmp_path):
    write_plan(tmp_path)

    done = run_alone(tmp_path, "load()\nprint('over')")

    assert (done.returncode, done.stdout, done.stderr) == (0, "over\n", "")
