"""What a job file may say: the keys, their types, defaults and bounds.

Plain frozen dataclasses, which OmegaConf takes as structured configs. The bounds stand in the
fields' metadata: `choices`, `at_least` and `at_most` (the bound is allowed) and `above` (it is
not). A `computed` key is never None, but may be set to null, which brings its default back. One
that is `part_of` another has no name of its own in a job file; the other's value sets it.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from decimal import Decimal

PLATFORMS = ("cpu", "gpu", "tpu")
TPU_GENERATIONS = ("v2", "v3", "v4", "v5litepod", "v5p", "v6e", "v7x")
_TOPOLOGY = re.compile(r"[1-9][0-9]{0,3}(?:x[1-9][0-9]{0,3}){1,2}")
_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,15})?)\s*([A-Za-z]*)")
_UNITS = {"": 1, "b": 1} | {
    f"{letter}{suffix}": base**power
    for power, letter in enumerate("kmgt", start=1)
    for suffix, base in (("b", 1000), ("ib", 1024))
}


def parse_size(text: str) -> int:
    """Bytes in a size like `50GiB`, `1.5 TB` or `1048576`; raises ValueError."""
    match = _SIZE.fullmatch(text.strip())
    unit = _UNITS.get(match[2].lower()) if match else None
    if match is None or unit is None:
        raise ValueError(f"not a size: {text!r}")
    return int(Decimal(match[1]) * unit)


@dataclass(frozen=True)
class CacheSection:
    """The shared compilation cache.

    `node_dir` is the directory in front of the store on each host, `max_size` bounds a
    directory store, `deadline_s` is for the retries of one store operation. With `compile` once
    one process of the gang compiles a program and the others load what it made; with every each
    process looks for itself and compiles what it does not find, as in stock JAX. `read_ahead`
    brings what the last attempt asked for to the hosts while workers start; `load_ahead` also
    makes it executable before it is asked for, and needs `read_ahead`. `signing_key_file` is a
    path on each host, for those whose environment names no key. With `children` what workers
    spawn has the cache too.
    """

    location: str | None = None
    mode: str = field(
        default="read-write", metadata={"choices": ("read-write", "read-only", "off")}
    )
    strict: bool = False
    min_compile_time_s: float = field(default=0.0, metadata={"at_least": 0})
    node_dir: str | None = None
    max_size: str | None = "50GiB"
    flush_timeout_s: float = field(default=60.0, metadata={"at_least": 0})
    deadline_s: float = field(default=30.0, metadata={"above": 0})
    compile: str = field(default="once", metadata={"choices": ("once", "every")})
    signing_key_file: str | None = None
    read_ahead: bool = True
    load_ahead: bool = True
    children: bool = True

    @property
    def max_size_bytes(self) -> int | None:
        """`max_size` in bytes, or None for no bound."""
        return None if self.max_size is None else parse_size(self.max_size)


@dataclass(frozen=True)
class RestartSection:
    """How often an attempt may follow a failed one, and a preempted one.

    With `standby` hosts keep processes ready, imports done, that the next attempt starts with;
    they hold memory and no device. A worker that exits with one of `exit_codes` asks to be started
    again, which `preemptions` pays for. An attempt that has gone on for `refill_after_s` since its
    first step (where no worker says its steps, in user code) makes `failures` whole again; null:
    never.
    """

    failures: int = field(default=3, metadata={"at_least": 0})
    preemptions: int = field(default=100, metadata={"at_least": 0})
    backoff_s: float = field(default=1.0, metadata={"at_least": 0})
    standby: bool = True
    exit_codes: list[int] = field(default_factory=list, metadata={"at_least": 1, "at_most": 255})
    refill_after_s: float | None = field(default=3600.0, metadata={"above": 0})


@dataclass(frozen=True)
class ResumeSection:
    """For a program that has to be told to go on from a checkpoint, and can't be told too early.

    `args` follow the job's own in every start that finds `if_exists`: a path that all workers see.
    """

    if_exists: str | None = None
    args: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class TimeoutSection:
    """How long to wait for capacity, for all processes to join, and for a worker to stop.

    A gang that makes no progress is stopped and started anew, as after a failure: `compile_s` is
    the longest that one compilation may take, `step_s` the longest from one step to the next, or
    from the start of user code to the first. null: for ever.
    """

    placement_s: float = field(default=300.0, metadata={"above": 0})
    distributed_s: float = field(default=300.0, metadata={"above": 0})
    stop_s: float = field(default=3.0, metadata={"at_least": 0})
    step_s: float | None = field(default=None, metadata={"above": 0})
    compile_s: float | None = field(default=14400.0, metadata={"above": 0})


@dataclass(frozen=True)
class TpuSection:
    """The slices that a gang's hosts are taken from, whole: chips as in `4x4` or `2x2x2`.

    Without a `topology` each host is taken for itself.
    """

    topology: str | None = None
    generation: str | None = field(default=None, metadata={"choices": TPU_GENERATIONS})

    @property
    def chips(self) -> int:
        """Of one slice; raises ValueError where `topology` is none, or is not like 4x4."""
        text = (self.topology or "").strip().lower()
        if not _TOPOLOGY.fullmatch(text):
            raise ValueError(f"not a topology: {self.topology!r}")
        return math.prod(map(int, text.split("x")))


@dataclass(frozen=True)
class JobConfig:
    """One job. As `load_job` returns it every path in it is absolute.

    `workers` is the most that an attempt may have and `workers_min` the fewest, None where they
    are the same: a job file's `workers: {min: 2, max: 8}`, or `2..8`, sets both. `workers_per_host`
    None puts all workers on one host. `resources_per_worker` has Ray's resource names, `labels`
    what each host's Ray labels must be: a value, `!value`, `in(a,b)` or `!in(a,b)`. `placement`
    spread gives every host of the job a node of its own, pack lets them share one. `working_dir`
    goes on the workers' path; where it is None, that is the script's own folder. `secret_env` has
    a reference for each variable that each host looks up by itself: `file:/path`, or
    `env:VARIABLE` of the environment that Ray was started in there. `cost_per_worker_hour`, in any
    currency, is for the report. With `require_warm` a program that is not in the cache ends the
    run with exit code 4, until the worker that asks for it has done a step: nothing is compiled
    instead.
    """

    name: str = field(default="", metadata={"computed": True})
    entrypoint: str | None = None
    script: str | None = None
    args: list[str] = field(default_factory=list)
    resume: ResumeSection = field(default_factory=ResumeSection)
    workers: int = field(default=1, metadata={"at_least": 1})
    workers_min: int | None = field(default=None, metadata={"part_of": "workers"})
    workers_per_host: int | None = field(default=None, metadata={"at_least": 1})
    resources_per_worker: dict[str, float] = field(default_factory=dict, metadata={"at_least": 0})
    labels: dict[str, str] = field(default_factory=dict)
    placement: str = field(default="spread", metadata={"choices": ("spread", "pack")})
    platform: str = field(default="cpu", metadata={"choices": PLATFORMS})
    tpu: TpuSection = field(default_factory=TpuSection)
    jax_distributed: str = field(default="launcher", metadata={"choices": ("launcher", "script")})
    working_dir: str | None = None
    cache: CacheSection = field(default_factory=CacheSection)
    require_warm: bool = False
    run_dir: str | None = None
    restarts: RestartSection = field(default_factory=RestartSection)
    env: dict[str, str] = field(default_factory=dict)
    secret_env: dict[str, str] = field(default_factory=dict)
    cost_per_worker_hour: float | None = field(default=None, metadata={"at_least": 0})
    timeouts: TimeoutSection = field(default_factory=TimeoutSection)

    @property
    def least_workers(self) -> int:
        """The fewest workers that an attempt may have."""
        return self.workers if self.workers_min is None else self.workers_min
