"""Connect to Ray, or start it here for this run alone; and leave nothing of it behind."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hotstart.launcher.breakable import breakable
from hotstart.launcher.errors import ClusterUnreachable, UsageError, first_line
from hotstart.launcher.guard import Guard
from hotstart.launcher.placement import HostShare, describe, selects

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


@dataclass(frozen=True)
class Choice:
    """Which Ray `connect` would use: `host:port`, or `local` to start it here; and why that."""

    address: str
    source: str


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
    `ClusterUnreachable`, also where Ray can't be started, and `UsageError` where it is started here
    and this host lacks what is `needed`.
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
    address = _resolved(address)
    guard = None
    try:
        with breakable():
            if is_interrupted():  # by a signal that came before there was anything to break off
                pass
            elif address == "local":
                guard = Guard()
                _start_here(guard, options, needed)
                _check_resources(needed)
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


def check_hosts(
    address: str | None,
    shares: Sequence[HostShare],
    *,
    spread: bool,
    labels: Mapping[str, str] | None = None,
) -> None:
    """Raise `UsageError` where Ray would be started here and the gang wants other hosts.

    More of them, or labeled ones: of `labels`, what Ray itself does not set. Blocks for at most
    some seconds; like `check_address` it starts nothing.
    """
    own = {k: v for k, v in (labels or {}).items() if not k.startswith("ray.io/")}
    if not selects(own, {}) and _resolved(address) == "local":
        wanted = ", ".join(f"{name}={selector}" for name, selector in sorted(own.items()))
        raise UsageError(
            f"Ray is started here, on a host without labels; the job needs {wanted}: use "
            "--address, or leave labels out"
        )
    if spread and len(shares) > 1 and _resolved(address) == "local":
        workers = sum(len(share.processes) for share in shares)
        raise UsageError(
            f"Ray is started here, with one host; the job needs {len(shares)} hosts: use "
            f"workers_per_host={workers}, placement=pack, or --address"
        )


def check_address(address: str | None) -> None:
    """Raise `ClusterUnreachable` where no Ray answers at a `host:port` that was asked for.

    Blocks for at most some seconds and does not import Ray, so that nothing need be started or
    recorded before it is known. `address` is what `connect` takes.
    """
    address = address or os.environ.get("RAY_ADDRESS") or "auto"
    if address in ("auto", "local"):
        return
    scheme, separator, _ = address.partition("://")
    if separator:
        what = (
            "is the address of Ray's dashboard"
            if scheme.startswith("http")
            else (
                "is of Ray Client, which is not supported"
                if scheme == "ray"
                else "is not supported"
            )
        )
        raise ClusterUnreachable(
            f"cannot connect to Ray at {address}: that {what}; give host:6379 in --address or "
            "RAY_ADDRESS, or give --address local to start Ray here"
        )
    try:
        _knock(address)
    except (OSError, ValueError) as error:
        raise _unreachable(address, error) from error


def choose(address: str | None) -> Choice:
    """What `connect` would do with this `address`. Starts nothing; blocks for at most 5 s."""
    source = "--address" if address else "environment RAY_ADDRESS"
    named = address or os.environ.get("RAY_ADDRESS")
    if named and named != "auto":
        return Choice(named, source)
    running = _started_here()
    if running is not None:
        return Choice(running, "running on this machine")
    why = f"{source} is auto" if named else "no --address, no RAY_ADDRESS"
    return Choice("local", f"{why}, and none runs on this machine")


def _resolved(address: str | None) -> str:
    return choose(address).address


def _join(address: str, options: Mapping[str, Any]) -> None:
    import ray

    check_address(address)  # Ray itself would retry for minutes, and Ctrl-C would have to wait
    try:
        ray.init(address=address, **options)
    except Exception as error:
        raise _unreachable(address, error) from error


def _unreachable(address: str, error: Exception) -> ClusterUnreachable:
    return ClusterUnreachable(
        f"cannot connect to Ray at {address}: {first_line(error)}; check --address and "
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
    with _own_token(Path(folder, "auth_token")):
        try:
            ray.init(
                address="local",
                num_cpus=max(os.cpu_count() or 1, int(-(-needed.get("CPU", 0) // 1))),
                resources=custom or None,
                include_dashboard=False,
                object_store_memory=_OBJECT_STORE_BYTES,
                _temp_dir=folder,
                **options,
            )
        except Exception as error:
            raise ClusterUnreachable(
                f"Ray could not be started on this machine: {first_line(error).rstrip('.')}; where "
                "it is only busy, try again, or start Ray beforehand (`ray start --head`)"
            ) from error


@contextlib.contextmanager
def _own_token(path: Path) -> Iterator[None]:
    """Let an embedded Ray keep its token beside its files, and not announce it.

    Ray would put one into the user's home and say so each time (docs.ray.io, token
    authentication). What the user has set in the environment is used as it is.
    """
    if not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        path.touch(mode=0o600)
        path.write_text(secrets.token_hex(32))
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(path)
    announcer = logging.getLogger("ray._private.authentication.authentication_token_setup")
    level = announcer.level
    announcer.setLevel(logging.ERROR)
    try:
        yield
    finally:
        announcer.setLevel(level)


def _check_resources(needed: Mapping[str, float]) -> None:
    """Raise `UsageError` where the one host of an embedded Ray can never meet the request."""
    import ray

    total = ray.cluster_resources()
    lacking = {k: v for k, v in needed.items() if v > total.get(k, 0.0)}
    if lacking:
        has = {k: total.get(k, 0.0) for k in lacking}
        raise UsageError(
            f"Ray is started here, on a host with {describe(has)}; the job needs "
            f"{describe(lacking)}: use another platform, less in resources_per_worker, or --address"
        )


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
