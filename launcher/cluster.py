"""Connect to Ray, or start it here for this run alone; and leave nothing of it behind."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from hotstart.launcher.errors import ClusterUnreachable
from hotstart.launcher.guard import Guard

logger = logging.getLogger(__name__)

_OBJECT_STORE_BYTES = 512 << 20
_MARK = "HOTSTART_EMBEDDED_RAY"
_PROBE_S = 5.0
_EMPTY_SETTINGS = b"\0\0\0\4\0\0\0\0\0"  # length, type 4, flags, stream
# A Unix socket's path has 107 bytes at most, of which Ray's session and socket names take 86.
_TEMP_BYTES = 20


@dataclass(frozen=True)
class Connection:
    """The Ray cluster in use. `embedded` means that it was started here and ends with the run."""

    address: str
    embedded: bool


@contextlib.contextmanager
def connect(
    address: str | None,
    needed: Mapping[str, float],
    is_interrupted: Callable[[], bool] = lambda: False,
) -> Iterator[Connection]:
    """A connection to Ray for the length of the block.

    `address` is what `--address` says: None takes `RAY_ADDRESS`, else the cluster that `ray
    start` has started on this machine, else starts Ray here with at least the resources
    `needed`; `local` always starts it here. Blocks for some seconds; a signal that makes
    `is_interrupted` true breaks that off, and then there is no connection in the block. Raises
    `ClusterUnreachable`.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    import ray

    options: dict[str, Any] = {
        "namespace": "hotstart",
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "configure_logging": False,
    }
    address = address or os.environ.get("RAY_ADDRESS") or "auto"
    if address == "auto":
        address = _started_here() or "local"
    guard = None
    try:
        with _breakable():
            if is_interrupted():  # by a signal that came before there was anything to break off
                pass
            elif address == "local":
                guard = Guard()
                _start_here(guard, options, needed)
            else:
                _join(address, options)
        # Ray prints what its nodes have to say on standard output, which is the report's.
        with contextlib.redirect_stdout(sys.stderr):
            yield Connection(address, guard is not None)
    finally:
        with contextlib.suppress(Exception):
            if guard is not None and ray.is_initialized():
                _kill_monitor()
            if guard is None or ray.is_initialized():
                ray.shutdown()
        if guard is not None:
            guard.close(timeout_s=5)


def check_address(address: str | None) -> None:
    """Raise `ClusterUnreachable` where no Ray answers at a `host:port` that was asked for.

    Blocks for at most some seconds and does not import Ray, so that nothing need be started or
    recorded before it is known. `address` is what `connect` takes.
    """
    address = address or os.environ.get("RAY_ADDRESS") or "auto"
    if address in ("auto", "local") or "://" in address:
        return
    try:
        _knock(address)
    except (OSError, ValueError) as error:
        raise _unreachable(address, error) from error


def _join(address: str, options: Mapping[str, Any]) -> None:
    import ray

    check_address(address)  # Ray itself would retry for minutes, and Ctrl-C would have to wait
    try:
        ray.init(address=address, **options)
    except Exception as error:
        raise _unreachable(address, error) from error


def _unreachable(address: str, error: Exception) -> ClusterUnreachable:
    return ClusterUnreachable(
        f"cannot connect to Ray at {address}: {_first_line(error)}; check --address and "
        "RAY_ADDRESS, or give --address local to start Ray here"
    )


def _knock(address: str) -> None:
    """Raise OSError or ValueError where no gRPC server answers at `host:port`.

    HTTP/2's first bytes and an empty SETTINGS frame, which a server must answer by one of its
    own (RFC 9113, section 3.4). Behind TLS only the port is tried.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit():
        raise ValueError("expected host:port")
    with socket.create_connection((host.strip("[]"), int(port)), timeout=_PROBE_S) as end:
        if os.environ.get("RAY_USE_TLS", "0") != "0":
            return
        end.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _EMPTY_SETTINGS)
        answer = end.recv(9, socket.MSG_WAITALL)
    if answer[3:4] != _EMPTY_SETTINGS[3:4]:
        raise ValueError("what listens there is not Ray's GCS (its usual port is 6379)")


def _started_here() -> str | None:
    """The address that `ray start` left in its file, if somebody listens there.

    Ray's own `auto` also finds the Ray that another launch has embedded, which is not ours to
    use: it ends with that launch. The file: ray's `ray_current_cluster` (docs.ray.io, ray.init).
    """
    folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    try:
        address = Path(folder, "ray", "ray_current_cluster").read_text().strip()
        _knock(address)
    except (OSError, ValueError):
        return None
    return address


def _temp_base() -> str | None:
    """Where Ray's folder goes: None for the usual place, /tmp where that one's path is too long."""
    return None if len(os.fsencode(tempfile.gettempdir())) <= _TEMP_BYTES else "/tmp"


def _start_here(guard: Guard, options: Mapping[str, Any], needed: Mapping[str, float]) -> None:
    """Start Ray in a folder of its own; the guard ends it and removes that, even after kill -9."""
    import ray

    folder = tempfile.mkdtemp(prefix="hotstart-ray-", dir=_temp_base())
    guard.watch_folder(folder)
    os.environ[_MARK] = folder
    # Both: what Ray spawns for us inherits the mark, and what overwrites its environment by a
    # process title, as Ray's own agents do, has its log open.
    guard.watch_marked(_MARK, folder)
    guard.watch_holders(folder)
    # What Ray can detect is left to it: a resource that is claimed here does not come to exist.
    custom = {k: v for k, v in needed.items() if k not in ("CPU", "GPU", "TPU", "memory")}
    ray.init(
        address="local",
        num_cpus=max(os.cpu_count() or 1, int(-(-needed.get("CPU", 0) // 1))),
        resources=custom or None,
        include_dashboard=False,
        object_store_memory=_OBJECT_STORE_BYTES,
        _temp_dir=folder,
        **options,
    )


@contextlib.contextmanager
def _breakable() -> Iterator[None]:
    """Let SIGINT and SIGTERM break off what is inside, once their handlers have run.

    Ray takes seconds to start. It also puts handlers of its own in place of ours (absl's failure
    handler on SIGTERM), so ours are installed again afterwards.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {int(n): signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}

    def break_off(number: int, frame: FrameType | None) -> None:
        handlers[number](number, frame)  # type: ignore[operator, misc]
        now = signal.getsignal(number)
        handlers[number] = handlers[number] if now is break_off else now  # it was replaced
        raise _BrokenOff

    for number, handler in handlers.items():
        if callable(handler):
            signal.signal(number, break_off)
    unraisable = sys.unraisablehook

    def pass_over(error: sys.UnraisableHookArgs) -> None:
        if not isinstance(error.exc_value, _BrokenOff):  # lost in a fork hook, say: Ray starts
            unraisable(error)

    sys.unraisablehook = pass_over
    try:
        yield
    except _BrokenOff:
        logger.info("told to stop while connecting to Ray")
    finally:
        sys.unraisablehook = unraisable
        for number, handler in handlers.items():
            signal.signal(number, handler)


class _BrokenOff(BaseException):
    """A signal came while Ray started."""


def _kill_monitor() -> None:
    """End the autoscaler's monitor, which an embedded Ray has no use for.

    `ray.shutdown` asks each of its processes and waits; this one takes a whole second.
    """
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, ValueError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                if parent == os.getpid() and b"monitor.py" in (entry / "cmdline").read_bytes():
                    os.kill(int(entry.name), signal.SIGKILL)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
