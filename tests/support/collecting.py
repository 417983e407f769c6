"""Processes that collect from a cache, or use it, as fast as they can until they are told to end.

    python -m tests.support.collecting collect ROUNDS LOCATION STOP RUN_DIR
    python -m tests.support.collecting use ROUNDS LOCATION STOP SEED
    python -m tests.support.collecting watch ROUNDS LOCATION STOP KEY ...

Each prints "enough" after ROUNDS rounds, goes on until the file STOP is there, so that none is
ever alone, and prints what it did as JSON: `collect` the entries that it
deleted, `use` its hits, misses and troubles, `watch` how often it looked and what was missing.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hotstart.cache.counters import Counters
from hotstart.cache.entry import EntryMeta, entry_name
from hotstart.cache.heads import read_whole
from hotstart.cache.shared import SharedCache, Tiers
from hotstart.cache.store import open_store
from hotstart.launcher.cli import main

KEYS = [f"jit_step-{number:064x}" for number in range(40)]
PINNED, NEEDED, USED = KEYS[:2], KEYS[2:4], KEYS[4:]  # nobody makes or reads the first four


def payload(key: str) -> bytes:
    """What is stored of a key, by every process."""
    return random.Random(key).randbytes(3000)


def _collect(location: str, stop: Path, run_dir: str) -> dict[str, Any]:
    deleted: list[int] = []  # by round
    problems: list[object] = []
    arguments = ["cache", "gc", location, "--max-size", "1", "--run-dir", run_dir, "--json"]
    for _ in _until(stop, lambda: sum(deleted) > 0):
        text = io.StringIO()
        code: object = None
        with contextlib.redirect_stdout(text):
            try:
                main.main(arguments, standalone_mode=False)
            except SystemExit as end:
                code = end.code
        if code != 0:
            problems.append([code, text.getvalue()])
            break
        deleted.append(json.loads(text.getvalue())["deleted"])
    return {"rounds": len(deleted), "deleted": sum(deleted), "problems": problems}


def _use(location: str, stop: Path, seed: str) -> dict[str, Any]:
    rng = random.Random(int(seed))
    counters = Counters()
    store = open_store(location)
    cache = SharedCache(Tiers(store), counters)
    hits = misses = 0
    problems: list[object] = []
    for _ in _until(stop):
        key = rng.choice(USED)
        entry = cache.get(key)
        if entry is None:
            misses += 1
            cache.put(key, payload(key), EntryMeta())
        else:
            hits += 1
            if bytes(entry.payload) != payload(key):
                problems.append(key)
        cache.done(key)
        if not cache.flush(30):
            problems.append("flush")
    errors = counters.snapshot().errors
    return {"hits": hits, "misses": misses, "errors": errors, "problems": problems}


def _watch(location: str, stop: Path, *keys: str) -> dict[str, Any]:
    store = open_store(location)
    looks = 0
    missing: set[str] = set()
    for _ in _until(stop):
        for key in keys:
            looks += 1
            if read_whole(store, entry_name(key)) is None:  # no use, which alone would keep it
                missing.add(key)
    return {"looks": looks, "missing": sorted(missing)}


def _until(stop: Path, has_done: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """Rounds until it is to stop; says "enough" after so many, once `has_done` holds too."""
    rounds, is_enough = 0, False
    while not stop.exists():
        yield
        rounds += 1
        if not is_enough and rounds >= enough and has_done():
            is_enough = True
            print("enough", file=sys.__stdout__, flush=True)


if __name__ == "__main__":
    role, count, where, stop_file, *more = sys.argv[1:]
    enough = int(count)
    roles = {"collect": _collect, "use": _use, "watch": _watch}
    print(json.dumps(roles[role](where, Path(stop_file), *more)), flush=True)
