"""A gang of plain processes with `hotstart.cache`: global, local and one-sided programs.

Run as a script by `run_cache_gang`; each process prints one JSON line.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.plain_gang import run_plain_gang

_ROOT = Path(__file__).resolve().parents[2]
_PREFIX = "gang "


@dataclass(frozen=True)
class Member:
    """What one process of the gang did: results, the test's own counts, hotstart's."""

    results: dict[str, float]
    requested: list[str]
    compiled: list[str]
    stats: dict[str, Any]


# What the programs of `_main` must give, in whichever process.
RESULTS = {"everywhere": 8.0, "mine": 12.0}
ONE_SIDED = {"alone": 21.0}


def run_cache_gang(
    location: str | Path, *, node_dir: Path | None = None, count: int = 2
) -> list[Member]:
    """Run a gang to its end, each process with `enable(location)`; blocks."""
    arguments = [str(location)]
    if node_dir is not None:
        arguments += ["--node-dir", str(node_dir)]
    ended = run_plain_gang(
        __file__,
        arguments,
        count=count,
        environment={
            "PYTHONPATH": str(_ROOT),
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": None,
            "JAX_COMPILATION_CACHE_DIR": None,
        },
        timeout_s=120,
    )
    members = []
    for process in ended:
        assert process.exit_code == 0, process.output
        (line,) = process.lines(_PREFIX)
        members.append(Member(**json.loads(line.removeprefix(_PREFIX))))
    return members


def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("location")
    parser.add_argument("--node-dir")
    parser.add_argument("--distributed")
    options = parser.parse_args()

    from tests.support.compile_counter import install

    counter = install()
    import jax
    import jax.numpy as jnp
    import numpy as np

    import hotstart.cache

    hotstart.cache.enable(options.location, node_dir=options.node_dir)
    coordinator, count, index = options.distributed.split(",")
    jax.distributed.initialize(coordinator, int(count), int(index))
    mesh = jax.sharding.Mesh(np.array(jax.devices()), "d")
    values = np.array([4.0] + [0.0] * (int(count) - 1))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("d"))
    sharded = jax.make_array_from_callback(values.shape, sharding, values.__getitem__)

    def everywhere(x: Any) -> Any:
        return jnp.sum(x * 2)

    def mine(x: Any) -> Any:
        return jnp.dot(x, x) - 2

    def alone(x: Any) -> Any:
        return jnp.sum(x) * 7

    results = {
        "everywhere": float(jax.jit(everywhere)(sharded)),
        "mine": float(jax.jit(mine)(np.array([3.0, 2.0, 1.0]))),
    }
    if int(index) == 1:
        results["alone"] = float(jax.jit(alone)(np.array([1.0, 2.0])))
    assert hotstart.cache.flush(60)
    stats = dataclasses.asdict(hotstart.cache.stats())
    member = Member(results, counter.requested, counter.compiled, stats)
    print(_PREFIX + json.dumps(dataclasses.asdict(member)), flush=True)


if __name__ == "__main__":
    _main()
