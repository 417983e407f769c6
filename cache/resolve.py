"""Who resolves a key: the protocol between a process's cache and those that it shares it with.

A resolver moves no bytes. It says where an entry is to be read, or that this process is to
compile it, and is told what became of that:

    get(key)  ->  resolve(key)                   -> InNode(digest)  in the node directory
                     ^                           -> InStore         in the store, perhaps
                     |  resolve(key, failed) <--+   what could not be read is asked again,
                     |                              what JAX could not load is named
                                                 -> Compile(leased) nobody has it
    put(key)  ->  publish(key, digest, ...)      it is there now; who waited reads it
    scope end ->  release(key)                   nothing comes: not stored, or compiling raised

`resolve` blocks while somebody else that is alive resolves the key, and no longer. Leases save
work; that what is stored is right is seen to by create-only names and verified digests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class InNode:
    """The entry is in the node directory; `digest` is the one to accept, None is any."""

    digest: bytes | None = None


@dataclass(frozen=True)
class InStore:
    """The entry may be in the store; this process reads it itself. `digest` as in `InNode`."""

    digest: bytes | None = None


@dataclass(frozen=True)
class Compile:
    """Nobody has the entry. With a lease, others wait until this process publishes or releases.

    Without one nobody waits and others may compile the same; a multi-process executable must
    then not be used before `publish` has said that it is the gang's.
    """

    leased: bool


Answer = InNode | InStore | Compile


@dataclass(frozen=True)
class Unloadable:
    """Not an answer, but among the `failed`: it was read well, and JAX can't load it."""

    digest: bytes


Failed = Answer | Unloadable


class Resolver(Protocol):
    """All calls may block and are safe among threads. None raises but for `CacheRequired`."""

    @property
    def has_agent(self) -> bool:
        """Whether an agent stands behind it.

        It brings what was published from the node directory to the store, and what `publish`
        returns decides which executable the gang runs.
        """
        ...

    def resolve(self, key: str, failed: Sequence[Failed] = ()) -> Answer:
        """Where to read the entry of `key`, or that it is to be compiled here.

        `failed` are the answers of this request that led to nothing, and what is to be replaced
        because JAX can't load it. What could not be read here stays: others may well read it.
        Blocks while a live holder resolves the key.
        """
        ...

    def probe(self, key: str, failed: Sequence[Failed] = ()) -> Answer:
        """As `resolve`, but takes no lease and waits for nobody; `Compile(False)` is "not there".

        JAX looks for one key and then compiles another where profile-guided optimization is on.
        """
        ...

    def ahead(self, key: str, failed: Sequence[Failed] = ()) -> Answer:
        """As `probe`, but waits for who reads the entry just now."""
        ...

    def publish(self, key: str, digest: bytes, size_bytes: int, *, in_node: bool) -> bytes:
        """Say that the entry is in the node directory, or else in the store; ends the lease.

        Returns the digest that counts: another's where the gang has one already.
        """
        ...

    def release(self, key: str) -> None:
        """Say that nothing comes: the program was not stored, or compiling it raised.

        Without effect where no lease is held.
        """
        ...

    def flush(self, timeout_s: float) -> bool:
        """Block until all that was published from the node directory is in the store."""
        ...

    def close(self) -> None:
        """Let go of all leases, for the process ends."""
        ...


class EachForItself:
    """No coordination, as in stock JAX: look into the store, else compile."""

    has_agent = False

    def resolve(self, key: str, failed: Sequence[Failed] = ()) -> Answer:
        """The node directory, the store, then compiling; never blocks."""
        return next(a for a in (InNode(), InStore(), Compile(False)) if a not in failed)

    def probe(self, key: str, failed: Sequence[Failed] = ()) -> Answer:
        """As `resolve`."""
        return EachForItself.resolve(self, key, failed)

    ahead = probe

    def publish(self, key: str, digest: bytes, size_bytes: int, *, in_node: bool) -> bytes:
        """Nobody is told."""
        return digest

    def release(self, key: str) -> None:
        """Nobody waits."""

    def flush(self, timeout_s: float) -> bool:
        """Nothing is left to others."""
        return True

    def close(self) -> None:
        """Nothing is held."""
