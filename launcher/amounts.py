"""Sizes and durations on the command line, as a person writes and reads them."""

from __future__ import annotations

import re
import time
from typing import Any

import click

from hotstart.conf.schema import parse_size
from hotstart.launcher.errors import UsageError

_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*([a-z]+)")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def parse_duration(text: str) -> float:
    """Seconds in a duration like `45s`, `30m`, `12h`, `10d` or `2w`; raises ValueError."""
    match = _DURATION.fullmatch(text.strip())
    if match is None or match[2] not in _SECONDS:
        raise ValueError(f"not a duration: {text!r}")
    return float(match[1]) * _SECONDS[match[2]]


class SizeType(click.ParamType):
    """An option's size, given on as bytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return parse_size(value)
        except ValueError as error:
            raise UsageError(
                f"{_option(param)}: {value!r} is no size; give one like 50GiB, 1.5TB or 1048576"
            ) from error


class DurationType(click.ParamType):
    """An option's duration, given on as seconds."""

    name = "duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        if isinstance(value, float):
            return value
        try:
            return parse_duration(value)
        except ValueError as error:
            raise UsageError(
                f"{_option(param)}: {value!r} is no duration; give a number and s, m, h, d or w, "
                "like 12h or 10d"
            ) from error


SIZE = SizeType()
DURATION = DurationType()


def show_size(size_bytes: float) -> str:
    """`812 B`, `1.3 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size_bytes) < 1024:
            return f"{size_bytes:.0f} B" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.1f} TiB"


def show_age(age_s: float) -> str:
    """`12s`, `3m`, `5h`, `10d`: the largest unit of which there are two."""
    for unit, seconds in (("d", 86400), ("h", 3600), ("m", 60)):
        if age_s >= 2 * seconds:
            return f"{age_s / seconds:.0f}{unit}"
    return f"{max(0.0, age_s):.0f}s"


def show_time(at_s: float) -> str:
    """UTC, to the second."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(at_s))


def _option(param: click.Parameter | None) -> str:
    return param.opts[0] if param is not None and param.opts else "the value"
