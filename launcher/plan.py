"""What is passed along the chain: driver -> agent -> worker. Frozen and free of Ray and JAX."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from hotstart.cache.config import CacheConfig
from hotstart.launcher.watchdog import StillLimits


@dataclass(frozen=True)
class Program:
    """The user's program: a script or `module:function`, its arguments, and its import path.

    `path` goes in front of `sys.path`, in order; `folder` is the working directory. `resume_args`
    follow `args` where the path `resume_if` exists.
    """

    script: str | None
    entrypoint: str | None
    args: tuple[str, ...]
    path: tuple[str, ...]
    folder: str
    resume_if: str | None = None
    resume_args: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Program:
        """From a JSON object; the peer is of the same version."""
        lists = {name: tuple(data[name]) for name in ("args", "path", "resume_args")}
        return cls(**{**data, **lists})


@dataclass(frozen=True)
class AttemptPlan:
    """One start of the whole gang; the same for every worker.

    coordinator: `host:port` of the jax.distributed coordinator.
    initialize: whether the launcher calls `jax.distributed.initialize`, not the script.
    environ: set in each worker before its interpreter starts.
    cache: None where the cache is off.
    load_ahead: whether workers make executables of the manifest's entries before they are
        asked for.
    in_children: whether what workers spawn has the cache too.
    standby: whether agents keep children ready for the next attempt.
    platform: cpu, gpu or tpu.
    secret_environ: as `environ`, but references that each host resolves; see `secret_env.py`.
    workers_per_slice: of a TPU; 0 where hosts are not taken by slices.
    limits: how long workers may make no progress; see `watchdog.py`.
    """

    run: str
    attempt: int
    process_count: int
    coordinator: str
    initialize: bool
    distributed_timeout_s: float
    program: Program
    cache: CacheConfig | None
    environ: dict[str, str] = field(default_factory=dict)
    log_location: str = ""
    load_ahead: bool = True
    in_children: bool = True
    standby: bool = False
    platform: str = "cpu"
    limits: StillLimits = StillLimits()
    secret_environ: dict[str, str] = field(default_factory=dict)
    workers_per_slice: int = 0


@dataclass(frozen=True)
class WorkerPlan:
    """One worker's part; `decided_at` is the host's monotonic time of the attempt's decision.

    local_index, local_count: which of its host's workers it is, and how many those are.
    """

    process_index: int
    local_index: int
    decided_at: float
    attempt: AttemptPlan
    local_count: int = 1

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> WorkerPlan:
        """The inverse of `to_json`; the peer is of the same version."""
        attempt = dict(data["attempt"])
        program = Program.from_json(attempt.pop("program"))
        cache, limits = attempt.pop("cache"), StillLimits(**attempt.pop("limits"))
        plan = AttemptPlan(
            **attempt,
            program=program,
            cache=CacheConfig(**cache) if cache else None,
            limits=limits,
        )
        rest = {f.name: data[f.name] for f in fields(cls) if f.name != "attempt"}
        return cls(**rest, attempt=plan)
