"""Train a byte-level model with Ray Train's JaxTrainer, with hotstart's cache in place.

    python examples/ray_train/train.py --steps 40 --workers 2

A worker that is killed makes Ray Train start the group again: it resumes from the last checkpoint,
compiles nothing, and prints the losses that an undisturbed run prints. `--address` takes a cluster
that is there; then every node needs hotstart installed, and storage and cache must be shared.
"""

from __future__ import annotations

import argparse
import sysconfig
import tempfile
from pathlib import Path
from typing import Any


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--length", type=int, default=16, help="bytes that predict the next one")
    parser.add_argument("--batch", type=int, default=64, help="windows a step, over all workers")
    parser.add_argument("--checkpoint-every", type=int, default=10, help="steps")
    parser.add_argument("--cache", help="a directory or gs://bucket/prefix")
    parser.add_argument("--storage", default="~/ray_results", help="checkpoints and the report")
    parser.add_argument("--name", default="bytes", help="the same name resumes a run")
    parser.add_argument("--failures", type=int, default=3, help="restarts after failures")
    parser.add_argument("--address", help="of a Ray cluster; default: one of its own")
    return parser.parse_args()


def train_loop(options: dict[str, Any]) -> None:
    """What each worker runs; cache and `jax.distributed` are in place."""
    import jax
    import numpy as np
    import optax
    import ray.train
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    replicated = NamedSharding(mesh, PartitionSpec())
    spread = NamedSharding(mesh, PartitionSpec("data"))
    rule = optax.adam(1e-3)
    width, layers, length = options["width"], options["layers"], options["length"]

    def init() -> Any:
        keys = jax.random.split(jax.random.key(0), layers + 2)
        params = {
            "embed": jax.random.normal(keys[0], (256, width)) * 0.1,
            "enter": jax.random.normal(keys[1], (length * width, width)) * (length * width) ** -0.5,
            "blocks": [jax.random.normal(k, (width, width)) * width**-0.5 for k in keys[2:]],
        }
        return params, rule.init(params)

    def loss_of(params: Any, windows: jax.Array) -> jax.Array:
        hidden = params["embed"][windows[:, :-1]].reshape(len(windows), -1) @ params["enter"]
        for block in params["blocks"]:
            hidden = hidden + jax.nn.gelu(hidden @ block)
        logits = hidden @ params["embed"].T
        return optax.softmax_cross_entropy_with_integer_labels(logits, windows[:, -1]).mean()

    @jax.jit(out_shardings=replicated, donate_argnums=0)
    def advance(state: Any, windows: jax.Array) -> Any:
        params, moments = state
        loss, gradients = jax.value_and_grad(loss_of)(params, windows)
        changes, moments = rule.update(gradients, moments)
        return (optax.apply_updates(params, changes), moments), loss

    text = _read_text()
    share = options["batch"] // jax.process_count()

    def batch_of(step: int) -> jax.Array:
        starts = np.random.default_rng(step).integers(0, len(text) - length, options["batch"])
        windows = text[starts[:, None] + np.arange(length + 1)].astype(np.int32)
        own = windows[jax.process_index() * share :][:share]
        return jax.make_array_from_process_local_data(spread, own)

    # Restored in the very shapes and shardings of a fresh state, so `advance` keeps its key.
    done, state = 0, None
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            stored = np.load(Path(folder) / "state.npz")
            done = int(stored["done"])
            leaves = [stored[f"leaf{i}"] for i in range(len(stored.files) - 1)]
        structure = jax.tree.structure(jax.eval_shape(init))
        # Not `jax.device_put`, which compares the workers' values, by a program of its own.
        state = jax.tree.unflatten(
            structure,
            [jax.make_array_from_callback(x.shape, replicated, x.__getitem__) for x in leaves],
        )
    else:
        state = jax.jit(init, out_shardings=replicated)()

    for step in range(done + 1, options["steps"] + 1):
        state, loss = advance(state, batch_of(step))
        if step % options["checkpoint_every"] and step != options["steps"]:
            continue
        with tempfile.TemporaryDirectory() as folder:
            saved = None
            if jax.process_index() == 0:
                leaves = {f"leaf{i}": x for i, x in enumerate(jax.tree.leaves(state))}
                np.savez(Path(folder) / "state.npz", done=step, **jax.device_get(leaves))
                saved = ray.train.Checkpoint.from_directory(folder)
            print(f"step {step} loss {float(loss):.6f}", flush=True)
            ray.train.report({"step": step, "loss": float(loss)}, checkpoint=saved)


def _read_text() -> Any:
    """The top-level modules of Python's standard library, as one array of bytes."""
    import numpy as np

    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    return np.frombuffer(b"\n".join(path.read_bytes() for path in files)[:4_000_000], np.uint8)


def main() -> None:
    options = parse_options()
    import ray
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.v2.jax import JaxTrainer

    from hotstart.launcher.ray_train import JaxConfig, read_report

    ray.init(options.address)
    trainer = JaxTrainer(
        train_loop,
        train_loop_config=vars(options),
        jax_config=JaxConfig(cache=options.cache),
        scaling_config=ScalingConfig(num_workers=options.workers),
        run_config=RunConfig(
            name=options.name,
            storage_path=str(Path(options.storage).expanduser().absolute()),
            failure_config=FailureConfig(max_failures=options.failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    )
    result = trainer.fit()
    print(f"final loss {result.metrics['loss']:.6f} after step {result.metrics['step']}")
    print(read_report(result))


if __name__ == "__main__":
    main()
