"""A store: named immutable objects in a directory or a bucket.

Five operations are all that the cache and the run record need. `create` never overwrites,
so the first writer of a name wins and every other one learns that it lost; `delete` takes
the generation that the caller saw, so it never removes a successor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from hotstart.cache.errors import InvalidLocation

Count = Callable[..., None]  # amounts by name, as `Counters.add` takes them


def count_nothing(**amounts: Any) -> None:
    """For who doesn't want to know."""


@dataclass(frozen=True)
class ObjectStat:
    """What a store knows of one object without reading it.

    `generation` changes whenever the name is created anew and means nothing else.
    `modified_s` is the store's own wall clock in seconds since the epoch: good for order and
    age within one store, never to be compared with a host's clock.
    """

    name: str
    size_bytes: int
    generation: int
    modified_s: float


class Store(Protocol):
    """Named immutable objects. All calls block; all may raise `StoreError`.

    Names are relative POSIX paths of 1 to 1024 bytes without empty, `.` or `..` segments.
    Implementations are safe to share among threads and among processes.
    """

    @property
    def url(self) -> str:
        """Where the store is, as a person would write it (`gs://bucket/prefix`, `/a/path`)."""
        ...

    def get(self, name: str) -> bytes | None:
        """The object's bytes, or None where there is none. One request."""
        ...

    def create(self, name: str, data: bytes) -> bool:
        """Create the object; True if this call made it, False if another's is already there.

        Atomic: readers see nothing or all of it. A lost answer to one's own write counts as
        True. One request where nothing goes wrong.
        """
        ...

    def delete(self, name: str, generation: int) -> bool:
        """Delete the object if it is still of this generation; False if not there or newer."""
        ...

    def list(self, prefix: str) -> Iterator[ObjectStat]:
        """All objects whose name starts with `prefix`, in order of name."""
        ...

    def stat(self, name: str) -> ObjectStat | None:
        """What is known of the object, or None where there is none."""
        ...


def check_name(name: str) -> str:
    """Return `name` if it is a valid object name, else raise ValueError."""
    parts = name.split("/")
    if not 1 <= len(name.encode()) <= 1024 or any(p in ("", ".", "..") for p in parts):
        raise ValueError(f"invalid object name {name!r}")
    return name


def normalize_location(location: str) -> str:
    """Check a location and give it its one spelling: `gs://bucket[/prefix]` or an absolute path.

    Raises `InvalidLocation` for another scheme, a `file://` URL of a host, a user without a home,
    a missing bucket or an empty string.
    """
    location = location.strip()
    if not location:
        raise InvalidLocation("the location is empty; give a directory or gs://bucket/prefix")
    scheme, separator, _ = location.partition("://")
    if not separator:
        try:
            return str(Path(location).expanduser().absolute())
        except RuntimeError as error:
            raise InvalidLocation(
                f"{location}: the home directory of this user is unknown; give an absolute path"
            ) from error
    if scheme == "file":
        host, slash, path = location[len("file://") :].partition("/")
        if host not in ("", "localhost") or not slash:
            raise InvalidLocation(
                f"{location}: a file:// URL of another host cannot be opened; "
                f"give file:///a/path or a directory"
            )
        return str(Path("/" + path.lstrip("/")).absolute())
    if scheme != "gs":
        raise InvalidLocation(
            f"{location}: unknown scheme {scheme}://; give a directory or gs://bucket/prefix"
        )
    bucket, _, prefix = location[len("gs://") :].partition("/")
    if not bucket:
        raise InvalidLocation(f"{location}: no bucket name; give gs://bucket/prefix")
    prefix = "/".join(part for part in prefix.split("/") if part)
    return f"gs://{bucket}/{prefix}" if prefix else f"gs://{bucket}"


def open_store(
    location: str,
    *,
    max_size_bytes: int | None = None,
    deadline_s: float = 30.0,
    count: Count = count_nothing,
    guarded: bool = False,
) -> Store:
    """The store at a location; does not touch the directory or the network yet.

    `max_size_bytes` bounds a directory by evicting what was used longest ago; buckets have
    lifecycle rules instead. `deadline_s` bounds each operation on a bucket, its retries
    included; `count` is told of `retries`, the seconds `retry_s` lost by them, and `outages`.
    With `guarded`, a bucket that is out is left alone for a while: see `GuardedStore`. Raises
    `InvalidLocation`.
    """
    url = normalize_location(location)
    if url.startswith("gs://"):
        from hotstart.cache.gcs import GcsStore  # gcsfs costs 0.4 s or more to import

        bucket = GcsStore(url, deadline_s=deadline_s, count=count)
        if not guarded:
            return bucket
        from hotstart.cache.guarded import GuardedStore

        return GuardedStore(bucket, count=count)
    from hotstart.cache.directory import DirectoryStore

    return DirectoryStore(url, max_size_bytes=max_size_bytes)
