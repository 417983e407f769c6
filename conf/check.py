"""Rules that a resolved job must meet: bounds, choices, sizes, names, files, directories."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hotstart.cache.keyring import KEY_FILE_VARIABLE, KEYS_VARIABLE
from hotstart.cache.store import normalize_location
from hotstart.conf.check_hosts import check_hosts
from hotstart.conf.entrypoint import entrypoint_problem
from hotstart.conf.errors import ConfigError, Origin, dotted, nearest, shown
from hotstart.conf.keys import Key, leaf_keys
from hotstart.conf.schema import JobConfig, parse_size

Origins = Mapping[tuple[str, ...], Origin]

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_MAX_COUNT = 1_000_000
_VARIABLE = re.compile(r"[^=\0]+")
_SECRET = re.compile(r"file:/[^\0]+|env:[^=\0]+")


def check_values(config: JobConfig, origins: Origins) -> None:
    """Check all that needs no look at the file system; raises `ConfigError`."""
    for key in leaf_keys():
        if "part_of" not in key.bounds:
            check_bounds(key, value_at(config, key), origins)
    _check_name(config.name, origins)
    check_hosts(config, origins)
    for path in (
        *(("env", v) for v in config.env),
        *(("secret_env", v) for v in config.secret_env),
    ):
        if not _VARIABLE.fullmatch(path[1]):
            raise _error(path, "not a name that an environment variable may have", origins)
        if path[1] in (KEY_FILE_VARIABLE, KEYS_VARIABLE):
            text = (
                "a signing key is a host's own, and no job brings it; set the variable where Ray "
                "is started on each host, or cache.signing_key_file to a path there"
            )
            raise _error(path, text, origins)
    _check_secrets(config, origins)
    _check_max_size(config.cache.max_size, origins)
    _check_program_given(config, origins)
    if config.resume.args and config.resume.if_exists is None:
        text = "give resume.if_exists too: the checkpoint's path, without which they are left out"
        raise _error(("resume", "args"), text, origins)
    if config.resume.if_exists is not None and not config.resume.args:
        text = "give resume.args too: what the program gets where that path exists"
        raise _error(("resume", "if_exists"), text, origins)
    _check_require_warm(config, origins)


def value_at(config: JobConfig, key: Key) -> Any:
    """The value that a job has for a key of the schema."""
    value: Any = config
    for name in key.path:
        value = getattr(value, name)
    return value


def _error(path: tuple[str, ...], text: str, origins: Origins) -> ConfigError:
    return origins[path].error(text, key=dotted(path))


def check_bounds(key: Key, value: Any, origins: Origins) -> None:
    """Check one key's choices, or its number's bounds; raises `ConfigError`."""
    choices = key.bounds.get("choices")
    if choices is not None and value is not None and value not in choices:
        near = nearest(value, choices)
        hint = f"; did you mean {near}?" if near else "."
        text = f"unknown value {shown(value)}{hint} Valid values: {', '.join(choices)}"
        raise _error(key.path, text, origins)
    if key.type not in (int, float) or value is None:
        return
    numbers = value if key.kind == "mapping" else {None: value}
    if key.kind == "list":
        for index, number in enumerate(value):
            _check_item(key, index, number, origins)
        return
    for item, number in numbers.items():
        bound, allowed = _bound(key.bounds)
        if key.type is int and number > _MAX_COUNT:
            raise _error(key.path, f"expected at most {_MAX_COUNT}, got {shown(number)}", origins)
        if not math.isfinite(number) or number < bound or (number == bound and not allowed):
            path = key.path if item is None else (*key.path, item)
            kind = "a whole number" if key.type is int else "a finite number"
            limit = f"of at least {bound}" if allowed else f"above {bound}"
            raise _error(path, f"expected {kind} {limit}, got {shown(number)}", origins)


def _check_item(key: Key, index: int, number: int, origins: Origins) -> None:
    least, most = key.bounds["at_least"], key.bounds["at_most"]
    if not least <= number <= most:
        text = f"expected a whole number from {least} to {most}, got {shown(number)}"
        raise origins[key.path].error(text, key=f"{dotted(key.path)}[{index}]")


def _bound(bounds: Mapping[str, Any]) -> tuple[float, bool]:
    return (bounds["at_least"], True) if "at_least" in bounds else (bounds["above"], False)


def _check_name(name: str, origins: Origins) -> None:
    if not _NAME.fullmatch(name) or name in (".", ".."):
        text = f"{shown(name)} cannot name a folder; use 1 to 64 of A-Z, a-z, 0-9, '.', '_', '-'"
        raise _error(("name",), text, origins)


def _check_secrets(config: JobConfig, origins: Origins) -> None:
    for variable, reference in config.secret_env.items():
        path = ("secret_env", variable)
        if variable in config.env:
            raise _error(path, f"env has {variable} too; keep one of them", origins)
        if not _SECRET.fullmatch(reference):  # not shown: it may be the secret itself
            text = (
                "expected file:/absolute/path or env:VARIABLE, of each host; a secret itself "
                "would be kept in the record"
            )
            raise _error(path, text, origins)


def _check_max_size(max_size: str | None, origins: Origins) -> None:
    if max_size is None:
        return
    try:
        size_bytes = parse_size(max_size)
    except ValueError:
        size_bytes = 0
    if size_bytes < 1:
        text = f"expected a size like 50GiB, 500MB or a number of bytes, got {shown(max_size)}"
        raise _error(("cache", "max_size"), text, origins)


def _check_program_given(config: JobConfig, origins: Origins) -> None:
    entrypoint, script = origins[("entrypoint",)], origins[("script",)]
    if config.entrypoint is not None and config.script is not None:
        raise script.error(
            f"entrypoint ({entrypoint.label}) is given too; keep one of them", key="script"
        )
    if config.entrypoint is None and config.script is None:
        text = "nothing to run; give script (a path) or entrypoint (module:function)"
        raise origins[()].error(text)


def _check_require_warm(config: JobConfig, origins: Origins) -> None:
    if not config.require_warm:
        return
    if config.cache.mode == "off":
        text = "needs a cache, and cache.mode is off; leave one of them out"
        raise _error(("require_warm",), text, origins)
    if config.cache.min_compile_time_s > 0:
        text = (
            "needs every program in the cache, and cache.min_compile_time_s="
            f"{config.cache.min_compile_time_s:g} keeps some out of it; set that to 0"
        )
        raise _error(("require_warm",), text, origins)


_ON_HOSTS = {
    ("cache", "node_dir"): "a directory of the worker's host",
    ("cache", "signing_key_file"): "a file of each host",
    ("resume", "if_exists"): "a path of each host",
}


def host_path_problem(path: tuple[str, ...], value: str) -> str:
    """What is wrong with a path that each host looks up for itself; "" where nothing is."""
    if path in _ON_HOSTS and ("://" in value or not value.strip()):
        return f"expected {_ON_HOSTS[path]}, got {shown(value)}"
    return ""


def resolve_paths(config: JobConfig, origins: Origins, folder: Path) -> JobConfig:
    """The job with absolute paths, each checked as far as this host can; raises `ConfigError`.

    A relative path in the YAML file starts at the file's `folder`, one from the environment or
    the command line at the current directory. Looks at the file system, writes nothing, sends
    nothing over a network.
    """

    def absolute(path: tuple[str, ...], value: str) -> Path:
        base = folder if origins[path].file is not None else Path.cwd()
        try:
            return (base / Path(value).expanduser()).absolute()
        except (OSError, RuntimeError) as error:  # a home directory that nobody has
            raise _error(path, f"{shown(value)} is not a usable path", origins) from error

    def location(path: tuple[str, ...], value: str) -> str:
        try:
            remote = "://" in value or not value.strip()
            url = normalize_location(value if remote else str(absolute(path, value.strip())))
        except (ValueError, OSError) as error:
            raise _error(path, str(error), origins) from error
        if value.startswith("gs:") and not remote:
            raise _error(path, f"{shown(value)} is not a URL; write gs://bucket/prefix", origins)
        return url

    def on_host(path: tuple[str, ...], value: str | None) -> str | None:
        if value is None:
            return None
        if problem := host_path_problem(path, value):
            raise _error(path, problem, origins)
        return str(absolute(path, value))

    run_dir = location(("run_dir",), config.run_dir or "")
    _check_directory(("run_dir",), run_dir, origins, write=True)
    cache = config.cache
    where = location(("cache", "location"), cache.location or "")
    if cache.mode != "off":
        write = cache.mode == "read-write"
        _check_directory(("cache", "location"), where, origins, write=write)
    node_dir = on_host(("cache", "node_dir"), cache.node_dir)
    key_file = on_host(("cache", "signing_key_file"), cache.signing_key_file)
    checkpoint = on_host(("resume", "if_exists"), config.resume.if_exists)
    script, working_dir = config.script, config.working_dir
    if working_dir is not None:
        directory = absolute(("working_dir",), working_dir)
        try:
            there = directory.is_dir()
        except OSError as error:
            text = f"{shown(working_dir)}: {error.strerror}"
            raise _error(("working_dir",), text, origins) from error
        if not there:
            raise _error(("working_dir",), f"{directory} is not a directory", origins)
        working_dir = str(directory)
    if script is not None:
        script = str(_script(absolute(("script",), script), origins))
    if config.entrypoint is not None:
        working_dir = working_dir or str(folder)
        problem = entrypoint_problem(config.entrypoint, Path(working_dir))
        if problem:
            raise _error(("entrypoint",), problem, origins)
    return dataclasses.replace(
        config,
        script=script,
        resume=dataclasses.replace(config.resume, if_exists=checkpoint),
        working_dir=working_dir,
        run_dir=run_dir,
        cache=dataclasses.replace(
            cache, location=where, node_dir=node_dir, signing_key_file=key_file
        ),
    )


def _script(script: Path, origins: Origins) -> Path:
    try:
        if script.is_file():
            return script
        state = "is a directory, not a script" if script.is_dir() else "does not exist"
        siblings = [path.name for path in script.parent.glob("*.py")]
    except OSError as error:
        text = f"{shown(str(script))}: {error.strerror}"
        raise _error(("script",), text, origins) from error
    near = nearest(script.name, siblings)
    hint = f"; did you mean {near}?" if near else ""
    raise _error(("script",), f"{script} {state}{hint}", origins)


def _check_directory(
    path: tuple[str, ...], location: str, origins: Origins, *, write: bool
) -> None:
    """Check that a local directory is there or could be made; the store finds out the rest."""
    if "://" in location:
        return
    try:
        directory = Path(location)
        existing = next(p for p in (directory, *directory.parents) if p.exists())
        if not existing.is_dir():
            raise _error(path, f"{existing} is not a directory", origins)
    except OSError as error:
        raise _error(path, f"{shown(location)}: {error.strerror}", origins) from error
    needed = os.R_OK | os.X_OK | (os.W_OK if write else 0)
    if existing == directory and not os.access(existing, needed):
        verb = "written" if write else "read"
        raise _error(path, f"{directory} cannot be {verb}: permission denied", origins)
    if existing != directory and write and not os.access(existing, os.W_OK | os.X_OK):
        text = f"{directory} cannot be made: no permission to write to {existing}"
        raise _error(path, text, origins)
