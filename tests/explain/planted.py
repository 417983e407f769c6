"""The program that causes are planted in; run as a script, it prints what it compiled.

    python planted.py LOCATION [variant ...] [--xla...]

One program, `jit_train`: two arguments, one sharded over all devices.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def main(location: str, variants: set[str]) -> None:
    """Enable the cache, call the program, print the keys that were compiled."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax._src import cache_key, compilation_cache

    if "jaxlib" in variants:
        cache_key.jaxlib_version_str = "9.9.9"
    if "hook" in variants:
        cache_key.custom_hook = lambda: "planted"
    if "compression" in variants:
        compilation_cache.zstandard = None
    if "config" in variants:
        jax.config.update("jax_default_matmul_precision", "highest")
    if "backend" in variants:
        _rename_backend(cache_key)

    from hotstart import cache

    requests = []
    cache.enable(location, node_dir=None)
    from hotstart.cache import active

    assert active._active is not None
    active._active.link.requests.on_request = requests.append

    dtype = jnp.bfloat16 if "dtype" in variants else jnp.float16 if "half" in variants else None
    dtype = dtype or jnp.float32
    rows = 16 if "shape" in variants else 8
    mesh = jax.sharding.Mesh(np.array(jax.devices()), "d")
    over = jax.sharding.PartitionSpec

    def place(values: Any, *axes: str | None) -> Any:
        return jax.device_put(values, jax.sharding.NamedSharding(mesh, over(*axes)))

    axes = (None, "d") if "across" in variants else ("d", None)
    batch = place(np.ones((rows, 16), dtype), *axes)
    weights: Any = jnp.asarray(np.ones((16, 16), dtype))
    if "sharding" in variants:
        weights = place(weights, None, "d")
    if "restored" in variants:
        weights = place(weights)

    def train(params: Any, batch: Any) -> Any:
        activate = jnp.sin if "code" in variants else jnp.tanh
        scale = 3.5 if "constant" in variants else 2.5
        out = activate(batch @ params["w"]) * scale
        return {"loss": out.mean(), "w": params["w"] - 0.5}

    options = {"xla_llvm_disable_expensive_passes": True} if "option" in variants else None
    donated = (0,) if "donation" in variants else ()
    call = jax.jit(train, donate_argnums=donated, compiler_options=options)
    float(call({"w": weights}, batch)["loss"])
    assert cache.flush(60)
    told = [[r.key, r.outcome] for r in requests if r.module == "jit_train"]
    print("planted " + json.dumps(told), flush=True)


def _rename_backend(cache_key: Any) -> None:
    """Another version of the runtime, in the function that hashes it."""
    stock = cache_key._hash_platform

    class Renamed:
        def __init__(self, backend: Any) -> None:
            self.platform = backend.platform
            self.platform_version = "made-up runtime"

    cache_key._hash_platform = lambda hashed, backend: stock(hashed, Renamed(backend))


if __name__ == "__main__":
    main(sys.argv[1], {word for word in sys.argv[2:] if not word.startswith("-")})
