"""What `hotstart doctor` looks at beyond this host: Ray, the stores, and what opens them."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from hotstart.cache.errors import StoreError
from hotstart.cache.keyring import KEY_FILE_VARIABLE, KEYS_VARIABLE, load_keyring
from hotstart.cache.store import open_store
from hotstart.conf.schema import JobConfig
from hotstart.launcher.cluster import Choice, check_address, check_hosts, choose
from hotstart.launcher.doctor import Asked, Line
from hotstart.launcher.doctor_host import folder_problem, free_space
from hotstart.launcher.errors import LauncherError, SecretUnavailable
from hotstart.launcher.job_plan import cache_config_of
from hotstart.launcher.placement import (
    Host,
    describe,
    describe_need,
    place,
    total,
    workers_that_fit,
)
from hotstart.launcher.secret_env import resolve_secrets
from hotstart.launcher.store_check import PROBE, check_store

RAY_S = 30.0
STORES_S = 40.0
_MOST_S = 6.0
_FIELDS = {  # without which google-auth refuses a file of that type
    "authorized_user": ("client_id", "client_secret", "refresh_token"),
    "service_account": ("client_email", "private_key", "token_uri"),
}
_NODES = """
import dataclasses, json, logging, os, sys
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
import ray
from hotstart.launcher.cluster_hosts import look_at_hosts
ray.init(address=sys.argv[1], log_to_driver=False, logging_level=logging.ERROR,
         configure_logging=False)
hosts = look_at_hosts()
print()
print(json.dumps([dataclasses.asdict(host) for host in hosts], default=sorted))
"""


def ray(asked: Asked) -> Iterator[Line]:
    """Which Ray would be used, whether it answers, and whether it can ever hold the job."""
    try:
        version = importlib.metadata.version("ray")
    except importlib.metadata.PackageNotFoundError:
        said = "install it: pip install 'ray[default]'"
        yield Line("ray", "not installed", problem=said, stops=True)
        return
    choice = choose(asked.address)
    config = asked.job.config
    shares = place(config)
    try:
        check_address(asked.address)
        spread = config.placement == "spread"
        check_hosts(asked.address, shares, spread=spread, labels=config.labels)
    except LauncherError as error:
        where = "started here" if choice.address == "local" else choice.address
        yield Line("ray", f"{version}, {where}", choice.source, str(error), stops=True)
        return
    if choice.address == "local":
        text = f"{version}, started here for the length of the run, {os.cpu_count()} CPUs"
        yield Line("ray", text, choice.source, _shared_cpus(total(shares)))
        return
    yield _cluster(version, choice, config if asked.has_job else None)


def _shared_cpus(needed: Mapping[str, float]) -> str:
    wants, has = needed.get("CPU", 0.0), os.cpu_count() or 1
    if wants <= has:
        return ""
    return f"the workers want {wants:g} CPUs in all: Ray is told that it has them, they share {has}"


def _cluster(version: str, choice: Choice, config: JobConfig | None) -> Line:
    """What a cluster has, and with a job whether there is room for it, now and ever."""
    address, source = choice.address, choice.source
    command = [sys.executable, "-c", _NODES, address]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=RAY_S - 6)
    except subprocess.TimeoutExpired:
        said = f"a server listens there, and Ray did not connect within {RAY_S - 6:g} s: see `ray "
        return Line("ray", f"{version}, {address}", source, f"{said}status`", stops=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return Line("ray", f"{version}, {address}", source, last, stops=True)
    hosts = [
        Host(**{**host, "groups": frozenset(host["groups"])})
        for host in json.loads(done.stdout.strip().splitlines()[-1])
    ]
    names = {"CPU", "GPU", "TPU", *(total(place(config)) if config else ())}
    has = {name: sum(host.total.get(name, 0.0) for host in hosts) for name in names}
    shown = describe({name: amount for name, amount in has.items() if amount})
    text = f"{version}, {address}: {len(hosts)} host{'s' if len(hosts) != 1 else ''} with {shown}"
    problem = ""
    if config is not None and workers_that_fit(config, hosts) < config.least_workers:
        waits = f"{config.timeouts.placement_s:g} s (timeouts.placement_s)"
        problem = f"the job {describe_need(config, hosts)}: a launch waits for that, up to {waits}"
    return Line("ray", text, source, problem)


def secrets(asked: Asked) -> Iterator[Line]:
    """Whether what `secret_env` refers to is on this host; shows no secret."""
    references = asked.job.config.secret_env
    if not references:
        return
    names, source = ", ".join(sorted(references)), asked.origin(f"secret_env.{min(references)}")
    try:
        resolve_secrets(references, os.environ)
    except SecretUnavailable as error:
        elsewhere = "" if asked.starts_ray else "; workers run on the cluster, which may have it"
        said = f"{error}{elsewhere}"
        yield Line("secrets", f"not all of {names}", source, said, stops=asked.starts_ray)
        return
    yield Line("secrets", f"{names}, looked up on each host", source)


def stores(asked: Asked) -> Iterator[Line]:
    """The credentials, the cache's location and the run directory."""
    config = asked.job.config
    cache = cache_config_of(config)
    location = "" if cache is None else cache.location
    buckets = [url for url in (location, config.run_dir or "") if url.startswith("gs://")]
    yield _credentials(bool(buckets))
    source = asked.origin("cache.location")
    if cache is None:
        yield Line("store", "none: the cache is off", asked.origin("cache.mode"))
    elif location.startswith("gs://"):
        able = "written" if cache.mode == "read-write" else ""
        yield _round_trip("store", location, source, able, lambda: check_store(cache, source))
    else:
        yield _directory("store", location, source, write=cache.mode == "read-write")
    runs, source = config.run_dir or "", asked.origin("run_dir")
    if runs.startswith("gs://"):
        yield _round_trip("runs", runs, source, "", lambda: _lacking(runs))
    else:
        yield _directory("runs", runs, source, write=True)


