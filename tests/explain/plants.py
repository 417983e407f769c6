"""What can be planted, and what it must be called."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Plant:
    """One cause of a miss.

    kinds: what `hotstart cache explain` must call it, exactly.
    says: words that must be in what it says.
    variant: a word for `planted.py`; environ, arguments: for its process.
    group: plants of one group set the same thing.
    """

    name: str
    kinds: frozenset[str]
    says: tuple[str, ...] = ()
    variant: str = ""
    environ: Mapping[str, str] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()
    group: str = ""


def _plant(name: str, kind: str, *says: str, **settings: object) -> Plant:
    return Plant(name, frozenset({kind}), says, **settings)  # type: ignore[arg-type]


DEVICES = "--xla_force_host_platform_device_count="
BASE_ENVIRON = {"XLA_FLAGS": f"{DEVICES}2"}

PLANTS = [
    _plant(
        "xla-flag", "flag", "--xla_cpu_enable_fast_math", "true",
        environ={"XLA_FLAGS": f"{DEVICES}2 --xla_cpu_enable_fast_math=true"}, group="XLA_FLAGS",
    ),
    _plant(
        "libtpu-flag", "flag", "--xla_tpu_made_up", "LIBTPU_INIT_ARGS",
        environ={"LIBTPU_INIT_ARGS": "--xla_tpu_made_up=5"},
    ),
    _plant("argument-flag", "flag", "--xla_made_up", arguments=("--xla_made_up=3",)),
    _plant(
        "device-count", "devices", "is 4 and was 2",
        environ={"XLA_FLAGS": f"{DEVICES}4"}, group="XLA_FLAGS",
    ),
    _plant("jaxlib-version", "version", "jaxlib", "9.9.9", variant="jaxlib"),
    _plant("backend-version", "version", "made-up runtime", variant="backend"),
    _plant("compression", "compression", "zlib", variant="compression"),
    _plant("custom-hook", "hook", "planted", variant="hook"),
    _plant(
        "compile-option", "compile_option", "xla_llvm_disable_expensive_passes",
        variant="option",
    ),
    _plant(
        "jax-config", "jax_config", "jax_default_matmul_precision", "highest", variant="config"
    ),
    _plant("code", "code", "sine", variant="code", group="code"),
    _plant("code-constant", "code", "3.5", variant="constant", group="code"),
    _plant("dtype", "dtype", "bf16", "f32", variant="dtype", group="dtype"),
    _plant("dtype-half", "dtype", "f16", "f32", variant="half", group="dtype"),
    _plant("shape", "shape", "[16,16]", "[8,16]", variant="shape"),
    _plant("donation", "donation", "params['w']", "donated", variant="donation"),
    _plant("sharding", "sharding", "params['w']", variant="sharding", group="placing"),
    _plant("batch-sharding", "sharding", "batch", variant="across"),
    _plant("restored", "committed", "params['w']", "restored", variant="restored", group="placing"),
]  # fmt: skip
BY_NAME = {plant.name: plant for plant in PLANTS}


def fits(plants: tuple[Plant, ...]) -> bool:
    """Whether these can be planted together."""
    groups = [plant.group or plant.name for plant in plants]
    return len(set(groups)) == len(groups)


def trials(seed: int, pairs: int, controls: int) -> list[tuple[Plant, ...]]:
    """Each plant alone, some pairs, some controls (nothing), in random order."""
    rng = random.Random(seed)
    together = [two for two in itertools.combinations(PLANTS, 2) if fits(two)]
    chosen: list[tuple[Plant, ...]] = [(plant,) for plant in PLANTS]
    chosen += rng.sample(together, min(pairs, len(together)))
    chosen += [()] * controls
    rng.shuffle(chosen)
    return chosen
