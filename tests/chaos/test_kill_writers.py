"""A directory that 32 processes share, some of which are killed at any moment, again and again."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hotstart.cache.entry import entry_name
from hotstart.cache.store import open_store
from hotstart.cache.verify import verify

pytestmark = pytest.mark.chaos

PROCESSES, KILLS, KEYS = 32, 64, 100_000
ROUND_S = 20.0
# Says by one atomic write which entries are there, once the store has said so.
WRITER = """
import os, random, sys
from hotstart.cache.entry import EntryMeta, encode, entry_name
from hotstart.cache.repair import discard_bad
from hotstart.cache.store import open_store

path, seed, keys = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
store, rng = open_store(path), random.Random(seed)
os.write(1, b"begins\\n")
while True:
    number = rng.choice((rng.randrange(40), rng.randrange(keys)))
    key = f"jit_step-{number:064x}"
    if rng.random() < 0.2:
        discard_bad(store, key)
    data = encode(key, rng.randbytes(rng.choice((10, 1_000, 100_000))), EntryMeta())
    store.create(entry_name(key), data)
    os.write(1, f"{number}\\n".encode())
"""


class Writers:
    """Processes that write into one directory; what they have said goes to a file each."""

    def __init__(self, store: Path, folder: Path) -> None:
        self._store = store
        self._folder = folder
        self._started = 0
        self.alive: list[tuple[subprocess.Popen[bytes], Path]] = []

    def start(self) -> None:
        self._started += 1
        said = self._folder / f"said-{self._started}"
        with said.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-c", WRITER, str(self._store), str(self._started), str(KEYS)],
                stdin=subprocess.DEVNULL,
                stdout=output,
            )
        self.alive.append((process, said))

    def kill(self, index: int) -> None:
        process, _ = self.alive.pop(index)
        process.send_signal(signal.SIGKILL)
        assert process.wait(10) == -signal.SIGKILL

    def begun(self) -> int:
        return sum(b"begins" in path.read_bytes() for _, path in self.alive)

    def said(self) -> set[int]:
        lines = [line for path in self._folder.iterdir() for line in path.read_text().split()]
        return {int(line) for line in lines if line != "begins"}


def test_killed_writers_leave_only_sound_entries_and_lose_none(tmp_path: Path) -> None:
    rng = random.Random(5)
    folder = tmp_path / "said"
    folder.mkdir()
    writers = Writers(tmp_path / "store", folder)
    store = open_store(str(tmp_path / "store"))
    store.create(entry_name(f"jit_step-{0:064x}"), b"torn by a crash of the machine")
    try:
        for _ in range(PROCESSES):
            writers.start()
        deadline = time.monotonic() + ROUND_S
        while writers.begun() < PROCESSES // 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        for _ in range(KILLS):
            writers.kill(rng.randrange(len(writers.alive)))
            writers.start()
            time.sleep(rng.uniform(0.0, 0.1))  # the fault's own moment
    finally:
        while writers.alive:
            writers.kill(0)
    said = writers.said()
    assert len(said) > KILLS
    found = list(verify(store))
    assert [looked for looked in found if looked.problem] == []
    lost = {entry_name(f"jit_step-{number:064x}") for number in said}
    lost -= {looked.name for looked in found}
    assert lost == set()
    assert any((tmp_path / "store" / ".hotstart" / "tmp").iterdir())  # killed while they wrote
    assert store.create("more", b"")  # nobody holds a lock
