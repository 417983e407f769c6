"""What `hotstart doctor` looks at on this host: versions, devices, folders, ports, limits."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from hotstart.cache.config import hotstart_home, node_dir_of
from hotstart.launcher.doctor import Asked, Line
from hotstart.launcher.job_plan import JAX_PLATFORMS, cache_config_of
from hotstart.launcher.worker_facts import installed

DEVICES_S = 45.0
_REACH_S = 2.0
_FEW_FILES = 4096
_LITTLE_BYTES = 1 << 30
_OBJECT_STORE_BYTES = 512 << 20  # of a Ray that is started here; see `cluster.py`
_SHM = Path("/dev/shm")
_ALSO = ("ray", "gcsfs", "omegaconf", "zstandard")
_DEVICES = """
import json, jax
devices = jax.local_devices()
print()
print(json.dumps([devices[0].platform, len(devices), sorted({d.device_kind for d in devices})]))
"""


def versions(asked: Asked) -> Iterator[Line]:
    """Installed versions, and those that hotstart's own requirements exclude."""
    found = {name: version for name, version in installed().items() if name != "compression"}
    for name in _ALSO:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    shown = ", ".join(f"{name} {version}" for name, version in found.items())
    wrong = list(unmet_requirements())
    problem = f"{'; '.join(wrong)}: install hotstart's requirements" if wrong else ""
    yield Line("versions", shown, sys.prefix, problem, stops=bool(wrong))


def unmet_requirements() -> Iterator[str]:
    """What hotstart requires and isn't installed so, each in words."""
    try:
        from packaging.requirements import Requirement
    except ImportError:  # comes with Ray
        return
    try:
        required = importlib.metadata.requires("hotstart") or []
    except importlib.metadata.PackageNotFoundError:
        return
    for requirement in map(Requirement, required):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            yield f"{requirement.name} is not installed"
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            yield f"{requirement.name} is {version}, not {requirement.specifier}"


