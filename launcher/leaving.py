"""The hosts of a gang that are about to go, and what is told of them."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Sequence

from hotstart.launcher.drain_watch import DrainWatch, drain
from hotstart.launcher.preemption import UNKNOWN_LEFT_S, PreemptionNotice


class LeavingHosts:
    """`gone_s` says when each is gone, monotonic, by host index."""

    def __init__(self, hosts: Sequence[str], node_ids: Sequence[str]) -> None:
        """Names and Ray's ids of the nodes, by host index. Polls Ray until `close`."""
        self.gone_s: dict[int, float] = {}
        self._hosts = hosts
        self._node_ids = node_ids
        self._drains = DrainWatch(node_ids)
        self._drained: dict[int, PreemptionNotice] = {}
        self._untold: set[int] = set()
        self._told_ray: set[int] = set()

    def begin(self) -> None:
        """An attempt begins: what is known already is told to it too."""
        self._untold = set(self._drained)

    def fresh(self) -> list[PreemptionNotice]:
        """Ray's notices that the attempt has not been told."""
        for index, left_s in self._drains.take().items():
            notice = PreemptionNotice("drain", self._hosts[index], left_s)
            self._drained[index] = self.note(index, notice)
            self._untold.add(index)
        untold, self._untold = sorted(self._untold), set()
        return [self._aged(index) for index in untold]

    def note(self, index: int, notice: PreemptionNotice) -> PreemptionNotice:
        """Take a notice from a host's agent or of Ray; the same with its host index.

        Ray is told of a host that something else takes away.
        """
        left_s = UNKNOWN_LEFT_S if notice.left_s is None else notice.left_s
        tells_ray = notice.takes_the_host and notice.source != "drain"
        if tells_ray and index not in self._told_ray:
            self._told_ray.add(index)
            arguments = self._node_ids[index], left_s, str(notice)
            threading.Thread(target=drain, args=arguments, daemon=True).start()
        if notice.takes_the_agent:
            gone_s = time.monotonic() + left_s
            self.gone_s[index] = min(gone_s, self.gone_s.get(index, gone_s))
        return dataclasses.replace(notice, host_index=index)

    def close(self) -> None:
        """Poll no more."""
        self._drains.close()

    def _aged(self, index: int) -> PreemptionNotice:
        notice = self._drained[index]
        if notice.left_s is None:
            return notice
        left_s = max(0.0, self.gone_s[index] - time.monotonic())
        return dataclasses.replace(notice, left_s=left_s)
