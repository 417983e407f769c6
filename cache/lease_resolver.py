"""The resolver of processes without the launcher: leases in the store (leases.py)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hotstart.cache.leases import StoreLeases
from hotstart.cache.resolve import Answer, Compile, EachForItself, Failed, InNode, InStore


class LeaseResolver(EachForItself):
    """Coordination by leases in the store alone: for processes without the launcher.

    Uploads stay with the process, and probes take no lease.
    """

    def __init__(self, leases: StoreLeases, *, on_wait: Callable[[], None] = lambda: None) -> None:
        """`on_wait` is called once for each request that waits for another process."""
        self._leases = leases
        self._on_wait = on_wait

    def resolve(self, key: str, failed: Sequence[Failed] = ()) -> Answer:
        """The node directory and the store; then the lease, and with it compiling.

        Both are named once more where the entry may be there by now: after a wait, or because a
        holder published between our read and our claim. Whoever finds nothing then compiles
        without a lease. Blocks as `StoreLeases.await_or_claim`, once a request; the module's
        docstring names the bounds. `failed` must hold an answer as often as it was given.
        """
        nodes, stores = failed.count(InNode()), failed.count(InStore())
        if nodes > stores:
            return InStore()
        if nodes == 0:
            return InNode()
        if nodes > 1:
            return Compile(False)
        verdict = self._leases.await_or_claim(key, on_wait=self._on_wait)
        if verdict == "mine":
            if not self._leases.is_published(key):
                return Compile(True)
            self._leases.release(key)
        return Compile(False) if verdict == "unusable" else InNode()

    def publish(self, key: str, digest: bytes, size_bytes: int, *, in_node: bool) -> bytes:
        """Ends the lease once the entry is in the store: others may be on other hosts."""
        if not in_node:
            self._leases.release(key)
        return digest

    def release(self, key: str) -> None:
        """Lets go of the lease."""
        self._leases.release(key)

    def close(self) -> None:
        """See `StoreLeases.close`."""
        self._leases.close()
