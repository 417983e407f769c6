"""Where the driver of a submitted job runs: pure.

It needs no accelerator and hardly any CPU. Unless told otherwise Ray puts it on the head's node,
and with `entrypoint_resources` or a label wherever these are. See
https://docs.ray.io/en/latest/cluster/running-applications/job-submission/sdk.html.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hotstart.conf.schema import parse_size
from hotstart.launcher.errors import UsageError
from hotstart.launcher.placement import describe

_ACCELERATORS = ("GPU", "TPU", "neuron_cores", "HPU", "NPU")


@dataclass(frozen=True)
class DriverPlace:
    """What a node must have for the driver, in Ray's resource names, and its labels."""

    resources: dict[str, float] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.resources or self.labels)

    def __str__(self) -> str:
        said = [describe(self.resources)] if self.resources else []
        said += [f"the label {name}={value}" for name, value in sorted(self.labels.items())]
        return " and ".join(said) or "nothing"

    def as_request(self) -> dict[str, Any]:
        """As arguments of `JobSubmissionClient.submit_job`."""
        rest = dict(self.resources)
        memory_bytes = rest.pop("memory", None)
        request = {
            "entrypoint_num_cpus": rest.pop("CPU", None),
            "entrypoint_memory": None if memory_bytes is None else int(memory_bytes),
            "entrypoint_resources": rest or None,
            "entrypoint_label_selector": dict(self.labels) or None,
        }
        return {name: value for name, value in request.items() if value is not None}

    def fits(self, resources: Mapping[str, float], labels: Mapping[str, str]) -> bool:
        """Whether a node with these has it all, if nobody else did."""
        return all(
            amount <= resources.get(name, 0.0) for name, amount in self.resources.items()
        ) and all(labels.get(name) == value for name, value in self.labels.items())


def parse_place(resources: Iterable[str], labels: Iterable[str]) -> DriverPlace:
    """From `CPU=1`, `memory=2GiB`, `CPU=1,driver=1` and `KEY=VALUE`; raises `UsageError`."""
    amounts: dict[str, float] = {}
    for name, text in _pairs("--driver-resources", "CPU=1,memory=2GiB", resources):
        if name.startswith(_ACCELERATORS):
            raise UsageError(
                f"--driver-resources: {name}: the driver needs no accelerator; it would keep one "
                "from the workers"
            )
        try:
            amounts[name] = float(parse_size(text) if name == "memory" else float(text))
        except ValueError:
            amounts[name] = 0.0
        if not math.isfinite(amounts[name]) or amounts[name] <= 0:
            like = "a size like 2GiB" if name == "memory" else "a number above 0"
            raise UsageError(f"--driver-resources: {name}: expected {like}, got {text!r}")
    return DriverPlace(amounts, dict(_pairs("--driver-label", "KEY=VALUE", labels)))


def place_from(notes: object) -> DriverPlace:
    """A place as an archive's notes have it; nothing where they are unlike one."""
    if not isinstance(notes, dict):
        return DriverPlace()
    resources, labels = notes.get("resources"), notes.get("labels")
    if not isinstance(resources, dict) or not isinstance(labels, dict):
        return DriverPlace()
    return DriverPlace(
        {str(k): float(v) for k, v in resources.items() if isinstance(v, int | float)},
        {str(k): str(v) for k, v in labels.items()},
    )


def waiting_for(place: DriverPlace, nodes: Sequence[Mapping[str, Any]]) -> str | None:
    """Why no node of a cluster takes the driver, or None where one does.

    A node has `resources` and `labels`. One that is merely busy does.
    """
    if any(place.fits(node["resources"], node["labels"]) for node in nodes):
        return None
    names = sorted(place.resources)
    most = {n: max((x["resources"].get(n, 0.0) for x in nodes), default=0.0) for n in names}
    best = f", of which none has more than {describe(most)} each" if names else ""
    return f"the driver needs a node with {place}; the cluster has {len(nodes)} nodes{best}"


def _pairs(option: str, like: str, texts: Iterable[str]) -> list[tuple[str, str]]:
    found = []
    for text in (part for given in texts for part in given.split(",")):
        name, equals, value = text.strip().partition("=")
        if not (name and equals and value):
            raise UsageError(f"{option}: expected {like}, got {text!r}")
        found.append((name, value))
    return found
