"""Whether lifecycle rules delete what a run lives on, said in one line when it is started."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from hotstart.cache.bucket import facts_from
from hotstart.cache.errors import StoreError
from hotstart.cache.lifecycle import (
    DAY_S,
    Layout,
    Rule,
    days_of,
    deletions,
    shortest_age,
    shown_days,
)

logger = logging.getLogger(__name__)

_MOST_S = 10.0


@dataclass(frozen=True)
class Lived:
    """What a run has in stores: its cache's location, its own folder, and its age in seconds.

    Either is looked at where it is in a bucket.
    """

    cache: str
    run: str
    age_s: float


def lifetime_warnings(lived: Lived) -> list[str]:
    """A line for each bucket whose rules cut a run short; one request for each bucket.

    Blocks for at most 10 s for each. What can't be read says nothing: most identities may use a
    bucket and not look at its settings.
    """
    found = []
    for bucket in sorted({_bucket(url) for url in (lived.cache, lived.run)} - {""}):
        from hotstart.cache.gcs_bucket import GcsBucket

        try:
            resource = GcsBucket(bucket, deadline_s=_MOST_S).read()
        except StoreError as error:
            logger.debug("lifecycle rules of gs://%s: %s", bucket, error)
            continue
        warning = warning_of(bucket, facts_from(resource).rules, lived)
        if warning is not None:
            found.append(warning)
    return found


def warning_of(bucket: str, rules: Sequence[Rule], lived: Lived) -> str | None:
    """What these rules of a bucket do to a run, and what mends it; None where that is nothing.

    A rule of the runs' own is somebody's will, and a matter only once the run is half as old as it
    allows; one for more than runs is taken for a rule that was meant for entries.
    """
    cache = _prefix(lived.cache, bucket)
    run = _prefix(lived.run, bucket)
    said = []
    if run is not None:
        runs = f"{run.rpartition('/')[0]}/" if "/" in run else ""
        ages = [
            deletion.age_days
            for deletion in deletions(rules)
            if deletion.catches(f"{run}/")
            and (
                any(not prefix.startswith(runs) or not runs for prefix in deletion.prefixes)
                or lived.age_s * 2 > deletion.age_days * DAY_S
            )
        ]
        if ages:
            said.append(
                f"deletes the run's record, checkpoints and logs {shown_days(min(ages))} after "
                "they were written, and without its record it can't be restarted"
            )
    if cache is not None:
        age_days = shortest_age(rules, Layout.of_cache(cache).entries)
        if age_days is not None and age_days * DAY_S < lived.age_s:
            said.append(
                f"deletes entries after {shown_days(age_days)}, and the run is "
                f"{shown_days(int(lived.age_s // DAY_S))} old: what is gone is compiled again"
            )
    if not said:
        return None
    where = f"gs://{bucket}" + (f"/{cache}" if cache else " --prefix ''" if cache == "" else "")
    length = f"{days_of(lived.age_s) + 1}d" if lived.age_s >= DAY_S else "10d"
    return (
        f"a lifecycle rule of gs://{bucket} {'; and one '.join(said)}; see hotstart bucket check "
        f"{where} --run-length {length}"
    )


def _bucket(url: str) -> str:
    return url.removeprefix("gs://").partition("/")[0] if url.startswith("gs://") else ""


def _prefix(url: str, bucket: str) -> str | None:
    """The bare prefix of a location in this bucket; None for one elsewhere."""
    if _bucket(url) != bucket:
        return None
    return url.removeprefix("gs://").partition("/")[2]
