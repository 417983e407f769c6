"""Whether a job's cache location can be written, and read: asked before user code runs."""

from __future__ import annotations

from hotstart.cache.config import CacheConfig
from hotstart.cache.errors import StoreError
from hotstart.cache.store import open_store

PROBE = "hotstart-probe"
_MOST_S = 10.0


def check_readable(cache: CacheConfig) -> str | None:
    """What is wrong with a location that is to be read from this host, or None.

    One read of the name that `check_store` creates, there or not. Blocks for at most 10 s,
    whatever the cache's own deadline is: in strict mode the answer decides about the run.
    """
    try:
        open_store(cache.location, deadline_s=_MOST_S).get(PROBE)
    except StoreError as error:
        return str(error)
    return None


def check_store(cache: CacheConfig, source: str) -> str | None:
    """What is wrong with a location that is to be written, or None.

    One create of a fixed name, which needs the right to create and nothing else. Blocks for at
    most 10 s; a read-only cache is not looked at. `source` is who set the location.
    """
    if cache.mode != "read-write":
        return None
    try:
        open_store(cache.location, deadline_s=min(_MOST_S, cache.deadline_s)).create(PROBE, b"")
    except StoreError as error:
        return f"{source}: cache.location: {error}"
    return None
