"""Whole slices of TPUs, by Ray's own reservation of them (`ray.util.tpu`, Ray 2.55 and later).

Ray takes a slice by its head, which blocks and can't be broken off, so that is done on a thread of
its own. The processes of a slice are numbered as its hosts are (`ray.io/tpu-worker-id`), slice by
slice: the TPU runtime numbers them so, whatever `jax.distributed` is told.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from hotstart.conf.schema import JobConfig
from hotstart.launcher.errors import HostFailed, first_line
from hotstart.launcher.placement import HostShare, hosts_per_slice
from hotstart.launcher.reservation import Reservation, granted_within

logger = logging.getLogger(__name__)

WORKER_LABEL = "ray.io/tpu-worker-id"
_AGAIN_S = 1.0


class SliceReservation(Reservation):
    """As a `Reservation`; a slice that can't be had is asked for again, until it is released."""

    def __init__(self, config: JobConfig, shares: Sequence[HostShare]) -> None:
        super().__init__(shares, None)
        self._config = config
        self._slices: Any = None
        self._order: list[int] | None = None
        self._lock = threading.Lock()
        self._released = threading.Event()
        self._reserved = threading.Event()
        self._error: Exception | None = None
        threading.Thread(target=self._reserve, name="hotstart-slices", daemon=True).start()

    def wait(self, timeout_s: float) -> bool:
        """Whether Ray has granted all slices by then; `HostFailed` where it never will."""
        deadline = time.monotonic() + timeout_s
        if not self._reserved.wait(timeout_s):
            return False
        if self._error is not None:
            raise HostFailed(f"Ray can't reserve slices: {first_line(self._error)}")
        if not granted_within(deadline - time.monotonic(), self.group):
            return False
        with contextlib.suppress(AttributeError):  # of Ray 2.55, which keeps them to the end
            self._slices.release_head_pgs()
        return True

    def bundle_index(self, host_index: int) -> int:
        """The bundle of a host, hosts in the order of their slice."""
        if self._order is None:
            import ray

            labels = {n["NodeID"]: n.get("Labels") or {} for n in ray.nodes()}
            bundles = [labels.get(node_id, {}) for node_id in super().node_ids()]
            self._order = order_of(bundles, hosts_per_slice(self._config))
        return self._order[host_index]

    def node_ids(self) -> list[str]:
        """Ray's ids of the nodes, by host index."""
        found = super().node_ids()
        return [found[self.bundle_index(index)] for index in range(len(found))]

    def release(self) -> None:
        """Give all slices back, also those that are granted only later."""
        with self._lock:
            self._released.set()
            slices, self._slices = self._slices, None
        if slices is not None:
            _shut_down(slices)

    def _reserve(self) -> None:
        while not self._released.is_set():
            try:
                slices = _ask(self._config, len(self.shares))
            except (TypeError, ValueError) as error:  # these it will never give
                self._error = error
                self._reserved.set()
                return
            except Exception as error:
                logger.info("no slices yet: %s", first_line(error))
                self._released.wait(_AGAIN_S)
                continue
            with self._lock:
                if not self._released.is_set():
                    self._slices, self.group = slices, slices.placement_group
                    self._reserved.set()
                    return
            _shut_down(slices)


def order_of(labels: Sequence[Mapping[str, str]], per_slice: int) -> list[int]:
    """Bundle indices by host index: slices as they come, each one's hosts by their number.

    `labels` are of the bundles' nodes. A host without a number stays where it is.
    """

    def number(bundle: int) -> tuple[int, int, int]:
        text = labels[bundle].get(WORKER_LABEL, "")
        return bundle // per_slice, int(text) if text.isdecimal() else bundle % per_slice, bundle

    return sorted(range(len(labels)), key=number)


def _ask(config: JobConfig, hosts: int) -> Any:
    from ray.util.tpu import SlicePlacementGroup

    bundle = {k: v for k, v in config.resources_per_worker.items() if v}
    options: dict[str, Any] = {}
    takes = inspect.signature(SlicePlacementGroup.__init__).parameters
    if "chips_per_vm" in takes:  # else Ray knows by topology and generation alone
        options["chips_per_vm"] = int(bundle["TPU"])
    if config.labels:
        if "bundle_label_selector" not in takes:
            raise ValueError("labels together with tpu.topology need a newer Ray")
        options["bundle_label_selector"] = [dict(config.labels) for _ in range(hosts)]
    return SlicePlacementGroup(
        topology=str(config.tpu.topology),
        accelerator_version=str(config.tpu.generation),
        resources_per_bundle=bundle,
        strategy="SPREAD",
        num_slices=hosts // hosts_per_slice(config),
        **options,
    )


def _shut_down(slices: Any) -> None:
    try:
        slices.shutdown()
    except Exception as error:
        logger.warning("slices are not given back before the driver ends: %s", first_line(error))
