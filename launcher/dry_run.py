"""What a launch would do, without starting anything: the job, environments and placement."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from hotstart.cache.keys import compile_once_flags
from hotstart.conf.load import LoadedJob, job_to_tree, job_to_yaml
from hotstart.conf.schema import JobConfig
from hotstart.launcher.environ import SLICE_ENVIRON, STALE_ENVIRON, VISIBLE_GPUS, added_environ
from hotstart.launcher.job_plan import worker_environ
from hotstart.launcher.placement import describe, describe_size, hosts_per_slice, place


def plan_as_json(job: LoadedJob) -> dict[str, Any]:
    """The plan as what `--dry-run --json` prints; what only a run knows is in angle brackets."""
    return {
        "job": job_to_tree(job.config),
        "origins": job.origins,
        "environ": _environ(job.config),
        "environ_removed": _removed(job.config),
        "placement": [dataclasses.asdict(share) for share in place(job.config)],
    }


def plan_as_lines(job: LoadedJob) -> Iterator[str]:
    """The plan as text: valid YAML of the job, the rest as comments."""
    config = job.config
    yield f"# {job.source}, resolved"
    yield job_to_yaml(config)
    yield "# environment of each worker, on top of its host's"
    for name, value in sorted(_environ(config).items()):
        yield f"#   {name}={value}"
    yield f"# taken out of it: {', '.join(_removed(config))}"
    sizes = ""
    if config.workers_min is not None:
        sizes = f", {describe_size(config.workers_min, config.workers)} workers: as many as there"
        sizes += " is room for at each attempt; here the most"
    yield f"# placement ({config.placement}){sizes}"
    for name, selector in sorted(config.labels.items()):
        yield f"#   each host labeled {name}={selector}"
    for share in place(config):
        indices = ", ".join(map(str, share.processes))
        yield f"#   host {share.host_index}: process {indices}; {describe(share.bundle)}"


def _environ(config: JobConfig) -> dict[str, str]:
    environ = added_environ(
        "<run>",
        "<attempt, from 1>",
        "<process, from 0>",
        _workers(config),
        worker_environ(config, "<run_dir>/<run>/checkpoints", "<host:port>", _workers(config)),
    )
    environ |= {v: f"<{reference}, of each host>" for v, reference in config.secret_env.items()}
    if config.platform == "gpu":
        environ.setdefault(VISIBLE_GPUS, "<its share of the host's>")
    if config.tpu.topology is not None and config.workers > hosts_per_slice(config):
        environ |= dict.fromkeys(SLICE_ENVIRON, "<of its slice, where there are several>")
    if config.platform == "gpu" and config.cache.mode != "off" and config.cache.compile == "once":
        environ["XLA_FLAGS"] = compile_once_flags(environ.get("XLA_FLAGS", "<the host's>"))
    return environ


def _workers(config: JobConfig) -> str:
    if config.workers_min is None:
        return str(config.workers)
    return f"<workers of the attempt, {config.workers_min} to {config.workers}>"


def _removed(config: JobConfig) -> list[str]:
    stale = {*STALE_ENVIRON, *(SLICE_ENVIRON if config.tpu.topology is not None else ())}
    return sorted(stale - _environ(config).keys())