def devices(asked: Asked) -> Iterator[Line]:
    """This machine's devices as JAX sees them, in a child: it alone takes them, for a moment."""
    config, environ = asked.job.config, dict(os.environ)
    wanted, source = "", "what JAX finds"
    if asked.has_job:
        environ |= config.env
        wanted, source = config.platform, asked.origin("platform")
        environ["JAX_PLATFORMS"] = JAX_PLATFORMS[wanted]
    environ |= {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-c", _DEVICES]
    try:
        done = subprocess.run(
            command, env=environ, capture_output=True, text=True, timeout=DEVICES_S - 1
        )
    except subprocess.TimeoutExpired:
        said = f"JAX found none within {DEVICES_S - 1:g} s: another process may hold them"
        yield Line("devices", "not known", source, said)
        return
    if done.returncode == 0:
        platform, count, kinds = json.loads(done.stdout.strip().splitlines()[-1])
        yield Line("devices", f"{count} x {platform} ({', '.join(kinds)})", source)
        return
    last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    if "Error" in last and ":" not in last:  # a bare AssertionError, where a plugin is missing
        last = f"JAX's plugin for {wanted or 'it'} is not installed, or finds none ({last})"
    elsewhere = "" if asked.starts_ray else "; workers run on the cluster, which may have them"
    yield Line(
        "devices",
        f"no {wanted or 'device'} on this machine",
        source,
        f"{last}{elsewhere}",
        stops=asked.starts_ray,
    )


def home(asked: Asked) -> Iterator[Line]:
    """hotstart's own folder: runs, caches and node directories by default."""
    source = "environment HOTSTART_HOME" if os.environ.get("HOTSTART_HOME") else "default"
    yield _folder("home", hotstart_home(), source, stops=False)


def node_directory(asked: Asked) -> Iterator[Line]:
    """The directory in front of a bucket."""
    cache = cache_config_of(asked.job.config)
    where = None if cache is None else node_dir_of(cache)
    if where is None:
        yield Line("node directory", "none: only a bucket has one in front of it")
        return
    yield _folder("node directory", Path(where), asked.origin("cache.node_dir"), stops=False)


def ports(asked: Asked) -> Iterator[Line]:
    """Whether a port of this host can be taken, and reached by the address that others use."""
    ip = own_ip()
    try:
        with socket.create_server((ip, 0)) as server:
            port = server.getsockname()[1]
            with socket.create_connection((ip, port), timeout=_REACH_S):
                pass
    except OSError as error:
        said = f"{error.strerror or error}: let this host's firewall pass {ip} to itself"
        yield Line("ports", f"any free port of {ip}", problem=said, stops=True)
        return
    low, high = _port_range()
    text = f"free ports of {ip} ({low}-{high}): hotstart's and jax.distributed's coordinators"
    try:
        socket.gethostbyname(socket.gethostname())
    except OSError:
        said = f"{socket.gethostname()} has no address here: put it into /etc/hosts"
        yield Line("ports", text, problem=f"{said}, or CPU collectives (gloo) can't start")
        return
    yield Line("ports", text, "open them between all hosts of a job")


def own_ip() -> str:
    """The address by which other hosts reach this one; sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("8.8.8.8", 53))
            return str(probe.getsockname()[0])
        except OSError:  # no route: alone in the world
            return "127.0.0.1"


def limits(asked: Asked) -> Iterator[Line]:
    """Limits of this machine that Ray meets first."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = hard != resource.RLIM_INFINITY and hard < _FEW_FILES
    said = f"Ray needs more for many workers: ulimit -n {_FEW_FILES} or above" if few else ""
    yield Line("open files", f"{_limit(soft)}, at most {_limit(hard)}", "ulimit -n", said)
    if not asked.starts_ray or not _SHM.is_dir():
        return
    free = shutil.disk_usage(_SHM).free
    little = free < _OBJECT_STORE_BYTES
    said = f"Ray's object store wants {_size(_OBJECT_STORE_BYTES)} and takes a slower /tmp: "
    said += "in a container, --shm-size 1g"
    yield Line("shared memory", f"{_size(free)} free", str(_SHM), said if little else "")


def folder_problem(path: Path, *, write: bool = True) -> str:
    """What is wrong with a directory that is there, or is to be made; empty for nothing."""
    try:
        there = next(p for p in (path, *path.parents) if p.exists())
        if not there.is_dir():
            return f"{there} is not a directory: give another place"
        if path != there and not write:
            return ""
        if not os.access(there, os.R_OK | os.X_OK | (os.W_OK if write else 0)):
            return f"{there} cannot be {'written' if write else 'read'}: give another place"
        free = shutil.disk_usage(there).free
    except OSError as error:
        return f"{path}: {error.strerror}: give another place"
    return f"only {_size(free)} free: make room" if write and free < _LITTLE_BYTES else ""


def free_space(path: Path) -> str:
    """How much is free there, in words; empty where that can't be told."""
    try:
        there = next(p for p in (path, *path.parents) if p.exists())
        return f", {_size(shutil.disk_usage(there).free)} free"
    except OSError:
        return ""


def _folder(subject: str, path: Path, source: str, *, stops: bool) -> Line:
    state = "" if path.exists() else " (to be made)"
    problem = folder_problem(path)
    return Line(
        subject, f"{path}{state}{free_space(path)}", source, problem, stops and bool(problem)
    )


def _port_range() -> tuple[int, int]:
    try:
        low, high = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
        return int(low), int(high)
    except (OSError, ValueError):
        return 49152, 65535


def _limit(value: int) -> str:
    return "no limit" if value == resource.RLIM_INFINITY else str(value)


def _size(size_bytes: int) -> str:
    if size_bytes < 1 << 30:
        return f"{size_bytes >> 20} MiB"
    return f"{size_bytes / (1 << 30):.0f} GiB"
