"""One program with a large constant in it, so that its executable is large; one process.

The constant is random, so it doesn't get smaller by compression, and only looked into, so the
step itself takes no time. Prints when the step was done, on the monotonic clock.
"""

from __future__ import annotations

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np

from hotstart.launcher import context


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    random = np.random.default_rng(options.seed)
    constant = random.integers(0, 1 << 32, options.megabytes * 250_000, np.uint32)

    def look(index: jax.Array) -> jax.Array:
        return jax.lax.dynamic_index_in_dim(jnp.asarray(constant), index, keepdims=False)

    value = int(jax.jit(look)(np.int32(7)))
    done_at = time.monotonic()
    context.step(1)
    print(f"step 1 value {value} at {done_at:.6f}", flush=True)
    if value != constant[7]:
        raise SystemExit(f"expected {constant[7]}")


if __name__ == "__main__":
    main()
