"""Many programs in a row, each over all devices of the gang, as a real job's start has them.

No two have the same cache key; each takes some tenths of a second to compile on CPU and next to
nothing to run. Joins a gang by `--distributed COORDINATOR,COUNT,INDEX` as the example does.
"""

from __future__ import annotations

import argparse

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hotstart.launcher import context


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--programs", type=int, default=64)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--distributed", metavar="COORDINATOR,COUNT,INDEX")
    options = parser.parse_args()
    if options.distributed:
        address, count, index = options.distributed.split(",")
        jax.distributed.initialize(address, int(count), int(index))
    mesh = Mesh(np.array(jax.devices()), ("data",))
    spread = NamedSharding(mesh, PartitionSpec("data"))
    values = np.ones((8 * jax.device_count(), 16), np.float32)
    batch = jax.make_array_from_callback(values.shape, spread, values.__getitem__)
    total = 0.0
    for number in range(options.programs):
        program = jax.jit(_program(number, options.depth))
        total += float(program(batch).addressable_data(0))
    context.step(1)
    if jax.process_index() == 0:
        print(f"step 1 loss {total:.4f}", flush=True)


def _program(number: int, depth: int) -> object:
    def loss(x: jax.Array, weight: jax.Array) -> jax.Array:
        for layer in range(depth):
            x = jnp.tanh(x @ (weight * (1 + layer) + number))
            x = x - jax.nn.softmax(x, axis=-1).mean(axis=0)
        return jnp.sum(x * x)

    def program(x: jax.Array) -> jax.Array:
        value, gradient = jax.value_and_grad(loss, argnums=1)(x, jnp.eye(16))
        return value + gradient.sum()

    program.__name__ = f"program_{number:03d}"
    return program


if __name__ == "__main__":
    main()
