"""What a host wants to know of a key, and what it can find out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from hotstart.launcher.claims import STORE


@dataclass(frozen=True)
class Wanted:
    """One key, and what is known of it.

    absent: it is not in the store. replaces: the digest of an entry that could not be used here.
    distrusted: JAX can't load that; it is to be replaced, and not to be offered again.
    node_failed, store_failed: a worker could not read it in the node directory, from the store.
    """

    key: str
    may_compile: bool
    absent: bool = False
    replaces: bytes | None = None
    distrusted: bool = False
    node_failed: bool = False
    store_failed: bool = False

    def refuses(self, digest: bytes) -> bool:
        """Whether an entry is known to be of no use."""
        return digest == self.useless

    @property
    def useless(self) -> bytes | None:
        """The digest of an entry that is to be replaced wherever it is."""
        return self.replaces if self.distrusted else None


@dataclass(frozen=True)
class Here:
    """The entry can be read on this host: in the node directory, or else in the store."""

    digest: bytes
    size_bytes: int
    in_node: bool
    in_store: bool


@dataclass(frozen=True)
class MayCompile:
    """Nobody has it, and this host has the lease; `absent` is known to the store, not assumed."""

    absent: bool
    store_lease: bool = False


@dataclass(frozen=True)
class Alone:
    """It was compiled elsewhere and not stored: compile without a lease."""


@dataclass(frozen=True)
class Nothing:
    """Only where nobody would compile: there is nothing to read, for certain if `absent`."""

    absent: bool


@dataclass(frozen=True)
class Unreadable:
    """Strict mode: the store can't be read."""

    error: str


Resolved = Here | MayCompile | Alone | Nothing | Unreadable


@dataclass(frozen=True)
class Task:
    """One key that is being resolved in one term; see `Upstream.resolve` for `then`.

    `failed` are hosts, or the store, where `failed_digest` could not be read.
    """

    wanted: Wanted
    then: Callable[[Resolved], bool]
    term: int
    failed: frozenset[int] = frozenset()
    failed_digest: bytes | None = None

    @property
    def key(self) -> str:
        """The key that is wanted."""
        return self.wanted.key

    @property
    def store_is_lost(self) -> bool:
        """Whether the store could not be asked, so that nothing is known of it."""
        return STORE in self.failed and self.failed_digest is None

    def without_store(self) -> Task:
        """The same after failing to ask the store."""
        return replace(self, failed=self.failed | {STORE})

    def without(self, sources: set[int], digest: bytes) -> Task:
        """The same after failing to read `digest` there."""
        known = self.failed if self.failed_digest == digest else frozenset()
        return replace(self, failed=known | sources, failed_digest=digest)
