"""Run a script with its process's JAX watched from outside of hotstart, or stock JAX altered.

    probed.py --output FOLDER --probes compiles,reads,writes,memory [SWITCH...] -- SCRIPT [ARG...]

Leaves `FOLDER/PID.json` when the process ends. What is watched lies below everything that
hotstart replaces: the methods of the XLA client itself, and the two functions by which JAX goes
to its cache.

Switches are for stock JAX only:
--equal-keys  global programs have one key in all processes, as they are expected to on TPU; on
              CPU a per-process field of the topology would keep the others from reading.
--all-write   every process writes; stock lets process 0 alone.
"""

from __future__ import annotations

import argparse
import atexit
import hashlib
import json
import os
import re
import runpy
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Where a StableHLO module says on which devices it runs; the rest of it has logical numbers.
_DEVICE_IDS = re.compile(r"device_ids\s*=\s*\[[^\]]*\]|device_ids\s*=\s*array<[^>]*>")


class Probe:
    """The numbers of this process."""

    def __init__(self) -> None:
        self.compiles: list[dict[str, Any]] = []
        self.read_s = 0.0
        self.loading_s = 0.0
        self.write_s = 0.0
        self.serialize_s = 0.0
        self._depth = threading.local()

    def watch(self, probes: list[str]) -> None:
        """Put the wrappers in place."""
        from jax._src import compilation_cache, compiler
        from jaxlib import _jax

        if "compiles" in probes or "writes" in probes:
            _wrap(_jax.Client, "compile_and_load", self._compile)
        if "reads" in probes:
            _wrap(compiler, "_cache_read", self._timed("read_s"))
            _wrap(compilation_cache, "decompress_executable", self._timed("loading_s"))
            _wrap(_jax.Client, "deserialize_executable", self._timed("loading_s"))
        if "writes" in probes:
            _wrap(compiler, "_cache_write", self._timed("write_s"))
            _wrap(_jax.LoadedExecutable, "serialize", self._timed("serialize_s"))

    def to_json(self) -> dict[str, Any]:
        """All numbers, and who this is."""
        import jax

        numbers = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        status = Path("/proc/self/status").read_text()
        sizes = {
            name.lower(): int(kilobytes) * 1024
            for name, kilobytes in re.findall(r"^(VmRSS|VmHWM):\s+(\d+) kB$", status, re.M)
        }
        return {**numbers, **sizes, "pid": os.getpid(), "process_index": jax.process_index()}

    def _compile(self, stock: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """`Client.compile_and_load(module, executable_devices, ...)`, counted and timed.

        CPU seconds are those of the whole process while it compiles: XLA has threads of its own.
        """
        module = args[1] if len(args) > 1 else kwargs["computation"]
        devices = kwargs.get("executable_devices") or args[2]
        record = {
            "name": module.operation.attributes["sym_name"].value,
            "digest": digest(str(module)),
            "processes": len({device.process_index for device in devices}),
        }
        wall, cpu = time.monotonic(), time.process_time()
        executable = stock(*args, **kwargs)
        record["ended_at"] = time.monotonic()
        record["cpu_s"] = time.process_time() - cpu
        record["wall_s"] = record["ended_at"] - wall
        self.compiles.append(record)
        return executable

    def _timed(self, name: str) -> Callable[..., Any]:
        """Add up what the main thread spends in a function; user code waits for that alone."""

        def around(stock: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            if threading.current_thread() is not threading.main_thread():
                return stock(*args, **kwargs)
            started = time.monotonic()
            try:
                return stock(*args, **kwargs)
            finally:
                setattr(self, name, getattr(self, name) + time.monotonic() - started)

        return around


def digest(module: str) -> str:
    return hashlib.sha256(_DEVICE_IDS.sub("device_ids = []", module).encode()).hexdigest()[:16]


def _wrap(holder: Any, name: str, around: Callable[..., Any]) -> None:
    stock = getattr(holder, name)

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return around(stock, *args, **kwargs)

    setattr(holder, name, wrapper)


def _equal_keys() -> None:
    from jax._src import cache_key

    cache_key._hash_accelerator_config = lambda hash_obj, devices: hash_obj.update(
        f"{devices.size} {devices.flat[0].device_kind}".encode()
    )


def _all_write() -> None:
    """Let `_cache_write` believe that it is process 0; nothing else does."""
    from types import SimpleNamespace

    from jax._src import compiler, distributed

    stock = compiler._cache_write
    globals_of_compiler = vars(compiler)
    everywhere_zero = SimpleNamespace(global_state=SimpleNamespace(process_id=0))

    def write(*args: Any, **kwargs: Any) -> None:
        globals_of_compiler["distributed"] = everywhere_zero
        try:
            stock(*args, **kwargs)
        finally:
            globals_of_compiler["distributed"] = distributed

    compiler._cache_write = write


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--probes", default="")
    parser.add_argument("--equal-keys", action="store_true")
    parser.add_argument("--all-write", action="store_true")
    parser.add_argument("script")
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    if options.equal_keys:
        _equal_keys()
    if options.all_write:
        _all_write()
    probe = Probe()
    probe.watch(options.probes.split(","))

    def leave() -> None:
        path = options.output / f"{os.getpid()}.json"
        path.write_text(json.dumps(probe.to_json()))

    atexit.register(leave)
    sys.argv = [options.script, *options.arguments]
    sys.path.insert(0, str(Path(options.script).parent))
    runpy.run_path(options.script, run_name="__main__")


if __name__ == "__main__":
    main()
