"""What an agent does for the caches of its workers, put together for the whole run.

The agent of process 0 also serves the coordinator of the gang, where there are several hosts.
"""

from __future__ import annotations

import base64
import logging
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from hotstart.cache.config import CacheConfig, node_dir_of
from hotstart.cache.description import MAX_TEXT
from hotstart.cache.directory import DirectoryStore
from hotstart.cache.errors import EntryError, StoreError
from hotstart.cache.keyring import load_keyring
from hotstart.cache.leases import StoreLeases
from hotstart.cache.signing import Keyring, Seal, tally
from hotstart.cache.store import normalize_location, open_store
from hotstart.launcher.coordinator import Coordinator
from hotstart.launcher.coordinator_link import CoordinatorLink
from hotstart.launcher.host_cache import HostCache
from hotstart.launcher.host_store import HostStore
from hotstart.launcher.manifest import Manifest, ManifestError
from hotstart.launcher.questions import own_way
from hotstart.launcher.sources import Peers
from hotstart.launcher.upstream import Upstream

logger = logging.getLogger(__name__)

_OPEN_S = 10.0
_CORES_A_WORKER = 2
_MAX_DESCRIBED = 1000  # keys of one worker


@dataclass(frozen=True)
class Seat:
    """A host's place in its gang, and where the coordinator is; None where it has no other hosts.

    `coordinator` is IP, port and token.
    """

    host: int
    coordinator: tuple[str, int, str] | None = None


