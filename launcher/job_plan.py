"""From a job to what its workers are given: program, cache, environment, an attempt's plan."""

from __future__ import annotations

from pathlib import Path

from hotstart.cache.config import CacheConfig
from hotstart.conf.schema import JobConfig
from hotstart.launcher.placement import GangSize, hosts_per_slice
from hotstart.launcher.plan import AttemptPlan, Program
from hotstart.launcher.record import RunRecord
from hotstart.launcher.watchdog import StillLimits

JAX_PLATFORMS = {"cpu": "cpu", "gpu": "cuda", "tpu": "tpu"}


def attempt_plan(
    config: JobConfig,
    record: RunRecord,
    attempt: int,
    coordinator: str,
    size: GangSize,
    *,
    folder: str,
) -> AttemptPlan:
    """The plan of one attempt of a run, whose job was launched from `folder`.

    `coordinator` is the address of jax.distributed's own.
    """
    workers = size.process_count
    return AttemptPlan(
        run=record.name,
        attempt=attempt,
        process_count=workers,
        coordinator=coordinator,
        initialize=config.jax_distributed == "launcher",
        distributed_timeout_s=config.timeouts.distributed_s,
        program=program_of(config, folder),
        cache=cache_config_of(config),
        environ=worker_environ(config, record.checkpoint_location, coordinator, str(workers)),
        log_location=record.log_location,
        standby=config.restarts.standby,
        platform=config.platform,
        load_ahead=config.cache.read_ahead and config.cache.load_ahead,
        in_children=config.cache.children,
        limits=StillLimits(config.timeouts.step_s, config.timeouts.compile_s),
        secret_environ=dict(config.secret_env),
        workers_per_slice=hosts_per_slice(config) if config.tpu.topology is not None else 0,
    )


def program_of(config: JobConfig, folder: str) -> Program:
    """The user's program as the workers run it, in the folder that the job was launched from."""
    # As `python script.py`: the folder of the file itself, where the script is a link.
    path = (str(Path(config.script).resolve().parent),) if config.script else ()
    if config.working_dir:
        path = (*path, config.working_dir)
    return Program(
        *(config.script, config.entrypoint, tuple(config.args), path, folder),
        resume_if=config.resume.if_exists,
        resume_args=tuple(config.resume.args),
    )


def cache_config_of(config: JobConfig) -> CacheConfig | None:
    """The workers' cache, or None where the job turns it off."""
    cache = config.cache
    if cache.mode == "off" or cache.location is None:
        return None
    return CacheConfig(
        location=cache.location,
        mode="read-only" if cache.mode == "read-only" else "read-write",
        strict=cache.strict,
        compile="once" if cache.compile == "once" else "every",
        min_compile_time_s=cache.min_compile_time_s,
        node_dir=cache.node_dir,
        max_size_bytes=cache.max_size_bytes,
        deadline_s=cache.deadline_s,
        flush_timeout_s=cache.flush_timeout_s,
        signing_key_file=cache.signing_key_file,
        require_warm=config.require_warm,
    )


def worker_environ(
    config: JobConfig, checkpoints: str, coordinator: str, workers: str
) -> dict[str, str]:
    """What each worker gets on top of its host's environment; the job's own `env` wins.

    `JAX_COORDINATOR_ADDRESS` and its like are for scripts that initialize by themselves.
    """
    environ = {
        "JAX_PLATFORMS": JAX_PLATFORMS[config.platform],
        "HOTSTART_CHECKPOINT_DIR": checkpoints,
    }
    if config.platform == "cpu":
        environ["JAX_CPU_COLLECTIVES_IMPLEMENTATION"] = "gloo"
    if config.jax_distributed == "script":
        environ["JAX_COORDINATOR_ADDRESS"] = coordinator
        environ["JAX_NUM_PROCESSES"] = workers
    return environ | dict(config.env)


def unshared_directories(config: JobConfig, host_count: int) -> list[str]:
    """A warning for each plain directory that several hosts must have in common."""
    wanted = {"run_dir": config.run_dir, "cache.location": config.cache.location}
    return [
        f"{key}={location} must be a directory that all {host_count} hosts share; "
        "a gs:// location always is"
        for key, location in wanted.items()
        if host_count > 1 and location and not is_bucket(location)
    ]


def is_bucket(location: str) -> bool:
    """Whether a location is in a bucket, not a directory."""
    return location.startswith("gs://")
