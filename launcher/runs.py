"""The runs of a run directory: a new one's name, finding one, listing all."""

from __future__ import annotations

import random
import re
import time
from concurrent.futures import ThreadPoolExecutor
from difflib import get_close_matches

from hotstart.cache.errors import StoreMissing
from hotstart.cache.signing import Keyring, open_sealed
from hotstart.cache.store import Store
from hotstart.launcher.errors import RunNotFound
from hotstart.launcher.facts import RunSummary
from hotstart.launcher.identity import OwnerIdentity
from hotstart.launcher.record import PARALLEL_READS, RUN_NAME, RunRecord


def new_run_name(job_name: str, now_s: float, rng: random.Random) -> str:
    """A name like `bytelm-20261124-163001-3f2a`: job, UTC date and time, 16 random bits.

    `now_s` is wall-clock time in seconds since the epoch.
    """
    job = re.sub(r"[^A-Za-z0-9._-]+", "-", job_name).lstrip("._-")[:120] or "job"
    return f"{job}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime(now_s))}-{rng.getrandbits(16):04x}"


def open_runs(run_dir: str, keyring: Keyring, deadline_s: float = 30.0) -> Store:
    """The store of a run directory: what is not signed with this host's keys is not there.

    Without keys everything counts. `deadline_s` bounds each operation on a bucket. Raises
    `InvalidLocation`.
    """
    return open_sealed(run_dir, keyring, deadline_s=deadline_s)


def open_run(store: Store, name: str) -> RunRecord:
    """An existing run; raises `RunNotFound`, which names the nearest runs. Blocks."""
    if RUN_NAME.fullmatch(name) and store.stat(f"{name}/created") is not None:
        return RunRecord(store, name)
    names = [run for run, _ in _index(store)]
    near = get_close_matches(name, names, n=3, cutoff=0.5)
    nearest = f"the nearest are {', '.join(near)}" if near else f"{len(names)} runs are there"
    raise RunNotFound(
        f"no run {name!r} in {store.url}; {nearest}; see `hotstart runs`, or name another "
        "run directory"
    )


def list_runs(store: Store, observer: OwnerIdentity | None = None) -> list[RunSummary]:
    """All runs, the one launched last at the end. Blocks; raises `StoreError`."""
    observer = observer or OwnerIdentity.of_this_process()
    records = [RunRecord(store, name) for name, _ in _index(store)]
    with ThreadPoolExecutor(PARALLEL_READS) as pool:
        return list(pool.map(lambda record: record.summary(observer), records))


def resolve_run(store: Store, name: str) -> RunRecord:
    """The run of this name, or for `latest` the one that was launched last.

    Blocks; raises `RunNotFound`, `StoreError`.
    """
    if name != "latest":
        return open_run(store, name)
    runs = _index(store)
    if not runs:
        raise RunNotFound(
            f"no runs in {store.url}; launch one with `hotstart launch JOB.yaml`, or name "
            "another run directory"
        )
    return open_run(store, runs[-1][0])


def _index(store: Store) -> list[tuple[str, float]]:
    """Names of the runs and when the store made them, in that order."""
    try:
        runs = [(s.name.removeprefix("index/"), s.modified_s) for s in store.list("index/")]
    except StoreMissing:
        return []
    return sorted((r for r in runs if RUN_NAME.fullmatch(r[0])), key=lambda r: (r[1], r[0]))
