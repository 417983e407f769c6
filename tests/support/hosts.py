"""Several hosts on one machine: raylets with a home, so a node directory, of their own each.

`PROGRAMS` is a job for them that compiles known programs and says what was compiled, and
`settings.json` beside it changes what it does without changing the job.
"""

from __future__ import annotations

import collections
import contextlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.support.compile_counter import read_counts
from tests.support.gcs_proxy import GcsProxy
from tests.support.launch import Site, site
from tests.support.ray_process import ray_process

_ROOT = Path(__file__).resolve().parents[2]
_NODES = """
import json, sys
from ray.cluster_utils import Cluster
cluster = Cluster()
for home in json.loads(sys.stdin.readline()):
    cluster.add_node(num_cpus=1, include_dashboard=False, env_vars={"HOTSTART_HOME": home})
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@dataclass(frozen=True)
class Hosts:
    """A running cluster; `homes` are its raylets' `HOTSTART_HOME`s."""

    address: str
    temp: Path
    homes: tuple[Path, ...]
    environ: Mapping[str, str]

    @contextlib.contextmanager
    def site(self, script: str | None = None, **settings: object) -> Iterator[Site]:
        """A site with `PROGRAMS` in it that launches on this cluster."""
        with site(self.address, self.temp) as made:
            write_programs(made, script, **settings)
            yield made

    def empty(self) -> None:
        """Take away what is in the hosts' node directories."""
        for home in self.homes:
            shutil.rmtree(home, ignore_errors=True)

    def entries(self, host: int) -> list[Path]:
        """The entries in the node directory of a host."""
        found = (self.homes[host] / "node").glob("*/entries/**/*")
        return sorted(path for path in found if path.is_file())


@contextlib.contextmanager
def hosts(count: int, environ: Mapping[str, str]) -> Iterator[Hosts]:
    """A Ray cluster of `count` raylets with one CPU each, and `environ`. Blocks for seconds."""
    with ray_process(_NODES, **environ) as cluster:
        homes = tuple(cluster.root / f"host-{index}" for index in range(count))
        yield Hosts(cluster.tell(json.dumps([*map(str, homes)])), cluster.temp, homes, environ)


PROGRAMS = """
    import json, os, pathlib, sys, time
    sys.path.insert(0, {root!r})
    from tests.support import compile_counter
    compile_counter.install(print_at_exit=True)
    import jax, jax.numpy as jnp, numpy as np
    from jax._src import compiler
    from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
    from hotstart.launcher import context

    folder = pathlib.Path(__file__).parent
    wanted = json.loads((folder / "settings.json").read_text())
    index, attempt = context.process_index(), context.attempt()
    print("pids", os.getpid(), os.getppid(), 0, flush=True)
    jax.config.update("jax_num_cpu_devices", wanted.get("devices", 1))
    compile_program = compiler.backend_compile_and_load

    def compile_when_told(backend, program, *args, **kwargs):
        name = program.operation.attributes["sym_name"].value
        print("compiling", name, flush=True)
        pause(name.removeprefix("jit_"))
        return compile_program(backend, program, *args, **kwargs)

    compiler.backend_compile_and_load = compile_when_told

    def pause(place):
        told = wanted.get("pauses", {{}}).get(place)
        if told is None or attempt > 1 or index not in told[0]:
            return
        print("pausing", place, flush=True)
        deadline = time.monotonic() + told[1]
        while time.monotonic() < deadline and not (folder / f"go-{{place}}").exists():
            time.sleep(0.02)

    def program(kind, number):
        factor = wanted.get("factors", {{}}).get(kind, 1)

        def run(x):
            return jnp.sum(jnp.tanh(x * number) + factor)

        run.__name__ = f"{{kind}}_{{number}}"
        return jax.jit(run)

    total = 0.0

    def over(devices, kind, number):
        mesh = Mesh(np.array(devices), ("x",))
        size = wanted.get("size", 8)
        where = NamedSharding(mesh, P("x"))
        values = np.linspace(-1, 1.5, size * len(devices), dtype=np.float32)
        x = jax.make_array_from_callback(values.shape, where, lambda part: values[part])
        return float(program(kind, number)(x).addressable_data(0))

    everybody = jax.devices()
    pause("before")
    for number in range(1, 4):
        total += over(everybody, "whole", number)
        if number == 1:
            context.step(1)
            print("step 1", flush=True)
            pause("middle")
    pause("local")
    total += over(jax.local_devices(), "local", 1)
    print("local done", flush=True)
    upper = [d for d in everybody if d.process_index >= jax.process_count() // 2]
    if index >= jax.process_count() // 2:
        over(upper, "upper", 1)
    total += over(everybody, "last", 1)
    context.step(2)
    print("step 2", flush=True)
    pause("end")
    if attempt > 1:
        total += over(everybody, "again", 1)
    print(f"total {{total:.2f}}", flush=True)
"""
NAMES = ("whole_1", "whole_2", "whole_3", "local_1", "upper_1", "last_1")

JOB = """
    script: train.py
    workers: 4
    workers_per_host: 2
    resources_per_worker: {CPU: 0.5}
    restarts: {failures: 1, backoff_s: 0, standby: false}
"""


def write_programs(here: Site, script: str | None = None, **settings: object) -> None:
    """`PROGRAMS`, or another such script, its settings, and a job for two workers a host."""
    text = script or PROGRAMS
    here.write("train.py", text.format(root=str(_ROOT)))
    here.write("settings.json", json.dumps(settings))
    here.write("job.yaml", JOB)


def compiled(output: str) -> dict[str, int]:
    """How often each of the known programs was compiled by the processes that printed this."""
    names = [name.removeprefix("jit_") for c in read_counts(output) for name in c.compiled]
    known = collections.Counter(name for name in names if re.fullmatch(r"[a-z]+_\d", name))
    return {name: known[name] for name in sorted(known)}


def begun(output: str) -> dict[str, int]:
    """How often each program began to be compiled, also by processes that were killed."""
    return dict(
        collections.Counter(re.findall(r"^\[\d\] compiling jit_(\w+_\d)$", output, re.MULTILINE))
    )


def totals(output: str) -> list[float]:
    """The result that each process printed."""
    found = re.findall(r"^\[\d+\] total (\S+)$", output, re.MULTILINE)
    return [float(total) for total in found]


def expected_total(
    processes: int = 4, devices: int = 1, size: int = 8, last_factor: int = 1, attempts: int = 1
) -> float:
    """What `PROGRAMS` computes, worked out without JAX."""

    def over(count: int, number: int, factor: int = 1) -> float:
        values = np.linspace(-1, 1.5, size * count, dtype=np.float32)
        return float(np.sum(np.tanh(values * number) + factor))

    everybody = processes * devices
    whole = sum(over(everybody, number) for number in range(1, 4))
    again = over(everybody, 1) if attempts > 1 else 0.0
    return whole + over(devices, 1) + over(everybody, 1, last_factor) + again


TOTAL = pytest.approx(expected_total(), abs=0.02)


def gets(proxy: GcsProxy) -> dict[str, int]:
    """How often the bytes of each entry were read from the bucket."""
    read = [
        request.object_name
        for request in proxy.requests("GET", "/entries/")
        if "alt=media" in request.query and request.status == 200
    ]
    return dict(collections.Counter(read))
