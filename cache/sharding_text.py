"""A sharding as a user of JAX writes it: `P('d', None)` for Shardy's `<@mesh, [{"d"}, {}]>`. Pure.

What has more in it than axes (open dimensions, parts of axes, unreduced ones) stays as MLIR prints
it, and so does GSPMD's notation. Source: the attributes in Shardy's `sdy/ir/attrs.td`.
"""

from __future__ import annotations

import re

_SHARDY = re.compile(r"<@\w+, \[([^\[\]]*)\]>")
_DIMENSION = re.compile(r"\{([^{}]*)\}")
_AXES = re.compile(r'"(\w+)"(?:, "(\w+)")*')
_NAME = re.compile(r'"(\w+)"')
_SIZE = re.compile(r'"(\w+)"=(\d+)')


def readable(text: str) -> str:
    """With each of Shardy's shardings in it as a `PartitionSpec`."""
    return _SHARDY.sub(_as_spec, text)


def readable_mesh(axes: str) -> str:
    """`d=2, m=4` for `["d"=2, "m"=4]`; no text for a mesh without axes."""
    sizes = [f"{name}={size}" for name, size in _SIZE.findall(axes)]
    return ", ".join(sizes) or axes.strip("[]")


def _as_spec(match: re.Match[str]) -> str:
    dimensions = _DIMENSION.findall(match[1])
    if not all(not axes or _AXES.fullmatch(axes) for axes in dimensions):
        return match[0]
    return f"P({', '.join(_axes(axes) for axes in dimensions)})"


def _axes(axes: str) -> str:
    names = [f"'{name}'" for name in _NAME.findall(axes)]
    if len(names) < 2:
        return names[0] if names else "None"
    return f"({', '.join(names)})"
