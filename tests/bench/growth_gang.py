"""Hosts and workers without JAX and Ray, which ask hotstart's cache as a gang's start does.

    growth_gang.py LOCATION FOLDER HOSTS WORKERS KEYS

All in one process, so that its CPU seconds are those of the cache: the real cache of each
worker, its real channel to its host's agent, the agents' real part, the real coordinator, and
the real store. Only two things are stand-ins: a program's executable is some bytes, and one agent
fetches from another by a call where Ray's object store would carry them. Every worker asks for
the same keys in the same order; who is told to compile puts. Prints one JSON object.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from hotstart.cache.config import CacheConfig
from hotstart.cache.counters import Counters
from hotstart.cache.directory import DirectoryStore
from hotstart.cache.entry import EntryMeta
from hotstart.cache.shared import SharedCache, Tiers
from hotstart.cache.store import open_store
from hotstart.launcher.agent_cache import AgentCache, Seat
from hotstart.launcher.agent_resolver import AgentResolver
from hotstart.launcher.channel import Channel
from tests.support.gcs_proxy import GcsProxy

_PAYLOAD_BYTES = 4096
_FLUSH_S = 120.0
_META = EntryMeta(compile_s=1.0, jax="0", jaxlib="0", platform="cpu", writer="bench")


class Worker:
    """One worker's cache, and the thread by which its agent hears it."""

    def __init__(self, index: int, host: AgentCache, config: CacheConfig, node_dir: str) -> None:
        theirs, ours = socket.socketpair()
        self.index = index
        self.to_worker = Channel(ours)
        self._channel = Channel(theirs)
        self._resolver = AgentResolver(self._channel)
        self._counters = Counters()
        tiers = Tiers(open_store(config.location), DirectoryStore(node_dir))
        self._cache = SharedCache(tiers, self._counters, self._resolver)
        for target in (self._hear_agent, lambda: self._heard_by(host)):
            threading.Thread(target=target, daemon=True).start()

    def start(self, keys: list[str]) -> int:
        """Ask for every key, in order; how many this worker was told to compile."""
        compiled = 0
        for key in keys:
            if self._cache.get(key) is None:
                compiled += 1
                self._cache.put(key, payload(key), _META)
            self._cache.done(key)
        return compiled

    def flush(self) -> bool:
        """Block until what it has put is in the store."""
        return self._cache.flush(_FLUSH_S)

    def close(self) -> None:
        """End both threads."""
        self._channel.close()
        self.to_worker.close()

    def _hear_agent(self) -> None:
        for message in self._channel:
            self._resolver.answered(message)

    def _heard_by(self, host: AgentCache) -> None:
        for message in self.to_worker:
            host.heard(self.index, message)


def payload(key: str) -> bytes:
    """Bytes that stand for an executable, the same for one key and like no other's."""
    digest = hashlib.sha256(key.encode()).digest()
    return digest * (_PAYLOAD_BYTES // len(digest))


@contextlib.contextmanager
def gang(location: str, folder: Path, hosts: int, workers: int) -> Iterator[list[Worker]]:
    """Agents and workers, ready to ask."""
    agents = [AgentCache("127.0.0.1") for _ in range(hosts)]
    coordinator = agents[0].serve()
    made: list[Worker] = []
    try:
        for host, agent in enumerate(agents):
            node_dir = str(folder / f"host-{host}")
            config = CacheConfig(location, node_dir=node_dir)
            agent.open(
                config,
                Seat(host, coordinator),
                lambda source, key, digest: agents[source].hand_out(key, digest),
            )
            mine = [Worker(index, agent, config, node_dir) for index in range(host, workers, hosts)]
            agent.begin(1, {worker.index: worker.to_worker.send for worker in mine})
            made += mine
        yield made
    finally:
        for worker in made:
            worker.close()
        for agent in agents:
            agent.close()


def main() -> None:
    """One start of the gang."""
    location, folder, hosts, workers, keys = sys.argv[1:]
    names = [
        f"program_{number:04d}-{hashlib.sha256(str(number).encode()).hexdigest()}"
        for number in range(int(keys))
    ]
    open_store(location).get("warm")  # imports and the connection are not what is measured
    GcsProxy(os.environ["STORAGE_EMULATOR_HOST"]).reset()
    with gang(location, Path(folder), int(hosts), int(workers)) as made:
        cpu, wall = time.process_time(), time.monotonic()
        with ThreadPoolExecutor(len(made)) as pool:
            compiled = sum(pool.map(lambda worker: worker.start(names), made))
            seconds = time.monotonic() - wall
            flushed = all(pool.map(Worker.flush, made))
        cpu_s = time.process_time() - cpu
        counters = [asdict(worker._counters.snapshot()) for worker in made]
    if not flushed:
        raise SystemExit("not everything was flushed")
    errors = sum(counter["errors"] for counter in counters)
    print(json.dumps({"compiled": compiled, "seconds": seconds, "cpu_s": cpu_s, "errors": errors}))


if __name__ == "__main__":
    main()
