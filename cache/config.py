"""What a cache is set to."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Mode = Literal["read-write", "read-only"]
Compile = Literal["once", "every"]

DEFAULT_SIZE_BYTES = 50 << 30  # a directory without a bound grows for ever


@dataclass(frozen=True)
class CacheConfig:
    """Settings of one process's cache.

    location: a directory or `gs://bucket/prefix`.
    mode: `read-only` never writes to the location (the node directory is still filled).
    strict: cache trouble raises `CacheRequired` where it would be one warning.
    compile: `once` lets one process compile a program while the others wait for its entry;
        `every` is stock's way: each process looks and compiles for itself.
    min_compile_time_s: programs that compile faster than this are not stored.
    node_dir: a directory of this host in front of the location; None takes the default for a
        bucket, and none for a directory unless the launcher shares one that may not be written.
    max_size_bytes: bound of the node directory and of a directory location, from which the
        entries go that were used longest ago; None is no bound. Buckets have lifecycle rules.
    deadline_s: bound of one store operation, its retries included.
    flush_timeout_s: bound of a flush at exit.
    signing_key_file: a file of this host with the keys that sign what is written and verify what
        is read; what the host's environment says goes before it (`keyring.py`).
    require_warm: a program that is not in the cache raises `WarmRequired` and is not compiled,
        until `active.stepped` is called; programs that JAX never stores are left alone.
    """

    location: str
    mode: Mode = "read-write"
    strict: bool = False
    compile: Compile = "once"
    min_compile_time_s: float = 0.0
    node_dir: str | None = None
    max_size_bytes: int | None = DEFAULT_SIZE_BYTES
    deadline_s: float = 30.0
    flush_timeout_s: float = 60.0
    signing_key_file: str | None = None
    require_warm: bool = False


def hotstart_home() -> Path:
    """Where hotstart keeps what has no other place: `$HOTSTART_HOME`, else `~/.hotstart`."""
    return Path(os.environ.get("HOTSTART_HOME") or "~/.hotstart").expanduser().absolute()


def node_dir_of(config: CacheConfig, has_agent: bool = False) -> str | None:
    """The node directory in front of a location: one a bucket prefix, none for a directory.

    A gang's agent also needs one where the location is a directory that may not be written.
    """
    if config.node_dir is not None:
        return config.node_dir
    is_read_only = has_agent and config.mode == "read-only"
    if not config.location.startswith("gs://") and not is_read_only:
        return None
    digest = hashlib.sha256(config.location.encode()).hexdigest()[:16]
    return str(hotstart_home() / "node" / digest)
