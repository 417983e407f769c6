"""Processes that collect from a cache, or use it, as fast as they can until they are told to end.

    python -m tests.support.collecting collect ROUNDS LOCATION STOP RUN_DIR
    python -m tests.support.collecting use ROUNDS LOCATION STOP SEED
    python -m tests.support.collecting watch ROUNDS LOCATION STOP KEY ...
    python -m tests.support.collecting pin ROUNDS LOCATION STOP
    python -m tests.support.collecting restart ROUNDS LOCATION STOP RUN_DIR

Each prints "enough" after ROUNDS rounds, goes on until the file STOP is there, so that none is
ever alone, and prints what it did as JSON: `collect` the entries that it
deleted, `use` its hits, misses and troubles, `watch` how often it looked and what was missing.
`pin` and `restart` make an entry that the collectors want, have it kept, by a pin or by a run that
begins again, and then let it go: how often it was gone before, was kept, and was lost all the same.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hotstart.cache.announcements import settle
from hotstart.cache.counters import Counters
from hotstart.cache.entry import EntryMeta, encode, entry_name
from hotstart.cache.heads import read_whole
from hotstart.cache.pins import BY_KEY, PinFacts, pin, unpin
from hotstart.cache.shared import SharedCache, Tiers
from hotstart.cache.store import Store, open_store
from hotstart.launcher.cli import main
from hotstart.launcher.identity import OwnerIdentity
from tests.support.recorded_runs import record_run

KEYS = [f"jit_step-{number:064x}" for number in range(42)]
PINNED, NEEDED, USED = KEYS[:2], KEYS[2:4], KEYS[4:40]  # nobody makes or reads the first four
KEPT_AT_TIMES = {"pin": KEYS[40], "restart": KEYS[41]}
_LOOKS = 10
_TURN_S = 2.0


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
    seen = Counter(hits=0, misses=0)
    problems: list[object] = []
    for _ in _until(stop, lambda: seen["misses"] > 0):
        # For all users the same third of the keys at a time: what is read all the time is never
        # collected, and who came a moment late would never miss anything.
        key = rng.choice(USED[int(time.monotonic() / _TURN_S) % 3 :: 3])
        entry = cache.get(key)
        if entry is None:
            seen["misses"] += 1
            cache.put(key, payload(key), EntryMeta())
        else:
            seen["hits"] += 1
            if bytes(entry.payload) != payload(key):
                problems.append(key)
        cache.done(key)
        if not cache.flush(30):
            problems.append("flush")
    errors = counters.snapshot().errors
    return {**seen, "errors": errors, "problems": problems}


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


def _pin(location: str, stop: Path) -> dict[str, Any]:
    store, name = open_store(location), entry_name(KEPT_AT_TIMES["pin"])
    return _keep_at_times(
        store,
        stop,
        KEPT_AT_TIMES["pin"],
        lambda number: pin(store, name, BY_KEY, PinFacts("me", 1.0)),
        lambda number: unpin(store, name, BY_KEY),
    )


def _restart(location: str, stop: Path, run_dir: str) -> dict[str, Any]:
    key = KEPT_AT_TIMES["restart"]
    record = record_run(run_dir, "again", "/other", [key], state="done")
    owner = asdict(OwnerIdentity.of_this_process())
    return _keep_at_times(
        open_store(location),
        stop,
        key,
        lambda number: record.create_fact(f"owner/{number + 2:08d}/{0:08d}", owner),
        lambda number: record.finish("done", 0, "", epoch=number + 2),
    )


def _keep_at_times(
    store: Store,
    stop: Path,
    key: str,
    keep: Callable[[int], object],
    let_go: Callable[[int], object],
) -> dict[str, Any]:
    name, data = entry_name(key), encode(key, payload(key), EntryMeta())
    before = kept = 0
    problems: list[object] = []
    for number, _ in enumerate(_until(stop)):
        store.create(name, data)
        keep(number)
        settled = settle(store, [name])
        if settled.unsure:
            problems.append(dict(settled.unsure))
        elif store.stat(name) is None:
            before += 1
        else:
            kept += 1
            if any(read_whole(store, name) != data for _ in range(_LOOKS)):
                problems.append(f"lost in round {number}")
        let_go(number)
    return {"before": before, "kept": kept, "problems": problems}


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
    roles = {
        "collect": _collect,
        "use": _use,
        "watch": _watch,
        "pin": _pin,
        "restart": _restart,
    }
    print(json.dumps(roles[role](where, Path(stop_file), *more)), flush=True)
