"""Wait for room on the cluster and put an agent on each host of a gang.

Ray's scheduler decides what there is room for: a placement group is asked for, and granted or not.
Where a job takes a range of workers, what the cluster says is free only tells which size to ask
for next (`sizing.py`).
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass

from hotstart.conf.schema import JobConfig
from hotstart.launcher.cluster_hosts import look_at_hosts
from hotstart.launcher.errors import HostLost, PlacementTimeout
from hotstart.launcher.gang import Gang
from hotstart.launcher.placement import (
    GangSize,
    describe_need,
    place,
    room_beside,
    size_of,
    sizes_of,
    workers_that_fit,
)
from hotstart.launcher.plan import AttemptPlan
from hotstart.launcher.reservation import Reservation, reserve
from hotstart.launcher.sizing import FALL_S, Sizing, Waiting

_POLL_S = 0.2


@dataclass(frozen=True)
class Wishes:
    """What is asked for, and who is told. `timeout_s` is for one placement, all tries together.

    `waits` is told what the gang needs and how much longer, in seconds, is waited for it.
    """

    config: JobConfig
    timeout_s: float
    is_interrupted: Callable[[], bool]
    tell: Callable[[str], None]
    waits: Callable[[str, float], None]


def place_gang(wishes: Wishes, plan: Callable[[GangSize], AttemptPlan]) -> Gang | None:
    """Wait for the hosts and put an agent on each; None if interrupted meanwhile.

    The agents start processes for their first attempt, the plan of which doesn't say the
    coordinator yet. A host that is lost before its agent has answered is done without: the gang
    is placed anew. Raises `PlacementTimeout`, or `HostFailed`.
    """
    started = time.monotonic()
    while True:
        reservation = _reserved(wishes, started)
        if reservation is None:
            return None
        size = size_of(wishes.config, reservation.shares)
        gang = Gang(
            reservation, size, functools.partial(_extra_workers, wishes.config, reservation)
        )
        try:
            if gang.start_agents(plan(size), wishes.is_interrupted):
                return gang
        except HostLost as lost:
            gang.close()
            if time.monotonic() - started > wishes.timeout_s:
                raise
            wishes.tell(f"{lost}; the gang is placed anew")
            continue
        except BaseException:
            gang.close()
            raise
        gang.close()
        return None


def _extra_workers(config: JobConfig, reservation: Reservation) -> int:
    """For how many workers there is room beside what has been granted."""
    return room_beside(config, look_at_hosts(), reservation.held())


def _reserved(wishes: Wishes, started: float) -> Reservation | None:
    """Room for a gang, granted by Ray; None if interrupted."""
    config, deadline = wishes.config, started + wishes.timeout_s
    sizing = Sizing(
        config.least_workers,
        config.workers,
        sizes_of(config).step,
        time.monotonic(),
        fall_s=min(FALL_S, wishes.timeout_s / 4),
    )
    if sizing.is_elastic:
        sizing.begin(workers_that_fit(config, look_at_hosts()))
    waiting = Waiting(time.monotonic())
    reservation = reserve(config, place(config, sizing.wanted))
    try:
        while True:
            granted, now = reservation.wait(_POLL_S), time.monotonic()
            if wishes.is_interrupted():
                reservation.release()
                return None
            looks = sizing.is_elastic and sizing.looks(now)
            if granted:
                extra = _extra_workers(config, reservation) if looks else 0
                if sizing.granted(extra, now):
                    return reservation
                time.sleep(_POLL_S)
            elif now > deadline:
                need = describe_need(config, look_at_hosts())
                waited = f"gave up after {now - started:.0f} s (timeouts.placement_s)"
                raise PlacementTimeout(f"{need}; {waited}")
            elif looks:
                sizing.refused(workers_that_fit(config, look_at_hosts()), now)
            if sizing.wanted != size_of(config, reservation.shares).process_count:
                reservation.release()
                reservation = reserve(config, place(config, sizing.wanted))
            elif not granted and waiting.may_speak(now):
                _speak(wishes, waiting, now, deadline)
    except BaseException:
        reservation.release()
        raise


def _speak(wishes: Wishes, waiting: Waiting, now: float, deadline: float) -> None:
    need, is_first = describe_need(wishes.config, look_at_hosts()), not waiting.has_spoken
    if waiting.speaks(need, now):
        wishes.waits(need, wishes.timeout_s if is_first else deadline - now)
