"""Corrupted entries: each is found, none is loaded, each is replaced, and the results are right.

    python -m tests.chaos.corruption --trials 1000 --seed 1 --write

A trial takes a cache with two programs' entries, spoils one of them as its seed says, and has a
JAX process run both programs. A process serves many trials, each with JAX's own caches cleared;
one that ends is counted as a crash, and another goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hotstart.cache.entry import EntryMeta, decode, decode_named, encode
from hotstart.cache.errors import EntryError
from hotstart.cache.store import Store, open_store
from tests.chaos.campaigns import Row, write_campaign
from tests.support.entries import key_in
from tests.support.gcs_emulator import gcs_emulator

_ROOT = Path(__file__).parents[2]
_PROGRAMS = """
import dataclasses, json, logging, sys, warnings
import jax, jax.numpy as jnp, numpy as np
import hotstart.cache

def program_a(x):
    return jnp.sum(jnp.sin(x) * 2.0 + 1.0)

def program_b(x):
    return jnp.sum(jnp.cos(x) * 3.0 - 1.0)

warnings.simplefilter("ignore")
logging.disable()
x = np.linspace(0.0, 1.0, 64, dtype=np.float32)
for line in sys.stdin:
    jax.clear_caches()
    hotstart.cache.enable(**json.loads(line))
    results = [float(jax.jit(program)(x)) for program in (program_a, program_b)]
    flushed = hotstart.cache.flush()
    stats = dataclasses.asdict(hotstart.cache.stats())
    hotstart.cache.disable()
    print(json.dumps({"results": results, "flushed": flushed, "stats": stats}), flush=True)
"""


def flip(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """One to four bits."""
    spoilt = bytearray(data)
    for position in rng.sample(range(8 * len(data)), rng.randint(1, 4)):
        spoilt[position // 8] ^= 1 << position % 8
    return bytes(spoilt)


def truncate(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Anything from nothing to all but the last byte."""
    return data[: rng.randrange(len(data))]