class AgentCache:
    """Safe among threads. Only `open`, `check` and `flush` block; the others wait for `open`."""

    def __init__(self, ip: str, on_its_own: Callable[[int], None] = lambda attempt: None) -> None:
        """`on_its_own` gets an attempt in which this host has lost the coordinator, and compiles
        what the rest of its gang may compile too.
        """
        self._ip = ip
        self._on_its_own = on_its_own
        self._opened = threading.Event()
        self._lock = threading.Lock()
        self._coordinator: Coordinator | None = None
        self._link: CoordinatorLink | None = None
        self._seat = Seat(0)
        self._store: HostStore | None = None
        self._upstream: Upstream | None = None
        self._host: HostCache | None = None
        self._connecting = threading.Lock()
        self._asked: dict[int, list[dict[str, Any]]] = {}
        self._parts: dict[int, dict[str, str]] = {}
        self._options: dict[str, str] = {}
        self._devices: dict[tuple[int, ...], tuple[int, ...]] = {}
        self._begun: int | None = None
        self._failed = False
        self._told_stats: dict[str, int] = {}
        self._manifest: Manifest | None = None
        self._awaiting_plan: list[tuple[int, int, Callable[[dict[str, Any]], None]]] = []
        self._senders: dict[int, Callable[[dict[str, Any]], None]] = {}
        self._keyring: Keyring | None = None

    def keyring(self, config: CacheConfig) -> Keyring:
        """This host's signing keys, read once: all its processes of a run must agree.

        Raises `SigningKeyError`.
        """
        with self._lock:
            if self._keyring is None:
                self._keyring = load_keyring(config.signing_key_file)
            return self._keyring

    def refused(self, error: EntryError) -> None:
        """Count what came from the store and did not verify, and was no entry."""
        if self._store is not None:
            self._store.count(**tally(error))

    def serve(self) -> tuple[str, int, str]:
        """Start the gang's coordinator here. Raises OSError."""
        if self._coordinator is None:
            self._coordinator = Coordinator(self._ip)
        return (*self._coordinator.address, self._coordinator.token)

    def open(self, config: CacheConfig | None, seat: Seat, peers: Peers) -> None:
        """Take the seat; `config` None, or `compile: every`, is a cache without coordination."""
        self._seat = seat
        try:
            if config is not None and config.compile == "once":
                self._open(config, peers)
        except Exception:
            self._failed = True
            logger.exception("the cache cannot be opened here; each worker compiles for itself")
        finally:
            with self._lock:
                self._opened.set()
                begun, senders = self._begun, dict(self._senders)
            if begun is not None and self._host is not None:  # an attempt did not wait for it
                self._host.begin(begun, senders)

    def begin(self, attempt: int, senders: Mapping[int, Callable[[dict[str, Any]], None]]) -> None:
        """A new attempt and its workers, by process index."""
        self._opened.wait(_OPEN_S)
        with self._lock:
            self._begun = attempt
            self._asked = {}
            self._parts = {}
            self._senders = dict(senders)
            self._awaiting_plan.clear()
        if self._host is not None:
            self._connect()
            self._host.begin(attempt, dict(senders))

    def heard(self, worker: int, message: dict[str, Any]) -> None:
        """A message of a worker that is about its cache."""
        if "asked" in message:
            request = dict(message["asked"])
            with self._lock:
                # One object for equal values, few of which differ: pickle sends it once.
                options = str(request.get("options", ""))
                request["options"] = self._options.setdefault(options, options)
                devices = tuple(request.get("devices", ()))
                request["devices"] = self._devices.setdefault(devices, devices)
                asked = self._asked.setdefault(worker, [])
                asked.append({**request, "order": len(asked)})
        elif "described" in message:
            key, parts = str(message["described"]), str(message.get("parts", ""))
            with self._lock:
                known = self._parts.setdefault(worker, {})
                if len(known) < _MAX_DESCRIBED and len(parts) <= MAX_TEXT:
                    known[key] = parts
        elif message.get("ask") == "planned":
            self._tell_plan(worker, int(message["request"]))
        elif "ask" in message and self._host is not None:
            self._host.ask(worker, message)
        elif "request" in message:  # the cache could not be opened here: nobody must wait for it
            send = self._senders.get(worker)
            if send is not None:
                send(own_way(message))

    def gone(self, worker: int, attempt: int) -> None:
        """A worker of an attempt has ended."""
        if self._host is not None:
            self._host.gone(worker, attempt)

    def read_ahead(self, attempt: int, manifest: bytes) -> None:
        """Bring the manifest's entries to this host before attempt's workers ask for them."""
        self._opened.wait(_OPEN_S)
        try:
            known = Manifest.from_json(manifest)
        except ManifestError as error:
            logger.warning("nothing is read ahead: %s", error)
            return
        with self._lock:
            self._manifest = known
            waiting, self._awaiting_plan = self._awaiting_plan, []
        if self._host is not None:
            self._connect()
            self._host.read_ahead(attempt, [entry.key for entry in known.entries])
        for worker, number, send in waiting:
            send(self._plan_of(known, worker, number))

    def asked(self) -> dict[int, list[dict[str, Any]]]:
        """What JAX has asked for in this host's workers of the attempt, by process index.

        With `parts`, what its key was made of, where a worker has compiled it, or had begun to.
        """
        with self._lock:
            return {
                worker: self._asked_by(worker) for worker in sorted({*self._asked, *self._parts})
            }

    def _asked_by(self, worker: int) -> list[dict[str, Any]]:
        asked, left = [], dict(self._parts.get(worker, {}))
        for request in self._asked.get(worker, ()):
            parts = left.pop(str(request.get("key")), None)
            asked.append(request if parts is None else {**request, "parts": parts})
        for key, parts in left.items():  # it ended before it was compiled
            asked.append({"key": key, "order": len(asked), "outcome": "unfinished", "parts": parts})
        return asked

    def hand_out(self, key: str, digest: bytes) -> bytes | None:
        """The bytes of an entry for another host."""
        return None if self._store is None else self._store.hand_out(key, digest)

    def flush(self, timeout_s: float) -> bool:
        """Block until what workers published is in the store; False at the timeout or a failure."""
        return not self._failed and (self._store is None or self._store.flush(timeout_s))

    def take_stats(self) -> dict[str, int | float] | None:
        """`HostStats` since the last call; None where workers use their caches on their own."""
        if self._store is None:
            return None
        now = asdict(self._store.stats())
        with self._lock:
            before, self._told_stats = self._told_stats, now
        return {name: value - before.get(name, 0) for name, value in now.items()}

    def close(self) -> None:
        """End the coordinator's part and all threads; uploads that are not done stay marked."""
        if self._host is not None:
            self._host.close()
        if self._link is not None:
            self._link.close()
        if self._coordinator is not None:
            self._coordinator.close()

    def _open(self, config: CacheConfig, peers: Peers) -> None:
        node_dir = node_dir_of(config, has_agent=True)
        near = DirectoryStore(node_dir or config.location, max_size_bytes=config.max_size_bytes)
        far = None
        if node_dir:
            far = open_store(
                config.location,
                max_size_bytes=config.max_size_bytes,
                deadline_s=config.deadline_s,
                count=self._count,
                guarded=True,
            )
        seal = Seal(self.keyring(config), normalize_location(config.location))
        self._store = HostStore(config, near, far, seal=seal)
        leases = None
        if config.mode == "read-write":
            leases = StoreLeases(far or near, on_error=self._note_lease_error)
        self._upstream = Upstream(
            self._store, self._seat.host, peers, leases, on_compile=self._compiles
        )
        self._host = HostCache(self._store, self._upstream)
        self._connect()
        threading.Thread(target=self._prepare, name="hotstart-prepare", daemon=True).start()

    def _count(self, **amounts: int | float) -> None:
        if self._store is not None:
            self._store.count(**amounts)

    def _note_lease_error(self, error: StoreError) -> None:
        if self._store is not None:
            store = self._store.far or self._store.near
            self._store.trouble("lease", store, "leases", error)

    def _prepare(self) -> None:
        assert self._store is not None
        if self._store.far is not None and self._store.far.url.startswith("gs://"):
            from hotstart.cache.gcs_client import prepare

            try:
                prepare()
            except Exception as error:  # the first request says what is wrong
                logger.debug("%s", error)
        self._store.resume_uploads()

    def _connect(self) -> None:
        """Join the coordinator, again where it was lost; without it this host goes on alone.

        One at a time: an attempt begins, and is read ahead for, at once, and the coordinator ends
        the first of two links of one member.
        """
        with self._connecting:
            self._connect_alone()

    def _connect_alone(self) -> None:
        seat = self._seat
        if seat.coordinator is None or (self._link is not None and not self._link.lost):
            return
        assert self._upstream is not None
        ip, port, token = seat.coordinator
        try:
            self._link = CoordinatorLink(
                (ip, port), token, seat.host, self._upstream.answered, self._lost
            )
        except OSError as error:
            self._link = None
            logger.warning("no coordinator: %s; this host resolves on its own", error)
            return
        self._upstream.connect(self._link)

    def _lost(self) -> None:
        """The coordinator is lost; what is compiled here now the others will compile too."""
        assert self._upstream is not None
        self._upstream.lost()
        if self._host is not None and self._host.is_compiling:
            self._compiles()

    def _compiles(self) -> None:
        if self._link is not None and self._link.lost and self._begun is not None:
            self._on_its_own(self._begun)

    def _tell_plan(self, worker: int, number: int) -> None:
        with self._lock:
            known, send = self._manifest, self._senders.get(worker)
            if known is None and send is not None:
                self._awaiting_plan.append((worker, number, send))
        if known is not None and send is not None:
            send(self._plan_of(known, worker, number))

    def _plan_of(self, manifest: Manifest, worker: int, number: int) -> dict[str, Any]:
        # Loading takes a core of its own: with none to spare it slows down what it runs beside.
        has_room = len(os.sched_getaffinity(0)) >= _CORES_A_WORKER * len(self._senders)
        planned = [
            {
                "key": entry.key,
                "options": base64.b64encode(entry.options or b"").decode(),
                "devices": entry.devices,
            }
            for entry in manifest.entries
            if has_room and entry.load_ahead and entry.asked_by(worker)
        ]
        return {"request": number, "planned": planned}
