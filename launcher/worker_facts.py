"""What a worker has of what all workers of a gang must have in common; compared by `preflight.py`.

Gathering is cheap, for it is on the way to the first step: names of folders and variables are
looked at, and nothing is imported that is not there already.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import os
import re
import sys
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from hotstart.cache.config import CacheConfig
from hotstart.cache.requests import Request

# `jax_cuda12_plugin-0.10.2.dist-info`: importlib.metadata takes 10 to 30 ms to say the same.
_INSTALLED = re.compile(
    r"(jax|jaxlib|hotstart|jax_\w+_(?:plugin|pjrt)|jax_metal|libtpu(?:_nightly)?)"
    r"-([^-]+)\.(?:dist|egg)-info",
    re.IGNORECASE,
)
_CLOSE_S = 2.0
_ALWAYS = ("jax", "jaxlib", "hotstart")
# Where dumps go, what shows in the devices, and the like: not in the key of JAX 0.10 or 0.12 (see
# `xla_flags_to_exclude_from_cache_key` in jax/_src/cache_key.py).
_NOT_IN_KEY = re.compile(
    r"--xla_dump_|--xla_force_host_platform_device_count\b|--xla_gpu_cuda_data_dir\b"
    r"|--xla_gpu_experimental_autotune_cache_mode\b|--xla_gpu_per_fusion_autotune_cache_dir\b"
    r"|--xla_tpu_compiler_variant\b|--xla_tpu_sdc_checker_"
)


@functools.cache
def installed() -> Mapping[str, str]:
    """Versions of what decides an executable and its key, as installed when first asked.

    To be asked before JAX is imported, so that an upgrade in between is not taken for it.
    """
    python = ".".join(map(str, sys.version_info[:3]))
    return {"Python": python, **_distributions(), "compression": _compression()}


def key_versions() -> dict[str, str]:
    """Of the installed versions those that make JAX ask for other entries once they change."""
    return {k: v for k, v in installed().items() if k not in ("Python", "hotstart")}


def start_facts(cache: CacheConfig | None, environ: Mapping[str, str]) -> dict[str, str]:
    """The stage `start` of a worker with these settings and this environment."""
    return {
        **installed(),
        "XLA_FLAGS": decisive_flags(environ.get("XLA_FLAGS", "")),
        "LIBTPU_INIT_ARGS": decisive_flags(environ.get("LIBTPU_INIT_ARGS", "")),
        "cache.mode": "off" if cache is None else cache.mode,
        "cache.compile": "" if cache is None else cache.compile,
        "cache.min_compile_time_s": "" if cache is None else f"{cache.min_compile_time_s:g}",
    }


def decisive_flags(flags: str) -> str:
    """Flags in order, less those that are not in JAX's key and may differ."""
    return " ".join(sorted(flag for flag in flags.split() if not _NOT_IN_KEY.match(flag)))


def device_facts() -> dict[str, str]:
    """The stage `devices`; the backend is initialized by now."""
    import jax

    devices, own = jax.devices(), jax.local_devices()
    client = devices[0].client
    facts = {
        "platform": devices[0].platform,
        "device kind": ", ".join(sorted({d.device_kind for d in own})),
        "runtime": " ".join(str(client.platform_version).split()),
        "local devices": str(len(own)),
        "topology": _topology(devices),
    }
    if devices[0].platform == "cpu":
        facts["processor"] = _processor()
    return facts


class RequestFacts:
    """Sends the stages `devices` and `program` as JAX asks for programs."""

    def __init__(self, send: Callable[[dict[str, Any]], None]) -> None:
        self._send = send
        self._lock = threading.Lock()
        self._devices_sent = self._program_sent = False
        self._thread = threading.Thread(
            target=self._send_devices, name="hotstart-facts", daemon=True
        )

    def __call__(self, request: Request) -> None:
        """A program was asked for, on the thread that compiles, which does not wait for devices."""
        if self._program_sent:
            return
        import jax

        is_global = len(set(request.device_ids)) == jax.device_count()
        with self._lock:
            devices, self._devices_sent = not self._devices_sent, True
            program = is_global and not self._program_sent
            self._program_sent = self._program_sent or program
        if devices:
            self._thread.start()
        if program:
            name, _, digest = request.key.rpartition("-")
            self._send(facts_message("program", {"first program": f"{name}-{digest[:16]}"}))

    def close(self) -> None:
        """Wait until what is on its way is sent, for at most 2 s."""
        if self._devices_sent:
            self._thread.join(_CLOSE_S)

    def _send_devices(self) -> None:
        with contextlib.suppress(Exception):  # a plugin need not be able to tell
            self._send(facts_message("devices", device_facts()))


def facts_message(stage: str, values: Mapping[str, str]) -> dict[str, Any]:
    """As it goes over the worker's channel."""
    return {"facts": {"stage": stage, "values": dict(values)}}


def _distributions() -> dict[str, str]:
    """Name and version of what is on the path; of two with one name the first is imported."""
    found: dict[str, str] = {}
    for folder in sys.path:
        with contextlib.suppress(OSError):
            for entry in sorted(os.listdir(folder or ".")):  # noqa: PTH208
                if match := _INSTALLED.fullmatch(entry):
                    found.setdefault(match[1].lower().replace("_", "-"), match[2])
    for name in _ALWAYS:
        if name not in found:
            found[name] = _version(name)
    return dict(sorted(found.items()))


def _version(name: str) -> str:
    """For what lies on the path without a folder that has its version in the name."""
    import importlib.metadata

    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(name)
    return ""


def _compression() -> str:
    """What JAX compresses entries with, which is in its key."""
    if sys.version_info >= (3, 14):
        return "zstandard"  # compression.zstd, of the same format
    with contextlib.suppress(ImportError, ValueError):
        if importlib.util.find_spec("zstandard") is not None:
            return "zstandard"
    return "zlib"


def _topology(devices: list[Any]) -> str:
    shares = sorted(Counter(d.process_index for d in devices).items())
    digest = hashlib.sha256()
    for device in devices:
        place = (device.id, device.process_index, getattr(device, "coords", None))
        digest.update(repr((*place, getattr(device, "slice_index", None))).encode())
    counts = {count for _, count in shares}
    each = f"{counts.pop()} each" if len(counts) == 1 else "unequal shares"
    return (
        f"{len(devices)} devices in {len(shares)} processes, {each} "
        f"(SHA-256 {digest.hexdigest()[:8]})"
    )


def _processor() -> str:
    """CPU executables are native code; the digest is of what is in their key."""
    from hotstart.cache.keys import processor_identity

    return f"SHA-256 {hashlib.sha256(processor_identity()).hexdigest()[:12]}"
