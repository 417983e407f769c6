"""What live runs need, looked at again while a collector works: runs begin, restart and go on."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor

from hotstart.cache.signing import Keyring
from hotstart.cache.store import Store
from hotstart.launcher.errors import UsageError
from hotstart.launcher.facts import RunState, state_of
from hotstart.launcher.identity import OwnerIdentity
from hotstart.launcher.manifest_store import ManifestStore
from hotstart.launcher.record import PARALLEL_READS, RunRecord
from hotstart.launcher.run_needs import ENDED, RunNeeds, needs_of_record, records_in


class LiveNeeds:
    """The runs of some run directories, as often as one looks."""

    def __init__(
        self,
        run_dirs: Iterable[str],
        keyring: Keyring,
        cache: Store,
        ended: Collection[str] = (),
    ) -> None:
        """`cache` is a cache's store, sealed; `ended` are runs that are taken as ended."""
        self._run_dirs = list(run_dirs)
        self._keyring = keyring
        self._cache = cache
        self._ended = frozenset(ended)

    def now(self) -> list[RunNeeds]:
        """What runs need that are live now.

        One listing a run directory; for each run some three requests, for one that is live six and
        one a manifest. That a run had ended when it was read first says nothing: a restart may ask
        for other programs. Blocks; raises `StoreError`, and `UsageError` where what a live run
        needs can't be told.
        """
        records = [one for where in self._run_dirs for one in records_in(where, self._keyring)]
        observer = OwnerIdentity.of_this_process()
        manifests = ManifestStore(self._cache)

        def look(record: RunRecord) -> RunNeeds | None:
            if record.name in self._ended:
                return None
            state: RunState = state_of(record.owner(), record.end(), observer)
            if state in ENDED:
                return None
            return needs_of_record(record, state, manifests, self._cache.url)

        with ThreadPoolExecutor(PARALLEL_READS) as pool:
            live = [needs for needs in pool.map(look, records) if needs is not None]
        return check_told(live)


def check_told(needs: list[RunNeeds]) -> list[RunNeeds]:
    """The same; raises `UsageError` where what a live run needs can't be told."""
    for one in needs:
        if one.is_live and (one.unread or one.fingerprint is None):
            raise UsageError(
                f"run {one.run} in {one.run_dir} has not ended, and what it needs can't be read, "
                "or is not signed with a key of this host; set the key of its launch, or "
                f"give --ended {one.run} if it is over"
            )
    return needs
