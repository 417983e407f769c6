"""The agent as a Ray actor: what it needs of Ray, and what it does at stores for the driver.

A driver that never imports gcsfs starts the job half a second sooner.
"""

from __future__ import annotations

import logging
import signal
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any

from hotstart.cache.config import CacheConfig
from hotstart.cache.signals import watch_signals
from hotstart.cache.signing import open_sealed
from hotstart.cache.store import Store
from hotstart.launcher.agent import Agent, HostInfo
from hotstart.launcher.agent_cache import Seat
from hotstart.launcher.environ import VISIBLE_GPUS
from hotstart.launcher.host_warnings import HostWarnings
from hotstart.launcher.manifest import Manifest
from hotstart.launcher.manifest_store import ManifestStore
from hotstart.launcher.metrics import HostMetrics
from hotstart.launcher.placement import HostShare
from hotstart.launcher.store_check import check_store

if TYPE_CHECKING:
    from hotstart.launcher.bucket_lifetime import Lived

logger = logging.getLogger(__name__)

_DEADLINE_S = 10.0
_LOGS_S = 10.0
_LAST_LOGS_S = 2.0
# One waits for events, one may look for a manifest; the others are there for what is urgent.
_CALLS_AT_ONCE = 8
_FETCH_S = 60.0
_HANDED_OUT_BYTES = 128 << 20


class RayAgent(Agent):
    """An `Agent` that knows its node."""

    def __init__(self) -> None:
        import ray

        super().__init__(ray.util.get_node_ip_address())
        gpus = ray.get_runtime_context().get_accelerator_ids().get("GPU", [])
        if gpus:  # where Ray is told not to set it (RAY_EXPERIMENTAL_NOSET_...)
            self._environ.setdefault(VISIBLE_GPUS, ",".join(map(str, gpus)))
        self._handed_out = HandedOut()
        self._warnings = HostWarnings()
        logging.getLogger("hotstart").addHandler(self._warnings)
        self._metrics = HostMetrics(self._worker_reports)
        self._take_sigterm()

    def _take_sigterm(self) -> None:
        """Have SIGTERM say that this process goes, which its gang can leave in order for.

        By Ray's own handler it would end here and now, with its workers. What must end it, as the
        driver, its raylet's death and SIGKILL do, ends it all the same.
        """
        if threading.current_thread() is not threading.main_thread():
            logger.info("SIGTERM stays with Ray: this actor was not made on its main thread")
            return

        def on_sigterm(number: int, frame: FrameType | None) -> None:
            if watched is None:  # somebody else has the descriptor: when Ray gets round to it
                threading.Thread(target=self.signalled, daemon=True).start()

        def heard(number: int) -> None:
            if number == signal.SIGTERM:
                self.signalled()

        signal.signal(signal.SIGTERM, on_sigterm)
        watched = watch_signals(heard, held_back=signal.SIGTERM)

    def describe(self) -> tuple[HostInfo, str]:  # type: ignore[override]
        """Where this agent lives, and Ray's id of the node."""
        import ray

        return super().describe(), ray.get_runtime_context().get_node_id()

    def check_store(self, cache: CacheConfig, source: str) -> str | None:
        """See `store_check`."""
        return check_store(cache, source)

    def lifetime_warnings(self, lived: Lived) -> list[str]:
        """See `bucket_lifetime`."""
        from hotstart.launcher.bucket_lifetime import lifetime_warnings

        return lifetime_warnings(lived)

    def key_ids(self, cache: CacheConfig) -> tuple[str, ...]:
        """The ids of this host's signing keys, the one that signs first; see `keyring`."""
        return self.cache.keyring(cache).ids

    def latest_manifest(self, cache: CacheConfig, fingerprint: str) -> bytes | None:
        """The latest manifest of a job in the cache's location, as JSON."""
        manifest = ManifestStore(self._store(cache)).latest(fingerprint)
        return None if manifest is None else manifest.to_json()

    def latest_manifest_of(self, cache: CacheConfig, fingerprints: Sequence[str]) -> bytes | None:
        """The latest of several jobs' manifests in the cache's location, as JSON."""
        manifest = ManifestStore(self._store(cache)).latest_of(fingerprints)
        return None if manifest is None else manifest.to_json()

    def save_manifest(self, cache: CacheConfig, fingerprint: str, manifest_json: bytes) -> None:
        """Keep a job's manifest in the cache's location."""
        ManifestStore(self._store(cache)).save(fingerprint, Manifest.from_json(manifest_json))

    def serve_coordinator(self) -> tuple[str, int, str]:
        """IP, port and token of the gang's coordinator, which lives here from now on."""
        return self.cache.serve()

    def open_cache(self, cache: CacheConfig | None, seat: Seat, agents: Sequence[Any]) -> None:
        """Take a seat among these agents, by host index."""
        self.cache.open(cache, seat, Peers(agents))

    def read_ahead(self, attempt: int, manifest_json: bytes) -> None:
        """Bring a manifest's entries here before the workers of an attempt ask for them."""
        self.cache.read_ahead(attempt, manifest_json)

    def flush_cache(self, timeout_s: float) -> bool:
        """Block until what this host's workers published is in the store; False if it is not.

        Their logs too, whose failure is not counted.
        """
        until = time.monotonic() + timeout_s
        flushed = self.cache.flush(timeout_s)
        self.flush_logs(min(_LOGS_S, max(_LAST_LOGS_S, until - time.monotonic())))
        return flushed

    def take_stats(self) -> dict[str, Any] | None:
        """What this host has done for its workers' caches since the last call, and its name.

        And its warnings. None where there is nothing to tell.
        """
        stats, warnings = self.cache.take_stats(), self._warnings.take()
        if stats is None and not warnings:
            return None
        return {"host": socket.gethostname(), **(stats or {}), "warnings": warnings}

    def asked(self) -> dict[int, list[dict[str, Any]]]:
        """What JAX has asked for in this host's workers of the attempt, by process index."""
        return self.cache.asked()

    def hand_out(self, key: str, digest: bytes) -> list[Any]:
        """A reference to an entry's bytes in Ray's object store, owned by this agent.

        Empty where the entry is not here any more.
        """
        ref = self._handed_out.find(key, digest)
        if ref is None:
            data = self.cache.hand_out(key, digest)
            ref = None if data is None else self._handed_out.add(key, digest, data)
        return [] if ref is None else [ref]

    def finish(self) -> tuple[dict[int, dict[str, Any]], int]:
        """See `Agent`."""
        finished = super().finish()
        self._metrics.send()
        return finished

    def close(self) -> None:
        """See `Agent`."""
        self._metrics.close()
        super().close()

    def _worker_reports(self) -> Iterator[tuple[str, int, int, dict[str, Any]]]:
        for worker in self._workers:
            attempt = worker.plan.attempt
            yield attempt.run, attempt.attempt, worker.plan.process_index, worker.report

    def _store(self, cache: CacheConfig) -> Store:
        return open_sealed(
            cache.location,
            self.cache.keyring(cache),
            self.cache.refused,
            deadline_s=min(_DEADLINE_S, cache.deadline_s),
        )


