"""The Ray Train example with JAX's own functions counted, held after its first checkpoint.

Usage: ADDRESS NAME STORAGE CACHE FOLDER [hold]. What each worker counted goes to files in FOLDER;
with `hold` the first attempt goes on only over its workers' dead bodies.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "ray_train"
STEPS, EVERY = 20, 10


def counted_loop(options: dict[str, Any]) -> None:
    sys.path.insert(0, str(EXAMPLE))
    import ray.train
    from train import train_loop  # type: ignore[import-not-found]

    from tests.support import compile_counter

    counter = compile_counter.install()
    folder = Path(options["folder"])
    report = ray.train.report
    is_first = ray.train.get_checkpoint() is None

    def hold(metrics: dict[str, Any], checkpoint: Any = None) -> None:
        report(metrics, checkpoint=checkpoint)
        while options["hold"] and is_first:
            (folder / f"holding-{os.getpid()}").touch()
            time.sleep(0.05)

    ray.train.report = hold
    train_loop(options)
    (folder / f"counted-{os.getpid()}").write_text(counter.line())


def main() -> None:
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.v2.jax import JaxTrainer

    from hotstart.launcher.ray_train import JaxConfig, read_report

    address, name, storage, cache, folder, *rest = sys.argv[1:]
    ray.init(address, runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}}, log_to_driver=False)
    options = {
        **{"steps": STEPS, "checkpoint_every": EVERY, "layers": 2, "width": 32, "length": 8},
        **{"batch": 16, "folder": folder, "hold": rest == ["hold"]},
    }
    result = JaxTrainer(
        counted_loop,
        train_loop_config=options,
        jax_config=JaxConfig(cache=cache),
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(
            name=name, storage_path=storage, failure_config=FailureConfig(max_failures=1)
        ),
    ).fit()
    print("final loss", repr(result.metrics["loss"]), "step", result.metrics["step"])
    print(read_report(result))


if __name__ == "__main__":
    main()
