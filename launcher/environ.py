"""A worker's environment: its host's, what hotstart sets, and the job's own."""

from __future__ import annotations

from collections.abc import Mapping

from hotstart.cache.children import withdraw
from hotstart.cache.keyring import KEYS_VARIABLE
from hotstart.cache.keys import compile_once_flags
from hotstart.launcher.plan import WorkerPlan
from hotstart.launcher.secret_env import resolve_secrets

STALE_ENVIRON = (  # of an earlier launch, or of the host: another cache, another gang
    "JAX_COMPILATION_CACHE_DIR",
    "JAX_COORDINATOR_ADDRESS",
    "JAX_COORDINATOR_BIND_ADDRESS",
    "JAX_NUM_PROCESSES",
    "JAX_PROCESS_ID",
    "JAX_LOCAL_DEVICE_IDS",
    KEYS_VARIABLE,  # a secret: workers get it by their channel, and what they spawn does not
)
VISIBLE_GPUS = "CUDA_VISIBLE_DEVICES"
SLICE_ENVIRON = (
    "MEGASCALE_COORDINATOR_ADDRESS",
    "MEGASCALE_PORT",
    "MEGASCALE_NUM_SLICES",
    "MEGASCALE_SLICE_ID",
)
_OF_AN_ATTEMPT = (
    *SLICE_ENVIRON,
    "HOTSTART_ATTEMPT",
    "HOTSTART_PROCESS_INDEX",
    "JAX_COORDINATOR_ADDRESS",
)


def compose_environ(plan: WorkerPlan, host: Mapping[str, str]) -> dict[str, str]:
    """All that a worker's process starts with on a host with the environment `host`.

    Raises `SecretUnavailable`.
    """
    attempt = plan.attempt
    stale = {*STALE_ENVIRON, *(SLICE_ENVIRON if attempt.workers_per_slice else ())}
    environ = {k: v for k, v in host.items() if k not in stale}
    withdraw(environ)  # of a worker that this launch was started in
    if attempt.platform == "gpu" and environ.get(VISIBLE_GPUS):
        environ[VISIBLE_GPUS] = share_of(environ[VISIBLE_GPUS], plan.local_index, plan.local_count)
    if attempt.workers_per_slice:
        count = attempt.process_count // attempt.workers_per_slice
        mine = plan.process_index // attempt.workers_per_slice
        environ |= slice_environ(attempt.coordinator, count, mine)
    environ |= added_environ(
        attempt.run,
        str(attempt.attempt),
        str(plan.process_index),
        str(attempt.process_count),
        {**attempt.environ, **resolve_secrets(attempt.secret_environ, host)},
    )
    once = attempt.cache is not None and attempt.cache.compile == "once"
    if once and attempt.platform == "gpu":
        # Here, where both the host's and the job's flags are known.
        environ["XLA_FLAGS"] = compile_once_flags(environ.get("XLA_FLAGS", ""))
    return environ


def share_of(devices: str, local_index: int, local_count: int) -> str:
    """One worker's devices of those that its host's agent holds, as `CUDA_VISIBLE_DEVICES`.

    Numbers, UUIDs or MIG instances, in order, shared out evenly: no device has two owners, unless
    there are fewer devices than workers.
    """
    ids = [device.strip() for device in devices.split(",") if device.strip()]
    first = local_index * len(ids) // local_count
    end = max(first + 1, (local_index + 1) * len(ids) // local_count)
    return ",".join(ids[first:end])


def slice_environ(coordinator: str, slice_count: int, slice_index: int) -> dict[str, str]:
    """What libtpu is to know of the other slices; empty where there are none.

    `coordinator` is `host:port` on the first host of the first slice, of which the host counts.
    """
    if slice_count < 2:
        return {}
    return {
        "MEGASCALE_COORDINATOR_ADDRESS": coordinator.rpartition(":")[0],
        "MEGASCALE_PORT": "8081",  # libtpu's own default, and Ray's
        "MEGASCALE_NUM_SLICES": str(slice_count),
        "MEGASCALE_SLICE_ID": str(slice_index),
    }


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
