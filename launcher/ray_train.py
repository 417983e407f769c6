"""hotstart's cache in Ray Train's `JaxTrainer`: one argument more.

    from ray.train.v2.jax import JaxTrainer
    from hotstart.launcher.ray_train import JaxConfig, read_report

    trainer = JaxTrainer(train_loop, jax_config=JaxConfig(cache="gs://bucket/cache"), ...)
    print(read_report(trainer.fit()))

The only module of hotstart that imports ray.train, and nothing of hotstart imports it. Its backend
runs in Ray Train's controller at each start of the worker group: on every worker it puts the cache
in place, before anything of the user's runs, and has `jax.distributed` initialized; that is Ray
Train's own part on GPU and TPU and ours on CPU, where Ray Train leaves workers apart. Workers keep
counters in the run's storage (train_report.py). There are no agents here, so programs are compiled
once by the leases in the cache's location; who restarts, and when, stays Ray Train's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import ray
import ray.train

from hotstart.cache.config import CacheConfig, hotstart_home
from hotstart.cache.store import normalize_location
from hotstart.launcher import train_worker
from hotstart.launcher.train_report import TrainReport, read_report

try:
    from ray.train.v2.jax import JaxConfig as _StockConfig
except ImportError as error:
    raise ImportError(
        f"ray {ray.__version__} has no JaxTrainer; hotstart needs ray[train] 2.55 or newer"
    ) from error

__all__ = ["JaxConfig", "TrainReport", "read_report"]

_StockBackend = _StockConfig().backend_cls
_STOP_S = 5.0


@dataclass
class JaxConfig(_StockConfig):
    """Ray Train's `JaxConfig` with a cache.

    cache: a directory that all nodes share, `gs://bucket/prefix`, or a `CacheConfig`; None takes
        this process's `JAX_COMPILATION_CACHE_DIR`, else hotstart's home. Relative paths are meant
        from here.
    use_gpu, use_tpu: as in Ray Train; where neither is set, what `ScalingConfig` gives a worker
        decides. Without either, workers run on CPU and several form one gang.
    distributed_timeout_s: on CPU, how long workers wait for each other to join.

    Raises `InvalidLocation` for a location that can be none. Where ray.train was imported with
    `RAY_TRAIN_V2_ENABLED=0`, raises ValueError: there is no `JaxTrainer` then.
    """

    cache: CacheConfig | str | None = None
    distributed_timeout_s: float = 300.0

    def __post_init__(self) -> None:
        if os.environ.get("RAY_TRAIN_V2_ENABLED", "1").lower() not in ("1", "true"):
            raise ValueError(
                "RAY_TRAIN_V2_ENABLED is off, and JaxTrainer is of Ray Train V2; unset it, or set "
                "it to 1 before ray.train is imported"
            )
        settings = self.cache
        if not isinstance(settings, CacheConfig):
            location = settings or os.environ.get("JAX_COMPILATION_CACHE_DIR")
            settings = CacheConfig(location or str(hotstart_home() / "cache"))
        location = normalize_location(settings.location)
        self.cache = dataclasses.replace(settings, location=location)

    @property
    def backend_cls(self) -> type:
        """See Ray Train's `BackendConfig`."""
        return HotstartBackend

    @property
    def train_func_context(self) -> Callable[[], Any]:
        """See Ray Train's `BackendConfig`."""
        return functools.partial(_around_user_code, self._settings)

    def to_dict(self) -> dict[str, Any]:
        """See Ray Train's `BackendConfig`; shown in its dashboard."""
        return {**super().to_dict(), "cache": dataclasses.asdict(self._settings)}

    @property
    def _settings(self) -> CacheConfig:
        return cast(CacheConfig, self.cache)  # since __post_init__


class HotstartBackend(_StockBackend):  # type: ignore[misc, valid-type]
    """What the controller does as a worker group starts and ends."""

    def on_start(self, worker_group: Any, backend_config: JaxConfig) -> None:
        """The cache on all workers, then `jax.distributed`. Blocks until all have joined."""
        config = _for_resources(backend_config, worker_group.get_resources_per_worker())
        platform = "tpu" if config.use_tpu else "cuda" if config.use_gpu else "cpu"
        started = time.monotonic()
        first = worker_group.execute_single(0, _first_worker)
        count = len(worker_group)
        _await_all(
            worker_group.execute_single_async(
                index,
                _start_worker,
                cache=config._settings,
                place=train_worker.Place(first.attempt, index, count),
                platform=platform,
                coordinator=first.address if platform == "cpu" and count > 1 else None,
                timeout_s=config.distributed_timeout_s,
                elapsed_s=time.monotonic() - started,
            )
            for index in range(count)
        )
        super().on_start(worker_group, config)  # jax.distributed, where that is Ray Train's part

    def on_shutdown(self, worker_group: Any, backend_config: JaxConfig) -> None:
        """Have what is on its way to the store stored: Ray kills the workers next."""
        calls = worker_group.execute_async(train_worker.end, failed=True)
        ray.wait(calls, num_returns=len(calls), timeout=_STOP_S)  # a dead one's is ready too
        config = _for_resources(backend_config, worker_group.get_resources_per_worker())
        super().on_shutdown(worker_group, config)


def _await_all(calls: Iterable[Any]) -> None:
    """Raise the first error as it comes: who waits for a dead peer to join waits for minutes."""
    pending = list(calls)
    while pending:
        done, pending = ray.wait(pending)
        ray.get(done)


@dataclass(frozen=True)
class _First:
    attempt: int
    address: str


def _first_worker() -> _First:
    """On the worker of index 0: which attempt this is, and where its peers may join."""
    storage = ray.train.get_context().get_storage()
    attempt = train_worker.next_attempt(storage.storage_filesystem, storage.experiment_fs_path)
    return _First(attempt, train_worker.free_address(ray.util.get_node_ip_address()))


def _start_worker(**arguments: Any) -> None:
    """On each worker, in the process that user code will run in."""
    storage = ray.train.get_context().get_storage()
    train_worker.start(
        filesystem=storage.storage_filesystem, root=storage.experiment_fs_path, **arguments
    )


def _for_resources(config: JaxConfig, resources: dict[str, float]) -> JaxConfig:
    """With `use_gpu` or `use_tpu` from what a worker gets, where neither is set."""
    if config.use_gpu or config.use_tpu:
        return config
    found: dict[str, Any] = {
        "use_gpu": resources.get("GPU", 0) > 0,
        "use_tpu": resources.get("TPU", 0) > 0,
    }
    return dataclasses.replace(config, **found)


@contextlib.contextmanager
def _around_user_code(cache: CacheConfig) -> Iterator[None]:
    """Around the user's function, in its worker; with `num_workers=0` there was no start."""
    train_worker.begin_user_code(cache)
    failed = True
    try:
        yield
        failed = False
    finally:
        train_worker.end(failed=failed)
