"""Rules for what a job asks of its hosts: how many workers, how many each, labels, slices."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from hotstart.conf.errors import ConfigError, Origin, dotted, shown
from hotstart.conf.schema import JobConfig

# As Ray takes them (docs.ray.io, label selectors): at most 63 characters of a value's name.
_WORD = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?"
_LABEL = re.compile(rf"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]{{0,250}})/)?{_WORD}")
_SELECTOR = re.compile(rf"!?(?:{_WORD}|in\({_WORD}(?:,{_WORD})*\))")


def check_hosts(config: JobConfig, origins: Mapping[tuple[str, ...], Origin]) -> None:
    """Raise `ConfigError` for the first rule that is broken."""

    def error(path: tuple[str, ...], text: str) -> ConfigError:
        return origins[path].error(text, key=dotted(path))

    workers, least, per_host = config.workers, config.workers_min, config.workers_per_host
    if least is not None and not 1 <= least <= workers:
        raise error(
            ("workers",), f"min must be from 1 to max, got {{min: {least}, max: {workers}}}"
        )
    for count, what in ((workers, "workers, which is"), (least, "the min of workers,")):
        if per_host is not None and count is not None and count % per_host:
            raise error(("workers_per_host",), f"{per_host} does not divide {what} {count}")
    if config.platform == "tpu" and (per_host or workers) != 1:
        text = "a TPU's host takes one worker, with all of its chips: workers_per_host must be 1"
        raise error(("workers_per_host",), text)
    for label, selector in config.labels.items():
        if not _LABEL.fullmatch(label):
            raise error(("labels", label), "not a name that a Ray label may have")
        if not _SELECTOR.fullmatch(selector):
            text = f"expected a value, !value, in(a,b) or !in(a,b), got {shown(selector)}"
            raise error(("labels", label), text)
    _check_slices(config, error)


def _check_slices(config: JobConfig, error: Callable[[tuple[str, ...], str], ConfigError]) -> None:
    tpu = config.tpu
    if tpu.topology is None:
        if tpu.generation is not None:
            raise error(("tpu", "generation"), "give tpu.topology too, or neither")
        return
    if config.platform != "tpu":
        raise error(
            ("tpu", "topology"), f"platform is {config.platform}; slices are of platform tpu"
        )
    try:
        chips = tpu.chips
    except ValueError:
        text = f"expected chips like 4x4 or 2x2x2, got {shown(tpu.topology)}"
        raise error(("tpu", "topology"), text) from None
    if tpu.generation is None:
        raise error(("tpu", "topology"), "give tpu.generation too, such as v6e")
    chips_a_host = config.resources_per_worker.get("TPU", 0)
    if chips_a_host < 1 or chips % chips_a_host:
        text = (
            f"a slice has {chips} chips ({tpu.topology}), which hosts of {chips_a_host:g} chips "
            "(resources_per_worker.TPU) don't make up"
        )
        raise error(("tpu", "topology"), text)
    hosts = int(chips // chips_a_host)
    for count in (config.workers, config.least_workers):
        if count % hosts:
            text = f"whole slices of {tpu.topology} have {hosts} hosts each, got {count} workers"
            raise error(("workers",), text)
