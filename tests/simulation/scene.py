"""What the scenarios with a bucket begin with: programs, and entries that are bad by then."""

from __future__ import annotations

from tests.simulation.checks import Checks
from tests.simulation.jax_like import Program
from tests.simulation.stores import Bucket, spoil
from tests.simulation.world import World

FLUSH_S = 120.0


def some_programs(world: World, bucket: Bucket, checks: Checks, *, raising: float) -> list[Program]:
    """One to three, known to the checks; `raising` is how likely one may fail to compile."""
    rng = world.rng
    programs = [
        Program(
            f"program{number}",
            compile_s=rng.choice((0.2, 5.0, 60.0)),
            stored=rng.random() > 0.1,
            raises=0.5 if rng.random() < raising else 0.0,
        )
        for number in range(rng.choice((1, 1, 2, 3)))
    ]
    for program in programs:
        checks.add_key(program.key, stored=program.stored and not program.raises)
        if rng.random() < world.what_fails.spoiled:
            spoil(world, bucket, program.key)
    return programs


def some_node(world: World, programs: list[Program]) -> Bucket:
    """A host's node directory, with a bad entry of one program in it perhaps."""
    node = Bucket(world, "node")
    if world.rng.random() < world.what_fails.spoiled:
        spoil(world, node, world.rng.choice(programs).key)
    return node
