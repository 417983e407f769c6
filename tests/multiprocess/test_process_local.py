"""Programs on one process's own devices: what one process compiled, every other one runs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.plain_gang import run_plain_gang

pytestmark = [pytest.mark.multiprocess, pytest.mark.internals]

ROOT = Path(__file__).parents[2]
PREFIX = "local "

# Results are exact lists by program; places are local ranks, in the order of an array's shards.
SCRIPT = """
import argparse, json
parser = argparse.ArgumentParser()
parser.add_argument("location")
parser.add_argument("local_devices", type=int)
parser.add_argument("only", type=int)
parser.add_argument("--distributed")
options = parser.parse_args()

from tests.support.compile_counter import install
counter = install()
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import hotstart.cache
from hotstart.cache import active

hotstart.cache.enable(options.location)
if options.local_devices > 1:
    jax.config.update("jax_num_cpu_devices", options.local_devices)
index = count = 0
if options.distributed:
    address, count, index = options.distributed.split(",")
    count, index = int(count), int(index)
    jax.distributed.initialize(address, count, index)
own = jax.local_devices()
results, places = {}, {}

def note(name, *arrays):
    results[name] = [np.asarray(array).tolist() for array in arrays]
    shards = [s for array in arrays for s in array.addressable_shards]
    places[name] = [own.index(s.device) for s in shards]

def plain(x):
    return jnp.sin(x) @ jnp.cos(x).T

def drawn(seed):
    return jax.random.normal(jax.random.key(seed), (4, 3))

def collective(x):
    back = [(i, (i + 1) % len(own)) for i in range(len(own))]
    moved = jax.lax.ppermute(x, "d", back) * 10
    return moved + jax.lax.psum(x, "d") * 100 + jax.lax.axis_index("d")

def spread(x):
    return x @ x.T

def donated(x):
    return x + 1

def mapped(x):
    return x * 2 + jax.lax.axis_index("i")

def work():
    x = np.arange(12.0, dtype="float32").reshape(4, 3)
    note("plain", jax.jit(plain)(x))
    note("drawn", jax.jit(drawn)(7))
    last = jax.device_put(x, own[-1])
    note("last", jax.jit(spread)(last))
    for name, devices in {"mesh": own, "reversed": own[::-1]}.items():
        mesh = Mesh(np.array(devices), "d")
        rows = NamedSharding(mesh, PartitionSpec("d"))
        y = jax.device_put(np.arange(len(own) * 2.0, dtype="float32"), rows)
        wrapped = jax.shard_map(
            collective, mesh=mesh, in_specs=PartitionSpec("d"), out_specs=PartitionSpec("d")
        )
        note(name, jax.jit(wrapped)(y))
        note(name + " spread", jax.jit(spread, out_shardings=rows)(jax.device_put(x, rows)))
        given = jax.device_put(x, rows)
        note(name + " donated", jax.jit(donated, donate_argnums=0)(given))
        results[name + " deleted"] = given.is_deleted()
    z = np.arange(len(own) * 1.0, dtype="float32")
    note("mapped", jax.pmap(mapped, axis_name="i", devices=own)(z))

def meet():
    # Processes 2 and 3 only: a program that process 0 takes no part in.
    mesh = Mesh(np.array([d for d in jax.devices() if d.process_index >= 2]), "d")
    rows = NamedSharding(mesh, PartitionSpec("d"))
    values = np.arange(float(mesh.size))
    x = jax.make_array_from_callback(values.shape, rows, values.__getitem__)
    results["meet"] = float(jax.jit(lambda x: jnp.sum(x * 3))(x))

if options.only in (-1, index):
    work()
if count == 4 and index >= 2:
    meet()
assert hotstart.cache.flush(60)
requests = active._active.link.requests.all()
print("local " + json.dumps({
    "results": results, "places": places, "compiled": counter.compiled,
    "keys": [r.key for r in requests], "outcomes": [r.outcome for r in requests],
    "errors": hotstart.cache.stats().errors,
}), flush=True)
"""


@dataclass(frozen=True)
class Member:
    """What one process did; `keys` and `outcomes` are those of hotstart's log of requests."""

    results: dict[str, Any]
    places: dict[str, list[int]]
    compiled: list[str]
    keys: list[str]
    outcomes: list[str]
    errors: int


