"""Connect to Ray, or start it here for this run alone; and leave nothing of it behind."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hotstart.launcher.errors import ClusterUnreachable
from hotstart.launcher.guard import Guard

logger = logging.getLogger(__name__)

_OBJECT_STORE_BYTES = 512 << 20


@dataclass(frozen=True)
class Connection:
    """The Ray cluster in use. `embedded` means that it was started here and ends with the run."""

    address: str
    embedded: bool


@contextlib.contextmanager
def connect(address: str | None, needed: Mapping[str, float]) -> Iterator[Connection]:
    """A connection to Ray for the length of the block.

    `address` is what `--address` says: None takes `RAY_ADDRESS`, else a cluster that runs on
    this machine, else starts Ray here with at least the resources `needed`; `local` always
    starts it here. Blocks for some seconds. Raises `ClusterUnreachable`.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    import ray

    options: dict[str, Any] = {
        "namespace": "hotstart",
        "log_to_driver": False,
        "logging_level": logging.WARNING,
        "configure_logging": False,
    }
    address = address or os.environ.get("RAY_ADDRESS") or "auto"
    embedded = address == "local"
    if not embedded:
        try:
            ray.init(address=address, **options)
        except Exception as error:
            if address != "auto":
                raise ClusterUnreachable(
                    f"cannot connect to Ray at {address}: {_first_line(error)}; check --address "
                    "and RAY_ADDRESS, or give --address local to start Ray here"
                ) from error
            embedded = True
    guard = None
    if embedded:
        guard = _start_here(options, needed)
    try:
        yield Connection(ray.get_runtime_context().gcs_address, embedded)
    finally:
        with contextlib.suppress(Exception):
            ray.shutdown()
        if guard is not None:
            guard.close(timeout_s=5)


def _start_here(options: dict[str, Any], needed: Mapping[str, float]) -> Guard:
    """Start Ray in a folder of its own, which the guard removes even after kill -9."""
    import ray

    guard = Guard()
    folder = tempfile.mkdtemp(prefix="hotstart-ray-")
    guard.watch_folder(folder)
    custom = {k: v for k, v in needed.items() if k not in ("CPU", "GPU", "memory")}
    ray.init(
        address="local",
        num_cpus=max(os.cpu_count() or 1, int(-(-needed.get("CPU", 0) // 1))),
        num_gpus=needed.get("GPU"),
        resources=custom or None,
        include_dashboard=False,
        object_store_memory=_OBJECT_STORE_BYTES,
        _temp_dir=folder,
        **options,
    )
    return guard


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
