"""Key components that must not depend on which process asks.

JAX hashes the fingerprint of the devices' topology into its key. On CPU that fingerprint holds
a per-process field, so every process of a gang has another key for one global program, and a
restart hits on process 0 alone. What really decides whether a CPU executable runs here is the
processor (its code is native), the devices' kind, their number and how processes share them.

JAX also hashes the device assignment, which holds global device ids, so what a process runs on
its own devices has a key of its own. The assignment is not in a CPU executable's code: loading
it takes the assignment of the process that loads. So each id is replaced by the device's rank
among its process's devices, as JAX does on GPU; other orders of devices keep other keys.
"""

from __future__ import annotations

import copy
import hashlib
import platform
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol


class Device(Protocol):
    """The part of `jax.Device` that is looked at."""

    id: int
    platform: str
    device_kind: str
    process_index: int


_AUTOTUNING = "--xla_gpu_shard_autotuning"


def compile_once_flags(xla_flags: str) -> str:
    """`XLA_FLAGS` for GPU processes of which one compiles for all: no sharded autotuning.

    Where that is on, processes that compile one program wait for each other's measurements, and
    a process that compiles alone waits for peers that never come. A setting of the user's own
    is left as it is, which shows by the flags coming back unchanged.
    """
    # XLA takes the last of several settings, and a bare flag as true.
    if any(flag.partition("=")[0] == _AUTOTUNING for flag in xla_flags.split()):
        return xla_flags
    return f"{xla_flags} {_AUTOTUNING}=false".lstrip()


def turns_autotuning_off(xla_flags: str) -> bool:
    """Whether these `XLA_FLAGS` turn sharded autotuning off; XLA takes the last of several."""
    settings = [f.partition("=") for f in xla_flags.split() if f.partition("=")[0] == _AUTOTUNING]
    return bool(settings) and settings[-1][2].lower() in ("false", "0")


def local_ranks(devices: Sequence[Device], local_devices: Iterable[Device]) -> list[int] | None:
    """Each device's rank by id among a process's own; None unless all are its own CPUs."""
    if any(device.platform != "cpu" for device in devices):
        return None
    ids = sorted(device.id for device in local_devices)
    ranks = {device_id: rank for rank, device_id in enumerate(ids)}
    if not devices or any(device.id not in ranks for device in devices):
        return None
    return [ranks[device.id] for device in devices]


def process_independent_options(options: Any, devices: Sequence[Device], backend: Any) -> Any:
    """XLA's compile options for the key of a program that runs on this process's CPUs alone.

    A copy whose device assignment holds ranks; other programs' `options` come back as they are.
    """
    import numpy as np

    assignment = options.device_assignment
    if assignment is None or backend.platform != "cpu":
        return options
    ranks = local_ranks(devices, backend.local_devices())
    shape = (assignment.replica_count(), assignment.computation_count())
    if ranks is None or len(ranks) != shape[0] * shape[1]:
        return options
    create = type(assignment).create
    ids = np.array([device.id for device in devices]).reshape(shape)
    if create(ids).serialize() != assignment.serialize():
        return options
    independent = copy.deepcopy(options)
    independent.device_assignment = create(np.array(ranks).reshape(shape))
    return independent


def cpu_accelerator_digest(devices: Iterable[Device], processor: bytes | None = None) -> bytes:
    """A digest of the CPU devices of a program that is the same in every process of a gang.

    `processor` identifies the processor model and its features; None looks at this host's.
    """
    devices = list(devices)
    digest = hashlib.sha256(b"hotstart cpu accelerators 1\0")
    digest.update(processor if processor is not None else processor_identity())
    shares = sorted(Counter(d.process_index for d in devices).values())
    digest.update(repr((shares, [d.device_kind for d in devices])).encode())
    return digest.digest()


# What x86 code generation looks at. The kernel's list also holds what only kernels use, or what
# the kernel itself makes up (`cpuid`, `hypervisor`, `smep`), and that changes with its version.
_X86_CODE = re.compile(
    r"(mmx|s?sse|sse4|pni|avx|amx|fma|f16c|bmi|abm|lzcnt|popcnt|movbe|adx|aes|vaes|v?pclmul|gfni"
    r"|sha|cx8|cx16|cmov|xsave|xgetbv|rdrand|rdseed|rdpid|clflush|clwb|movdir|serialize|prefetch"
    r"|3dnow|xop|tbm|fsgsbase|rtm|hle|lm$|lahf)"
)
_MODEL = ("vendor_id", "cpu family", "model", "CPU implementer", "CPU architecture", "CPU part")


@cache
def processor_identity() -> bytes:
    """This host's processor model and its features, as the kernel lists them."""
    try:
        cpuinfo = Path("/proc/cpuinfo").read_text()
    except OSError:
        return f"{platform.machine()}\n{platform.processor()}".encode()
    return identity_from(platform.machine(), cpuinfo)


def identity_from(machine: str, cpuinfo: str) -> bytes:
    """The identity in the text of `/proc/cpuinfo`; its first processor stands for all."""
    lines = [machine]
    for line in cpuinfo.partition("\n\n")[0].splitlines():
        name, value = (part.strip() for part in line.partition(":")[::2])
        if name in _MODEL:
            lines.append(f"{name}: {value}")
        elif name == "flags":
            lines.append(" ".join(sorted(f for f in value.split() if _X86_CODE.match(f))))
        elif name in ("Features", "isa"):
            lines.append(" ".join(sorted(value.split())))
    return "\n".join(lines).encode()
