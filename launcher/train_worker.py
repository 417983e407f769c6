"""One worker of Ray Train: its cache, its gang on CPU, and its account of itself.

All of it runs in the worker's own process and knows nothing of Ray. The account is one JSON file,
written anew while it changes and once more when user code has ended; a worker that is killed leaves
the last one, a second old at most.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from typing import Any

from hotstart.cache.config import CacheConfig
from hotstart.launcher.train_report import Place, WorkerReport, attempts_in, write_worker

__all__ = ["Place", "begin_user_code", "end", "free_address", "next_attempt", "start"]

logger = logging.getLogger(__name__)

_FAILED_FLUSH_S = 4.0
_WRITE_EVERY_S = 1.0
_LAST_WRITE_S = 10.0
_MAX_WARNINGS = 20


def next_attempt(filesystem: Any, root: str) -> int:
    """The number of the attempt that begins, from 1: one more than the run's storage has."""
    return max(attempts_in(filesystem, root), default=0) + 1


def free_address(host: str) -> str:
    """`host:port` with a port of this host that was free just now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    return f"[{host}]:{port}" if family is socket.AF_INET6 else f"{host}:{port}"


def start(
    *,
    filesystem: Any,
    root: str,
    cache: CacheConfig,
    place: Place,
    platform: str,
    coordinator: str | None,
    timeout_s: float,
    elapsed_s: float = 0.0,
) -> None:
    """Enable the cache and, with a `coordinator`, join the gang. Blocks until all have joined.

    `filesystem` is pyarrow's, `root` the run's folder in it; `elapsed_s` has passed since the
    start began. Raises what `hotstart.cache.enable` raises.
    """
    global _account
    # Before JAX is imported, which reads it. Ray Train does so too, on GPU and TPU, but later.
    os.environ["JAX_PLATFORMS"] = os.environ.get("JAX_PLATFORMS") or platform
    account = _Account(filesystem, root, place, cache.location, time.monotonic() - elapsed_s)
    _enable(cache, account)
    account.reached("cache_enabled")
    if coordinator is not None:
        _join(coordinator, place, timeout_s)
        account.reached("distributed")
    _account = account
    account.begin()


def begin_user_code(cache: CacheConfig) -> None:
    """User code begins. Enables the cache where nothing has started this process (no workers)."""
    if _account is None:
        _enable(cache, None)
    else:
        _account.reached("user_code")


def end(*, failed: bool) -> None:
    """User code has ended, or is to end: flush, then the last account. Later calls do nothing."""
    from hotstart.cache import active

    account = _account
    if account is not None and not account.claim_end():
        return
    active.flush(_FAILED_FLUSH_S if failed else None)
    if account is not None:
        account.finish("failed" if failed else "done")


def _enable(cache: CacheConfig, account: _Account | None) -> None:
    from hotstart.cache import active, children
    from hotstart.cache.keyring import load_keyring

    keyring = load_keyring(cache.signing_key_file)
    if account is None:
        active.enable(cache, keyring=keyring)
        return
    logging.getLogger("hotstart").addHandler(account)
    active.enable(cache, on_change=account.changed.set, keyring=keyring)
    children.offer(cache, keyring)


def _join(coordinator: str, place: Place, timeout_s: float) -> None:
    """Process 0 first: a client that asks before it listens backs off for a whole second."""
    import jax

    if place.process_index != 0:
        _wait_for_listener(coordinator, timeout_s)
    jax.distributed.initialize(
        coordinator,
        place.process_count,
        place.process_index,
        initialization_timeout=int(timeout_s),
    )


def _wait_for_listener(address: str, timeout_s: float) -> None:
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        with (
            contextlib.suppress(OSError),
            socket.create_connection((host.strip("[]"), int(port)), timeout=5),
        ):
            return
        time.sleep(0.01)


class _Account(logging.Handler):
    """What this worker has to say of itself, and the thread that writes it."""

    def __init__(
        self, filesystem: Any, root: str, place: Place, location: str, started: float
    ) -> None:
        super().__init__(level=logging.WARNING)
        self.changed = threading.Event()
        self._filesystem = filesystem
        self._root = root
        self._place = place
        self._location = location
        self._started = started
        self._phases: dict[str, float] = {}
        self._warnings: list[str] = []
        self._state = "running"
        self._ending = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="hotstart-account", daemon=True)

    def reached(self, phase: str) -> None:
        """A phase was reached now; once each."""
        self._phases.setdefault(phase, round(time.monotonic() - self._started, 3))
        self.changed.set()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep hotstart's warnings."""
        if len(self._warnings) < _MAX_WARNINGS:
            self._warnings.append(record.getMessage())
            self.changed.set()

    def begin(self) -> None:
        """Write from now on."""
        self._thread.start()

    def claim_end(self) -> bool:
        """Whether the caller is the first to end it."""
        return self._ending.acquire(blocking=False)  # never released

    def finish(self, state: str) -> None:
        """Write it a last time; blocks for that write, for ten seconds at most."""
        self._state = state
        self._over.set()
        self.changed.set()
        self._thread.join(_LAST_WRITE_S)

    def _keep(self) -> None:
        over = False
        while not over:
            self.changed.wait()
            over = self._over.is_set()
            self.changed.clear()
            try:
                write_worker(self._filesystem, self._root, self._report())
            except Exception as error:  # storage trouble is not the training's
                logger.info("the report of this worker was not written: %s", error)
            self._over.wait(_WRITE_EVERY_S)

    def _report(self) -> WorkerReport:
        from hotstart import cache

        return WorkerReport(
            place=self._place,
            host=socket.gethostname(),
            pid=os.getpid(),
            state=self._state,
            location=self._location,
            phases=dict(self._phases),
            warnings=tuple(self._warnings),
            stats=cache.stats(),
        )


_account: _Account | None = None
