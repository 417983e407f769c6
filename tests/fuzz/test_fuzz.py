"""The fuzz targets in short: seeded mutations of their first inputs, without coverage."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator

import pytest

from tests.fuzz.targets import TARGETS, Target

pytestmark = pytest.mark.unit

COUNTS = {"entry": 4000, "job": 300, "record": 600, "manifest": 3000, "channel": 500, "wire": 3000}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """What is refused is logged, and most is."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_target_takes_any_bytes(name: str) -> None:
    target = TARGETS[name]
    for data in target.seeds:
        target.run(data)
    for data in mutated(target, random.Random(1), COUNTS[name]):
        try:
            target.run(data)
        except BaseException as error:
            raise AssertionError(f"{name} failed on {data!r}") from error


def mutated(target: Target, rng: random.Random, count: int) -> Iterator[bytes]:
    for _ in range(count):
        data = bytearray(rng.choice(target.seeds))
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(data) + 1)
            end = min(len(data), at + rng.choice((0, 1, 1, 2, 8, 40)))
            piece = rng.choice(
                (
                    b"",
                    rng.randbytes(rng.randint(1, 4)),
                    rng.choice((b"null", b"[]", b"{}", b"-1", b"1e999", b'""', b"true", b"\xff")),
                    rng.choice(target.words or (b"\0",)),
                    bytes(data[: rng.randrange(len(data) + 1)]),
                )
            )
            data[at:end] = piece
        yield bytes(data)
