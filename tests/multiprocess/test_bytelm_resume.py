"""The bytelm example on plain processes with stock JAX: what a restart must not change."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.plain_gang import Ended, run_plain_gang

pytestmark = [pytest.mark.multiprocess, pytest.mark.internals]

TRAIN = Path(__file__).parents[2] / "examples" / "bytelm" / "train.py"
# Nine decimals tell any two float32 losses of this size apart.
SMALL = ["--layers", "2", "--width", "32", "--batch", "8", "--loss-digits", "9"]

# Runs a script as itself, and says at its end which programs it had the backend compile.
COUNTING = """
import runpy, sys
from pathlib import Path

import jax._src.compiler as compiler

stock, compiled = compiler.backend_compile_and_load, []

def counting(backend, module, *args, **kwargs):
    compiled.append(module.operation.attributes["sym_name"].value)
    return stock(backend, module, *args, **kwargs)

compiler.backend_compile_and_load = counting
sys.argv = sys.argv[1:]
sys.path[0] = str(Path(sys.argv[0]).parent)
runpy.run_path(sys.argv[0], run_name="__main__")
print("compiled", *compiled)
"""


def environment(cache: Path) -> dict[str, str | None]:
    return {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": None,
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "HOTSTART_CHECKPOINT_DIR": None,
    }


def train(checkpoints: Path, cache: Path, *arguments: str, kill_at: str | None = None) -> Ended:
    """Process 0 of a gang of two."""
    return run_plain_gang(
        TRAIN,
        [*SMALL, "--checkpoint-dir", str(checkpoints), *arguments],
        count=2,
        environment=environment(cache),
        kill_at=kill_at,
    )[0]


def train_counted(checkpoints: Path, cache: Path, counter: Path, steps: int) -> Ended:
    """One process, its compilations counted."""
    arguments = [*SMALL, "--checkpoint-dir", str(checkpoints), "--steps", str(steps)]
    (ended,) = run_plain_gang(
        counter, [str(TRAIN), *arguments], count=1, environment=environment(cache)
    )
    assert ended.exit_code == 0, ended.output
    return ended


def test_bytelm_killed_and_resumed_prints_the_losses_of_an_undisturbed_run(tmp_path):
    arguments = ["--steps", "12", "--checkpoint-every", "4"]
    cache = tmp_path / "cache"
    undisturbed = train(tmp_path / "whole", cache, *arguments)
    assert undisturbed.exit_code == 0, undisturbed.output

    killed = train(tmp_path / "parts", cache, *arguments, kill_at="step 6 ")
    assert killed.exit_code == -9, killed.output
    resumed = train(tmp_path / "parts", cache, *arguments)
    assert resumed.exit_code == 0, resumed.output

    expected = undisturbed.lines("step ")
    assert [line.split()[1] for line in expected] == [str(n) for n in range(1, 13)]
    assert killed.lines("step ")[:6] == expected[:6]
    assert resumed.lines("step ") == expected[4:]


def test_bytelm_restored_with_a_warm_cache_compiles_nothing(tmp_path):
    counter = tmp_path / "counting.py"
    counter.write_text(COUNTING)
    checkpoints, cache = tmp_path / "checkpoints", tmp_path / "cache"

    fresh = train_counted(checkpoints, cache, counter, steps=3)
    restored = train_counted(checkpoints, cache, counter, steps=6)

    assert fresh.lines("compiled") == ["compiled jit_init jit_step"]
    assert [line.split()[1] for line in restored.lines("step ")] == ["4", "5", "6"]
    assert restored.lines("compiled") == ["compiled"]


def test_bytelm_batch_that_devices_do_not_divide_ends_with_one_line(tmp_path):
    (ended,) = run_plain_gang(
        TRAIN,
        ["--batch", "3", "--steps", "1"],
        count=1,
        environment={
            **environment(tmp_path),
            "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        },
    )

    assert ended.exit_code == 1
    assert ended.output == "--batch 3 is not a multiple of the 2 devices\n"
