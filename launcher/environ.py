"""A worker's environment: its host's, what hotstart sets, and the job's own."""

from __future__ import annotations

from collections.abc import Mapping

from hotstart.cache.keyring import KEYS_VARIABLE
from hotstart.cache.keys import compile_once_flags
from hotstart.launcher.plan import WorkerPlan

STALE_ENVIRON = (  # of an earlier launch, or of the host: another cache, another gang
    "JAX_COMPILATION_CACHE_DIR",
    "JAX_COORDINATOR_ADDRESS",
    "JAX_COORDINATOR_BIND_ADDRESS",
    "JAX_NUM_PROCESSES",
    "JAX_PROCESS_ID",
    "JAX_LOCAL_DEVICE_IDS",
    KEYS_VARIABLE,  # a secret: workers get it by their channel, and what they spawn does not
)
_OF_AN_ATTEMPT = ("HOTSTART_ATTEMPT", "HOTSTART_PROCESS_INDEX", "JAX_COORDINATOR_ADDRESS")


def compose_environ(plan: WorkerPlan, host: Mapping[str, str]) -> dict[str, str]:
    """All that a worker's process starts with on a host with the environment `host`."""
    attempt = plan.attempt
    environ = {k: v for k, v in host.items() if k not in STALE_ENVIRON} | added_environ(
        attempt.run,
        str(attempt.attempt),
        str(plan.process_index),
        str(attempt.process_count),
        attempt.environ,
    )
    once = attempt.cache is not None and attempt.cache.compile == "once"
    if once and attempt.platform == "gpu":
        # Here, where both the host's and the job's flags are known.
        environ["XLA_FLAGS"] = compile_once_flags(environ.get("XLA_FLAGS", ""))
    return environ


def added_environ(
    run: str, attempt: str, process_index: str, process_count: str, job: Mapping[str, str]
) -> dict[str, str]:
    """What a worker gets on top of its host's environment; `job`, the job's own, wins."""
    return {
        "PYTHONUNBUFFERED": "1",
        "HOTSTART_RUN": run,
        "HOTSTART_ATTEMPT": attempt,
        "HOTSTART_PROCESS_INDEX": process_index,
        "HOTSTART_PROCESS_COUNT": process_count,
        **job,
    }


def is_same_environ(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Whether they differ at most in what one attempt adds."""
    return split_environ(one)[0] == split_environ(other)[0]


def split_environ(environ: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """A worker's environment as what any attempt of its run has, and what one attempt adds."""
    lasting = {k: v for k, v in environ.items() if k not in _OF_AN_ATTEMPT}
    return lasting, {k: v for k, v in environ.items() if k in _OF_AN_ATTEMPT}