class Peers:
    """Fetches entries from the other agents of a gang."""

    def __init__(self, agents: Sequence[Any]) -> None:
        self._agents = agents

    def __call__(self, host: int, key: str, digest: bytes) -> bytes | None:
        """The bytes of an entry that another host has, or None; raises what Ray raises.

        Ray takes them from any node that has a copy by now. Blocks for at most a minute.
        """
        import ray

        asked = self._agents[host].hand_out.remote(key, digest)
        refs = ray.get(asked, timeout=_FETCH_S)
        return ray.get(refs[0], timeout=_FETCH_S) if refs else None


class HandedOut:
    """References to entries that were just handed out: many hosts ask for the same one."""

    def __init__(self, limit_bytes: int = _HANDED_OUT_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self._refs: OrderedDict[tuple[str, bytes], tuple[Any, int]] = OrderedDict()
        self._bytes = 0

    def find(self, key: str, digest: bytes) -> Any | None:
        """The reference, if it is still held."""
        with self._lock:
            held = self._refs.get((key, digest))
            return None if held is None else held[0]

    def add(self, key: str, digest: bytes, data: bytes) -> Any:
        """Put the bytes into the object store; lets go of older ones beyond the limit."""
        import ray

        ref = ray.put(data)
        with self._lock:
            _, size_bytes = self._refs.pop((key, digest), (None, 0))
            self._refs[key, digest] = ref, len(data)
            self._bytes += len(data) - size_bytes
            while self._bytes > self._limit_bytes and len(self._refs) > 1:
                _, (_, size_bytes) = self._refs.popitem(last=False)
                self._bytes -= size_bytes
        return ref


def create_agent(share: HostShare, group: Any, bundle_index: int) -> Any:
    """Ask Ray for the agent of one host, in its bundle of a placement group; does not block."""
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    bundle = dict(share.bundle)
    options = ray.remote(RayAgent).options(
        num_cpus=bundle.pop("CPU", 0),
        num_gpus=bundle.pop("GPU", 0),
        memory=bundle.pop("memory", None),
        resources=bundle or None,
        max_concurrency=_CALLS_AT_ONCE,
        scheduling_strategy=PlacementGroupSchedulingStrategy(
            group, placement_group_bundle_index=bundle_index
        ),
    )
    return options.remote()


def cause_of(error: BaseException) -> str:
    """In one line, what lies under an error of Ray's, whose text has a whole traceback."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, BaseException):
        return (f"{type(cause).__name__}: {cause}".splitlines() or [""])[0]
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
