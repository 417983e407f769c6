"""Which cache a command of `hotstart cache` is about, and the keys with which it is read."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hotstart.launcher.foreground import runs_location

if TYPE_CHECKING:
    from hotstart.cache.signing import Seal
    from hotstart.cache.store import Store

_VARIABLES = ("HOTSTART_JOB__CACHE__LOCATION", "JAX_COMPILATION_CACHE_DIR")
_DEFAULT = "[default: as `launch` has it: $JAX_COMPILATION_CACHE_DIR, else ~/.hotstart/cache]"

location_argument = click.argument("location", metavar="[LOCATION]", required=False)
location_option = click.option(
    "--location", metavar="LOCATION", help=f"A directory or gs://bucket/prefix {_DEFAULT}."
)
signing_key_file = click.option(
    "--signing-key-file",
    metavar="PATH",
    help="Keys to check signatures with, where this host's environment names none.",
)
run_dirs = click.option(
    "--run-dir",
    "run_dirs",
    metavar="DIR",
    multiple=True,
    help="Where runs are kept; may be given several times [default: $HOTSTART_HOME/runs].",
)
Command = Callable[..., Any]


def default_location(environ: Mapping[str, str] | None = None) -> str:
    """The location that `hotstart launch` takes where a job file names none."""
    from hotstart.cache.config import hotstart_home

    environ = os.environ if environ is None else environ
    named = next((environ[name] for name in _VARIABLES if environ.get(name)), None)
    return named or str(hotstart_home() / "cache")


def open_location(
    location: str | None, *, may_be_new: bool = False, deadline_s: float = 30.0
) -> Store:
    """The store of a cache. Raises `InvalidLocation`, and `StoreMissing` for no such directory.

    Whether a bucket is there, the first request tells; `deadline_s` bounds each one.
    """
    from hotstart.cache.errors import StoreMissing
    from hotstart.cache.store import open_store

    where = default_location() if location is None else location
    store = open_store(where, deadline_s=deadline_s)
    if not store.url.startswith("gs://") and not may_be_new and not Path(store.url).is_dir():
        raise StoreMissing(f"{store.url}: there is no such directory")
    return store


def open_seal(store: Store, signing_key_file: str | None) -> Seal:
    """This host's keys for a store: its environment's, else the file's. `SigningKeyError`."""
    from hotstart.cache.keyring import load_keyring
    from hotstart.cache.signing import Seal

    path = None if signing_key_file is None else str(Path(signing_key_file).expanduser())
    return Seal(load_keyring(path), store.url)


def run_locations(run_dirs: tuple[str, ...]) -> list[str]:
    """The run directories that were named, or the default one, which need not be there.

    Raises `UsageError` for a directory that was named and is not there: its runs would protect
    nothing. Whether a bucket is there, the first request tells.
    """
    from hotstart.launcher.errors import UsageError

    found = [runs_location(one) for one in run_dirs or (None,)]
    for where in found if run_dirs else ():
        if not where.startswith("gs://") and not Path(where).is_dir():
            raise UsageError(f"--run-dir: {where}: there is no such directory")
    return found