def run_gang(tmp_path: Path, count: int, local_devices: int, only: int = -1) -> list[Member]:
    """Members by process; `only` is the one that runs its local programs, -1 means all."""
    script = tmp_path / "local.py"
    script.write_text(SCRIPT)
    ended = run_plain_gang(
        script,
        [str(tmp_path / "cache"), str(local_devices), str(only)],
        count=count,
        environment={
            "PYTHONPATH": str(ROOT),
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": None,
            "JAX_COMPILATION_CACHE_DIR": None,
        },
        timeout_s=120,
    )
    members = []
    for process in ended:
        assert process.exit_code == 0, process.output
        (line,) = process.lines(PREFIX)
        members.append(Member(**json.loads(line.removeprefix(PREFIX))))
    return members


@pytest.mark.parametrize(("count", "local_devices"), [(2, 1), (2, 2), (4, 1), (4, 2)])
def test_local_programs_of_one_process_are_run_by_all_others(tmp_path, count, local_devices):
    cold = run_gang(tmp_path, count, local_devices, only=count - 1)
    warm = run_gang(tmp_path, count, local_devices)

    maker = cold[-1]
    for member in warm:
        assert (member.compiled, member.errors) == ([], 0)
        assert set(member.outcomes) == {"hit"}
        results = {name: value for name, value in member.results.items() if name != "meet"}
        assert results == {n: value for n, value in maker.results.items() if n != "meet"}
        assert member.places == maker.places
        local = [key for key in member.keys if not key.startswith("jit__lambda")]
        assert local == [key for key in maker.keys if not key.startswith("jit__lambda")]


def test_local_programs_give_what_their_devices_in_that_order_must(tmp_path):
    run_gang(tmp_path, 2, 2, only=1)
    first, second = run_gang(tmp_path, 2, 2)

    for member in (first, second):
        assert member.compiled == []
        # Two devices with [0, 1] and [2, 3]: the peer's rows times 10, sums times 100, own rank.
        assert member.results["mesh"] == [[220.0, 430.0, 201.0, 411.0]]
        assert member.results["reversed"] == [[220.0, 430.0, 201.0, 411.0]]
        assert member.results["mapped"] == [[0.0, 3.0]]
        assert member.results["mesh deleted"] is True
        assert member.results["mesh donated"][0][3] == [10.0, 11.0, 12.0]
        assert member.places["plain"] == [0]
        assert member.places["last"] == [1]
        assert member.places["mesh"] == member.places["mesh spread"] == [0, 1]
        assert member.places["reversed"] == member.places["reversed donated"] == [1, 0]


def test_local_programs_on_other_devices_or_orders_have_other_keys(tmp_path):
    keys = run_gang(tmp_path, 1, 2)[0].keys

    def of(module: str) -> list[str]:
        return [key for key in keys if key.rpartition("-")[0] == module]

    # On the last device, over both in order, over both reversed.
    assert len(set(of("jit_spread"))) == 3
    assert len(set(of("jit_collective"))) == 2
    assert len(set(of("jit_donated"))) == 2


def test_process_alone_keeps_stock_keys_and_shares_none_with_a_gang(tmp_path):
    gang = run_gang(tmp_path, 2, 2, only=1)
    first, again = (run_gang(tmp_path, 1, 2)[0] for _ in range(2))

    assert not set(first.keys) & set(gang[1].keys)
    assert (first.results, again.results) == (gang[1].results, gang[1].results)
    assert again.compiled == []


def test_programs_of_some_processes_have_one_key_among_those(tmp_path):
    cold = run_gang(tmp_path, 4, 1, only=4)
    warm = run_gang(tmp_path, 4, 1, only=4)

    for gang in (cold, warm):
        assert [len(member.keys) for member in gang] == [0, 0, 1, 1]
        assert gang[2].keys == gang[3].keys == cold[2].keys
        assert [member.results.get("meet") for member in gang] == [None, None, 3.0, 3.0]
    assert [member.compiled for member in warm] == [[], [], [], []]
    assert len(list((tmp_path / "cache" / "entries" / "v1").iterdir())) == 1
