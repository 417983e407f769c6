"""The cache in the processes that a process with the cache spawns, in theirs, and so on.

A program may compile elsewhere than in its main process: actors that play, evaluators, tuning
trials. `offer` leaves two things in this process's environment, which they inherit:

    HOTSTART_CHILD_CACHE   the cache's settings, as JSON
    PYTHONPATH             with a folder in front that holds a sitecustomize.py alone

Python runs that file as it starts, before anything of the program's. It waits for `import jax`, and
then puts the cache in place (`enable_here`); it lets a sitecustomize of the user's own run after
it. Processes that import no JAX, that get an environment without these two, or that start with -S,
-E or -I, are as they would be. A forked process has its parent's cache and needs none of this.

A child resolves keys alone, by the leases in the location: it has no agent. It never raises for the
cache's sake, not even in strict mode, and its counters are in no report.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import MutableMapping
from pathlib import Path

from hotstart.cache.config import CacheConfig
from hotstart.cache.errors import SigningKeyError
from hotstart.cache.keyring import load_keyring
from hotstart.cache.signing import Keyring

logger = logging.getLogger(__name__)

SETTINGS_VARIABLE = "HOTSTART_CHILD_CACHE"
_FOLDER = str(Path(__file__).absolute().parent / "in_children")


def offer(
    config: CacheConfig, keyring: Keyring, environ: MutableMapping[str, str] | None = None
) -> bool:
    """Have what this process spawns from now on use the cache of `config`.

    False, and nothing is changed, where a child could not have the signing keys that this process
    has: it would run what nobody has signed. That is so for keys in a host's environment, which
    workers are not given; those in a file are read by the child itself.
    """
    environ = os.environ if environ is None else environ
    try:
        keys = load_keyring(config.signing_key_file, environ).keys
    except SigningKeyError:
        keys = ()
    if keys != keyring.keys:
        logger.info("child processes go without the cache: they can't have its signing keys")
        return False
    settings = dataclasses.asdict(dataclasses.replace(config, strict=False, require_warm=False))
    environ[SETTINGS_VARIABLE] = json.dumps(settings)
    environ["PYTHONPATH"] = os.pathsep.join([_FOLDER, *_others(environ)])
    return True


def withdraw(environ: MutableMapping[str, str]) -> None:
    """Take back what `offer` left, wherever it was left."""
    environ.pop(SETTINGS_VARIABLE, None)
    if _FOLDER not in environ.get("PYTHONPATH", ""):
        return
    others = _others(environ)
    if others:
        environ["PYTHONPATH"] = os.pathsep.join(others)
    else:
        del environ["PYTHONPATH"]


def enable_here() -> None:
    """In a child, right after `import jax`: enable what the environment offers, if anything."""
    text = os.environ.get(SETTINGS_VARIABLE)
    if text:
        from hotstart.cache import active

        active.enable(CacheConfig(**json.loads(text)))


def _others(environ: MutableMapping[str, str]) -> list[str]:
    path = environ.get("PYTHONPATH")
    return [p for p in path.split(os.pathsep) if p != _FOLDER] if path else []
