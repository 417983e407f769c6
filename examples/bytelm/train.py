"""Train a byte-level language model on Python's standard library, on all processes' devices.

Under hotstart every worker runs this file; alone it is a single process; with `--distributed`
plain processes form a gang by themselves. A killed run resumes from its last checkpoint, a
preempted one from the step that it left at, and prints the losses that an undisturbed one prints.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
from data import read_text, take_batch
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from model import ByteTransformer

from hotstart.launcher import context


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--length", type=int, default=64, help="bytes a sequence")
    parser.add_argument("--batch", type=int, default=16, help="sequences a step, over all devices")
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint-dir", default=context.checkpoint_dir())
    parser.add_argument("--checkpoint-every", type=int, default=5, help="steps")
    parser.add_argument("--loss-digits", type=int, default=6, help="decimals of a printed loss")
    parser.add_argument(
        "--distributed",
        metavar="COORDINATOR,COUNT,INDEX",
        help="join a gang of plain processes; not under a launcher",
    )
    options = parser.parse_args()
    if options.width % options.heads:
        parser.error(f"--width {options.width} is not a multiple of --heads {options.heads}")
    if options.checkpoint_every < 1:
        parser.error(f"--checkpoint-every {options.checkpoint_every}: give 1 or more")
    if options.distributed and len(options.distributed.split(",")) != 3:
        parser.error(f"--distributed {options.distributed}: give COORDINATOR,COUNT,INDEX")
    return options


class Trainer:
    """The two programs of a run, `init` and `step`, and the shardings that both commit to.

    A checkpoint is restored into `abstract_state`, the very shapes and shardings that `init`
    returns. So `step` is asked for with one cache key by fresh and restored runs alike, and a
    restored run needs no program that a fresh one didn't.
    """

    def __init__(self, options: argparse.Namespace):
        # A data-parallel mesh: parameters on every device, each with its share of the batch.
        mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
        replicated = NamedSharding(mesh, PartitionSpec())
        self._batch_sharding = NamedSharding(mesh, PartitionSpec("data"))

        def build() -> tuple[nnx.Module, nnx.Optimizer]:
            model = ByteTransformer(
                layers=options.layers,
                width=options.width,
                heads=options.heads,
                length=options.length,
                dropout=options.dropout,
                rngs=nnx.Rngs(options.seed),
            )
            rule = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(options.learning_rate))
            return model, nnx.Optimizer(model, rule, wrt=nnx.Param)

        def init() -> nnx.State:
            return nnx.state(build())

        graph, shapes = nnx.split(nnx.eval_shape(build))

        def loss_of(model: nnx.Module, tokens: jax.Array, rngs: nnx.Rngs) -> jax.Array:
            logits = model(tokens[:, :-1], rngs)
            return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

        def step(state: nnx.State, tokens: jax.Array) -> tuple[nnx.State, jax.Array]:
            model, optimizer = nnx.merge(graph, state)
            # Drawn from the step's number, so that a resumed run drops what this one would drop.
            key = jax.random.fold_in(jax.random.key(options.seed), optimizer.step[...])
            rngs = nnx.Rngs(dropout=key)
            loss, gradients = nnx.value_and_grad(loss_of)(model, tokens, rngs)
            optimizer.update(model, gradients)
            return nnx.state((model, optimizer)), loss

        self.abstract_state = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated), shapes
        )
        self.init = jax.jit(init, out_shardings=replicated)
        self.step = jax.jit(step, out_shardings=replicated, donate_argnums=0)
        self.parameter_count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes[0]))

    def spread(self, batch: np.ndarray) -> jax.Array:
        """The global batch as an array over all devices; each process hands over its rows."""
        rows = np.split(batch, jax.process_count())[jax.process_index()]
        return jax.make_array_from_process_local_data(self._batch_sharding, rows, batch.shape)


def main() -> None:
    options = parse_options()
    if options.distributed:
        address, count, index = options.distributed.split(",")
        jax.distributed.initialize(address, int(count), int(index))
    if options.batch % jax.device_count():
        raise SystemExit(
            f"--batch {options.batch} is not a multiple of the {jax.device_count()} devices"
        )

    text = read_text()
    trainer = Trainer(options)
    checkpoints = open_checkpoints(options.checkpoint_dir)
    done = checkpoints.latest_step() if checkpoints else None
    if done is None:
        done, state = 0, trainer.init()
    else:
        state = restore_state(checkpoints, done, trainer.abstract_state)

    speaks = jax.process_index() == 0
    if speaks:
        print(
            f"bytelm: {trainer.parameter_count:,} parameters, {len(text):,} bytes of text, "
            f"{jax.process_count()} processes, {done} steps done",
            flush=True,
        )
    leaving = False
    for step in range(done + 1, options.steps + 1):
        batch = take_batch(text, options.seed, step, options.batch, options.length)
        state, loss = trainer.step(state, trainer.spread(batch))
        loss.block_until_ready()
        context.step(step)
        if speaks:
            print(f"step {step} loss {float(loss):.{options.loss_digits}f}", flush=True)
        leaving = context.preempted()  # the same answer in all processes, which save together
        due = step % options.checkpoint_every == 0 or step == options.steps
        if checkpoints and (due or leaving):
            checkpoints.save(step, args=ocp.args.PyTreeSave(state), force=leaving)
        if leaving:
            break
    if checkpoints:
        checkpoints.close()
    if leaving:
        context.leave()


def open_checkpoints(location: str | Path | None) -> ocp.CheckpointManager | None:
    """The checkpoints in a folder or under a `gs://` URL; None without a location. Saves block."""
    if location is None:
        return None
    if "://" not in str(location):
        location = Path(location).absolute()
    # By default each process writes its part of a replicated array, which costs a few small
    # programs that are asked for only at the first save. Here process 0 writes all of it.
    whole = ocp.type_handlers.ArrayHandler(use_replica_parallel=False)
    registry = ocp.type_handlers.create_type_handler_registry((jax.Array, whole))
    return ocp.CheckpointManager(
        location,
        item_handlers=ocp.PyTreeCheckpointHandler(type_handler_registry=registry),
        options=ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False),
    )


def restore_state(checkpoints: ocp.CheckpointManager, step: int, like: nnx.State) -> nnx.State:
    """The state saved after a step, in the shapes, types and shardings of `like`."""
    sharded = ocp.checkpoint_utils.construct_restore_args(like)
    return checkpoints.restore(step, args=ocp.args.PyTreeRestore(like, restore_args=sharded))


if __name__ == "__main__":
    main()
