"""Key components that must not depend on which process asks.

JAX hashes the fingerprint of the devices' topology into its key. On CPU that fingerprint holds
a per-process field, so every process of a gang has another key for one global program, and a
restart hits on process 0 alone. What really decides whether a CPU executable runs here is the
processor (its code is native), the devices' kind, their number and how processes share them.
"""

from __future__ import annotations

import hashlib
import platform
import re
from collections import Counter
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Protocol


class Device(Protocol):
    """The part of `jax.Device` that is looked at."""

    platform: str
    device_kind: str
    process_index: int


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
