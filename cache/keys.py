"""Key components that must not depend on which process asks.

JAX hashes the fingerprint of the devices' topology into its key. On CPU that fingerprint holds
a per-process field, so every process of a gang has another key for one global program, and a
restart hits on process 0 alone. What really decides whether a CPU executable runs here is the
processor (its code is native), the devices' kind, their number and how processes share them.
"""

from __future__ import annotations

import hashlib
import platform
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


@cache
def processor_identity() -> bytes:
    """The processor's model and feature flags as the kernel lists them (first processor)."""
    wanted = ("model name", "flags", "Features", "CPU implementer", "CPU part", "isa")
    lines = [platform.machine()]
    try:
        first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
    except OSError:
        return "\n".join([*lines, platform.processor()]).encode()
    for line in first.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in wanted:
            lines.append(" ".join(sorted(value.split())))
    return "\n".join(lines).encode()