def _directory(subject: str, location: str, source: str, *, write: bool) -> Line:
    path = Path(location)
    state = "" if path.exists() else " (to be made)"
    problem = folder_problem(path, write=write)
    text = f"{location}{state}{free_space(path)}"
    return Line(subject, text, source, problem, "free: make room" not in problem and bool(problem))


def _round_trip(
    subject: str, location: str, source: str, able: str, check: Callable[[], str | None]
) -> Line:
    """A bucket that is read twice, for the first time makes the connection, and then checked.

    `able` is what else it can where the check gives no problem.
    """
    store = open_store(location, deadline_s=_MOST_S)
    try:
        store.get(PROBE)
        started = time.monotonic()
        store.get(PROBE)
    except StoreError as error:
        return Line(subject, location, source, str(error), stops=True)
    rtt_ms = (time.monotonic() - started) * 1000
    problem = check() or ""
    can = " and ".join(word for word in ("read", "" if problem else able) if word)
    text = f"{location}: can be {can}, {rtt_ms:.0f} ms a request"
    return Line(subject, text, source, problem, bool(problem))


def _lacking(location: str) -> str:
    """What a driver lacks that is to keep a record there; writes nothing."""
    from hotstart.cache.bucket import role_of
    from hotstart.cache.gcs_bucket import GcsBucket

    bucket = location.removeprefix("gs://").partition("/")[0]
    try:
        permissions = GcsBucket(bucket, deadline_s=_MOST_S).permissions()
    except StoreError as error:
        return str(error)
    if permissions is None or "storage.objects.create" in permissions:
        return ""
    return (
        f"this identity is {role_of(permissions) or 'nobody'} in gs://{bucket} (unless a managed "
        "folder says more), and the driver writes its record there: give it "
        "roles/storage.objectUser"
    )


def _credentials(needed: bool) -> Line:
    """As gcsfs finds them, in its order: https://gcsfs.readthedocs.io/en/latest/#credentials."""
    if not needed:
        return Line("credentials", "none needed: nothing is in a bucket")
    emulator = os.environ.get("STORAGE_EMULATOR_HOST")
    if emulator not in (None, "", "default"):
        return Line("credentials", f"none: {emulator}", "environment STORAGE_EMULATOR_HOST")
    named = os.environ.get("GOOGLE_APPLICATION_CREDENTIALS")
    if named:
        source = "environment GOOGLE_APPLICATION_CREDENTIALS"
        who, problem = _identity_in(Path(named))
        return Line("credentials", f"{who}{named}", source, problem, bool(problem))
    folder = os.environ.get("CLOUDSDK_CONFIG") or "~/.config/gcloud"
    default = Path(folder).expanduser() / "application_default_credentials.json"
    if default.exists():
        who, problem = _identity_in(default)
        source = "gcloud auth application-default login"
        return Line("credentials", f"{who}{default}", source, problem, bool(problem))
    from hotstart.cache.google_machine import stop_looking, this_machine

    machine = this_machine()
    if machine is not None:
        who = machine.service_account or "no service account"
        said = "" if machine.service_account else "this machine has none: attach one to it"
        return Line("credentials", who, "this machine's metadata server", said, bool(said))
    stop_looking()
    said = "log in (gcloud auth application-default login) or set GOOGLE_APPLICATION_CREDENTIALS"
    return Line("credentials", "none: only what is public can be read", problem=said)


def _identity_in(path: Path) -> tuple[str, str]:
    """Whose credentials a file holds, `NAME in `, and what is wrong with it. Shows no secret."""
    try:
        found = json.loads(path.read_text())
        kind, who = found["type"], found.get("client_email") or found.get("account") or ""
        lacks = [name for name in _FIELDS.get(kind, ()) if not found.get(name)]
    except OSError as error:
        return "", f"{path} cannot be read: {error.strerror}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return "", f"{path} holds no Google credentials: download them again"
    if lacks:
        said = f"{path} lacks {', '.join(lacks)}, which credentials of type {kind} have"
        return "", f"{said}: download them again"
    return f"{who or str(kind).replace('_', ' ')} in ", ""


def signing_keys(asked: Asked) -> Iterator[Line]:
    """The ids of this host's signing keys, never a key."""
    file = asked.job.config.cache.signing_key_file
    source = "default"
    for variable in (KEYS_VARIABLE, KEY_FILE_VARIABLE):
        if variable in os.environ:
            source = f"environment {variable}"
            break
    else:
        source = asked.origin("cache.signing_key_file") if file else source
    try:
        ids = load_keyring(file).ids
    except Exception as error:  # SigningKeyError, which names no key
        yield Line("signing keys", "not usable", source, str(error), stops=True)
        return
    text = (
        f"{ids[0]} signs, {len(ids)} verify: {', '.join(ids)}"
        if ids
        else "none: nothing is signed (docs/trust.md)"
    )
    yield Line("signing keys", text, source)
