"""Where a host reads an entry that it does not have: another host, the store, another cluster."""

from __future__ import annotations

import logging
from collections.abc import Callable

from hotstart.cache.errors import EntryError, StoreError
from hotstart.cache.leases import StoreLeases
from hotstart.cache.signing import tally
from hotstart.launcher.host_store import HostStore
from hotstart.launcher.resolved import Here, Wanted

logger = logging.getLogger(__name__)

Peers = Callable[[int, str, bytes], bytes | None]


class Sources:
    """All calls block, for a store's deadline at most where nothing else is said."""

    def __init__(self, store: HostStore, peers: Peers, leases: StoreLeases | None) -> None:
        self._store = store
        self._peers = peers
        self._leases = leases

    def fetch(self, host: int, key: str, digest: bytes) -> bytes | None:
        """The verified entry from another host; None, and counted, where that fails."""
        try:
            data = self._peers(host, key, digest)
            if data is None:
                raise LookupError("it is not there any more")
            if self._store.decode(key, data).digest != digest:
                raise LookupError("it is another entry")
        except Exception as error:  # whatever Ray raises for a lost peer or object
            self._store.count(**(tally(error) if isinstance(error, EntryError) else {"errors": 1}))
            logger.info("the entry of %s did not come from host %d: %s", key, host, error)
            return None
        self._store.count(from_peers=1, from_peers_bytes=len(data))
        return data

    def read_store(self, wanted: Wanted) -> Here | None:
        """The entry from the store, left in the node directory where that works.

        Raises `StoreError`.
        """
        key = wanted.key
        if self._store.far is None:
            digest = self._store.digest_here(key)
            if digest is None or wanted.refuses(digest):
                return None
            return Here(digest, 0, in_node=True, in_store=True)
        read = self._store.read_far(key, wanted.refuses)
        if read is None:
            return None
        entry, data = read
        kept = self._store.keep(key, data)
        if not kept and wanted.store_failed:
            return None
        return Here(entry.digest, len(data), in_node=kept, in_store=True)

    def read_after_clusters(
        self, wanted: Wanted, is_over: Callable[[], bool]
    ) -> tuple[Here | None, bool]:
        """The entry of who has the lease between clusters, and whether that lease is ours now.

        Blocks as `StoreLeases.await_or_claim`, until `is_over`. Raises `StoreError`, without a
        lease then.
        """
        leases, key = self._leases, wanted.key
        if leases is None:
            return None, False
        verdict = leases.await_or_claim(key, is_over)
        mine = verdict == "mine"
        if verdict == "unusable" or is_over() or (mine and not leases.is_published(key)):
            return None, mine
        try:
            return self.read_store(wanted), mine
        except StoreError:
            if mine:
                leases.release(key)
            raise
