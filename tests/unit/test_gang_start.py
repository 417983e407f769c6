"""Starting a gang whose hosts are not equally quick: each is told how old the owner's beat is."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from hotstart.launcher.agent import HostInfo
from hotstart.launcher.event_queue import Batch
from hotstart.launcher.gang import Gang
from hotstart.launcher.owner_watch import Sign
from hotstart.launcher.placement import GangSize, HostShare
from hotstart.launcher.reservation import Reservation

pytestmark = pytest.mark.unit


class Ref:
    """A call that is answered once `ready` says so."""

    def __init__(self, answer: Any, ready: Callable[[], bool] = lambda: True) -> None:
        self.answer, self.ready = answer, ready


class FakeRay:
    """`ray` as far as starting goes; a wait that is not answered passes at once."""

    exceptions = SimpleNamespace(
        RayError=RuntimeError, RayTaskError=KeyError, GetTimeoutError=TimeoutError
    )

    @staticmethod
    def wait(refs: list[Ref], num_returns: int, timeout: float) -> tuple[list[Ref], list[Ref]]:
        return [r for r in refs if r.ready()], [r for r in refs if not r.ready()]

    @staticmethod
    def get(ref: Ref, timeout: float = 0.0) -> Any:
        return ref.answer


class FakeAgent:
    """Keeps the signs that it was given; its clock goes on by one with each answer."""

    def __init__(self, clock: float, starts: Callable[[], bool]) -> None:
        self.clock = clock
        self.start_sign: Sign | None = None
        self.poll_signs: list[Sign] = []
        self.now = SimpleNamespace(remote=lambda: Ref(self._tick()))
        self.start = SimpleNamespace(remote=lambda *a: self._start(a[3], starts))
        self.events = SimpleNamespace(remote=lambda cursor, sign: self._poll(cursor, sign))

    def _tick(self) -> float:
        self.clock += 1.0
        return self.clock

    def _start(self, sign: Sign, starts: Callable[[], bool]) -> Ref:
        self.start_sign = sign
        return Ref(None, starts)

    def _poll(self, cursor: int, sign: Sign) -> Ref:
        self.poll_signs.append(sign)
        return Ref(Batch(((1, f"event {cursor}"),), cursor + 1, self._tick()))  # type: ignore[arg-type]


def test_gang_start_polls_hosts_that_have_started_while_others_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "ray", FakeRay)  # type: ignore[arg-type]
    quick = FakeAgent(100.0, lambda: True)
    slow = FakeAgent(700.0, lambda: len(quick.poll_signs) >= 3)
    shares = tuple(HostShare(i, (i,), {"CPU": 1.0}) for i in range(2))
    gang = Gang(Reservation(shares, None), GangSize(2, 2, 2, 2), lambda node_ids: 0)
    gang._agents = [quick, slow]
    gang._infos = [HostInfo(f"host-{i}", "10.0.0.1", 1) for i in range(2)]
    gang._cursors = [0, 0]
    gang.beat_age_s = lambda: 2.5

    gang.start(SimpleNamespace(attempt=1), 0.0)  # type: ignore[arg-type]

    assert quick.start_sign == Sign(101.0, 2.5)
    assert quick.poll_signs[:3] == [Sign(101.0, 2.5), Sign(102.0, 2.5), Sign(103.0, 2.5)]
    assert slow.start_sign == Sign(701.0, 2.5)
    kept = [event for _, event in gang._taken]
    assert kept[:4] == ["event 0", "event 0", "event 1", "event 1"]
    assert [event for _, event in gang.events()][: len(kept)] == kept  # none is lost