def pad(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Bytes that follow."""
    return data + rng.randbytes(rng.randint(1, 200))


def swap(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """The other program's sound entry under this one's name."""
    return other


def splice(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """The head of this entry and the tail of the other."""
    cut = rng.randrange(1, min(len(data), len(other)))
    return data[:cut] + other[cut:]


def zero(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """A page that was never written."""
    start = rng.randrange(len(data))
    return data[:start] + bytes(len(data[start : start + 4096])) + data[start + 4096 :]


def age(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Another version of the format."""
    return data[:8] + rng.choice([0, 2, 7, 65535]).to_bytes(2, "big") + data[10:]


def gut(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """A sound entry, of this key, of a payload that JAX can't unpack."""
    entry = decode(key_in(data), data)
    payload = bytes(entry.payload)
    return encode(entry.key, payload[: rng.randrange(len(payload) // 2)], EntryMeta())


KINDS: dict[str, Callable[[random.Random, bytes, bytes], bytes]] = {
    kind.__name__: kind for kind in (flip, truncate, pad, swap, splice, zero, age, gut)
}
PLACES = ("bucket", "node directory", "both", "directory")


@dataclass(frozen=True)
class Trial:
    """What is spoilt, where and how; a function of its number and the campaign's seed."""

    number: int
    seed: int

    @property
    def rng(self) -> random.Random:
        """Anew each time, so that a trial repeats exactly."""
        return random.Random(f"{self.seed}/{self.number}")

    @property
    def kind(self) -> str:
        """How."""
        return list(KINDS)[self.number % len(KINDS)]

    @property
    def place(self) -> str:
        """Where."""
        return PLACES[self.number // len(KINDS) % len(PLACES)]

    @property
    def victim(self) -> int:
        """Which program's entry."""
        return self.number // (len(KINDS) * len(PLACES)) % 2


class Program:
    """The process that serves trials; where it ends, the next trial gets another."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def ask(self, settings: dict[str, str]) -> dict[str, Any] | None:
        """What both programs computed with a cache of these settings; None where it ended."""
        process = self._process = self._process or _start()
        assert process.stdin is not None and process.stdout is not None
        line = ""
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(settings) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        if not line:
            self.close()
            return None
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


class Campaign:
    """Trials that are made one after the other, and what came of them."""

    def __init__(self, seed: int, bucket: str, folder: Path, program: Program) -> None:
        self._seed = seed
        self._program = program
        self._node = open_store(str(folder / "node"))
        self._folder = folder
        self._bucket = bucket
        self.trials = 0
        self.failed: Counter[str] = Counter()  # by column of `Row`
        self.told: list[str] = []

    def run(self, count: int) -> None:
        """Make this many trials; blocks for about 0.2 s each."""
        expected = {place: self._ask(place) for place in PLACES}["bucket"]
        assert expected is not None
        sound = {place: _entries(self._location(place)) for place in PLACES}
        for number in range(count):
            self._try(Trial(number, self._seed), sound[Trial(number, self._seed).place], expected)
            self.trials += 1

    def row(self) -> Row:
        """For `build/chaos.json`."""
        return Row("corruption", self.trials, self._seed, **self.failed)

    def _try(self, trial: Trial, sound: dict[str, bytes], expected: dict[str, Any]) -> None:
        name, other = sorted(sound, reverse=bool(trial.victim))
        spoilt = KINDS[trial.kind](trial.rng, sound[name], sound[other])
        if spoilt == sound[name]:  # zeros over zeros, or a splice of equal parts
            spoilt = flip(trial.rng, sound[name], sound[other])
        bad, location = {**sound, name: spoilt}, self._location(trial.place)
        _fill(location, sound if trial.place == "node directory" else bad)
        _fill(self._node, bad if trial.place in ("node directory", "both") else {})
        found = self._ask(trial.place)
        if found is None:
            self._tell(trial, "crashes", "the process ended")
            return
        if found["results"] != expected["results"]:
            self._tell(trial, "wrong_results", f"{found['results']}, not {expected['results']}")
        if found["stats"]["errors"] < 1:
            self._tell(trial, "undetected", f"{found['stats']}")
        for store in (location, self._node) if trial.place != "directory" else (location,):
            if not _is_replaced(store, name, spoilt):
                self._tell(trial, "unrepaired", f"{name} in {store.url}")

    def _tell(self, trial: Trial, column: str, what: str) -> None:
        self.failed[column] += 1
        kind = f"trial {trial.number} of seed {trial.seed}: {trial.kind} in {trial.place}"
        self.told.append(f"{kind}: {column}: {what}")

    def _ask(self, place: str) -> dict[str, Any] | None:
        settings = {"location": self._location(place).url}
        if place != "directory":
            settings["node_dir"] = self._node.url
        return self._program.ask(settings)

    def _location(self, place: str) -> Store:
        in_bucket = f"{self._bucket}/cache"
        return open_store(str(self._folder / "cache") if place == "directory" else in_bucket)


def _start() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _PROGRAMS],
        cwd=_ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def _entries(store: Store) -> dict[str, bytes]:
    found = {stat.name: store.get(stat.name) or b"" for stat in store.list("entries/")}
    return {name: data for name, data in found.items() if name.endswith(("program_a", "program_b"))}


def _fill(store: Store, entries: dict[str, bytes]) -> None:
    for stat in list(store.list("entries/")):
        if entries.get(stat.name) is None or store.get(stat.name) != entries[stat.name]:
            store.delete(stat.name, stat.generation)
    for name, data in entries.items():
        store.create(name, data)


def _is_replaced(store: Store, name: str, spoilt: bytes) -> bool:
    data = store.get(name)
    if data is None or data == spoilt:
        return False
    try:
        decode_named(name, data)
    except EntryError:
        return False
    return True


@contextlib.contextmanager
def campaign(seed: int) -> Iterator[Campaign]:
    """A campaign with an emulator, a folder and a process of its own."""
    with (
        gcs_emulator() as emulator,
        tempfile.TemporaryDirectory(prefix="hs-") as folder,
        pytest.MonkeyPatch.context() as patch,
        contextlib.closing(Program()) as program,
    ):
        patch.setenv("STORAGE_EMULATOR_HOST", emulator.url)
        yield Campaign(seed, emulator.create_bucket("corruption"), Path(folder), program)


def main() -> int:
    """Run a campaign; 1 where something went wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.corruption", description=__doc__)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="put a row into build/chaos.json")
    options = parser.parse_args()
    with campaign(options.seed) as made:
        made.run(options.trials)
        for line in made.told:
            print(line)
        print(f"corruption: {made.trials} trials, seed {made.seed}: {dict(made.failed) or 'clean'}")
        if options.write:
            write_campaign(made.row())
        return int(bool(made.failed))


if __name__ == "__main__":
    sys.exit(main())
