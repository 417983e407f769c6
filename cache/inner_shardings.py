"""The shardings that stand in a program's operations, and how its mesh shows in them. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from hotstart.cache.program_text import ProgramText, operation_of
from hotstart.cache.sharding_text import readable, readable_mesh
from hotstart.cache.signature_differences import Change

_MANUAL = re.compile(
    r"sdy\.manual_computation\(.*?\) in_shardings=\[(.*?)\] out_shardings=\[(.*?)\] "
    r"manual_axes=(\{.*?\})"
)
_CONSTRAINT = re.compile(r"sdy\.sharding_constraint % (<.*>) :")
_MESH_NAME = re.compile(r"<@(\w+),")
_AXIS = re.compile(r'"(\w+)"')
_SIZE = re.compile(r"=\d+")


def inner_shardings(
    before: ProgramText, after: ProgramText, other_devices: bool, *, follows: bool = False
) -> Iterator[Change]:
    """The specs of `shard_map` and of sharding constraints, which stand in the operations."""
    gone, new = specs_of(before), specs_of(after)
    for name in sorted({*gone} & {*new}):
        if gone[name] == new[name]:
            continue
        was, now = (", ".join(sorted(found[name])) for found in (gone, new))
        text = f"the sharding that {name} asks for is {now} and was {was}"
        by_devices = other_devices and _SIZE.sub("", was) == _SIZE.sub("", now)
        yield Change("sharding", name, was, now, text, follows or by_devices)


def resizes(change: Change) -> bool:
    """Whether a device's part of an argument may have another shape by it: more than names."""
    was, now = (re.sub(r"'\w+'|\w+=", "", text or "") for text in (change.before, change.after))
    return was != now


def specs_of(program: ProgramText) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for line in program.lines or ():
        if match := _MANUAL.search(line):
            mesh = _MESH_NAME.search(line)
            sizes = readable_mesh(program.meshes.get(mesh[1], "") if mesh else "")
            axes = _AXIS.findall(match[3])
            over = [s for s in sizes.split(", ") if s.partition("=")[0] in axes] or axes
            spec = f"in {readable(match[1])}, out {readable(match[2])} over {', '.join(over)}"
            found.setdefault("shard_map", set()).add(spec)
        elif match := _CONSTRAINT.search(line):
            found.setdefault("a sharding constraint", set()).add(readable(match[1]))
    return found


def without_specs(
    lines: tuple[Counter[str], Counter[str]],
) -> tuple[Counter[str], Counter[str]]:
    """Without the operations that have specs, where only what they ask for or their types differ.

    One more of them is told as an operation.
    """
    counts = [Counter[str](), Counter[str]()]
    for found, some in zip(counts, lines, strict=True):
        for line, count in some.items():
            found[operation_of(line)] += count
    same = {name for name in counts[0] if counts[0][name] == counts[1][name]}
    gone, new = (
        Counter(
            {
                line: n
                for line, n in some.items()
                if not (operation_of(line).startswith("sdy.") and operation_of(line) in same)
            }
        )
        for some in lines
    )
    return gone, new


def with_axes_of(
    lines: tuple[Counter[str], Counter[str]], before: ProgramText, after: ProgramText
) -> tuple[Counter[str], Counter[str]]:
    """Without lines that differ only in how an axis of the mesh is called."""
    names: dict[str, str] = {}
    for mesh in {*before.meshes} & {*after.meshes}:
        axes = [_AXIS.findall(program.meshes[mesh]) for program in (before, after)]
        if len(axes[0]) == len(axes[1]):
            names |= dict(zip(*axes, strict=True))
    gone: Counter[str] = Counter()
    for line, count in lines[0].items():
        gone[_AXIS.sub(lambda match: f'"{names.get(match[1], match[1])}"', line)] += count
    return gone - lines[1], lines[1] - gone


def axis_sizes(before: ProgramText, after: ProgramText) -> set[tuple[int, int]]:
    """The sizes of axes before and after."""
    found: set[tuple[int, int]] = set()
    for mesh in {*before.meshes} & {*after.meshes}:
        sizes = [
            [int(size[1:]) for size in _SIZE.findall(program.meshes[mesh])]
            for program in (before, after)
        ]
        found |= {*zip(*sizes, strict=False)}
    return {(was, now) for was, now in found if was and now}
