"""How the operations of two programs differ, once it is known how their signatures do. Pure.

Operations are compared as a multiset of lines. Where the signature has changed they change with it
(another dtype converts elsewhere, another shape broadcasts elsewhere); then the code is named as a
cause only for operations that no such change brings about.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

from hotstart.cache.program_text import ProgramText, Value, operation_of
from hotstart.cache.sharding_text import readable, readable_mesh
from hotstart.cache.signature_differences import Change, ChangeKind, Pair

_SHOWN = 6  # lines of operations
_CONSTANT = re.compile(
    r"^(?:% = )?stablehlo\.constant dense<(-?[\d.]+(?:[eE][+-]?\d+)?|true|false)>"
)

# What JAX adds, drops or resizes with another shape or dtype of the same code.
_PLUMBING = ("return", "call", "func.call", "func.func")
_WITH_SHAPE = frozenset(_PLUMBING) | {
    f"stablehlo.{name}"
    for name in ("broadcast_in_dim", "reshape", "constant", "slice", "pad", "concatenate")
    + ("iota", "dynamic_slice", "dynamic_update_slice", "transpose")
}
_WITH_DTYPE = frozenset(_PLUMBING) | {
    f"stablehlo.{name}" for name in ("convert", "constant", "broadcast_in_dim")
}
_WITH_CLASS = {  # an integer's division is not a float's
    f"stablehlo.{name}"
    for name in ("sign", "select", "compare", "and", "or", "not", "divide", "remainder", "floor")
}
_WITH_SHARDING = frozenset(_PLUMBING) | {"stablehlo.custom_call"}
_MANUAL = re.compile(
    r"sdy\.manual_computation\(.*?\) in_shardings=\[(.*?)\] out_shardings=\[(.*?)\] "
    r"manual_axes=(\{.*?\})"
)
_CONSTRAINT = re.compile(r"sdy\.sharding_constraint % (<.*>) :")
_PRECISION = re.compile(r", precision = \[[^\]]*\]")


# Settings of which it is known what they change in a program.
PLAIN_SETTINGS = frozenset({"jax_default_matmul_precision", "jax_enable_x64"})


def without_precision(program: ProgramText) -> ProgramText:
    if program.lines is None:
        return program
    lines: Counter[str] = Counter()
    for line, count in program.lines.items():
        lines[_PRECISION.sub("", line)] += count
    return replace(program, lines=dict(lines))


def inner_shardings(
    before: ProgramText, after: ProgramText, *, follows: bool = False
) -> Iterator[Change]:
    """The specs of `shard_map` and of sharding constraints, which stand in the operations."""
    gone, new = (_specs(lines) for lines in _only(before, after))
    for name in sorted({*gone} & {*new}):
        was, now = (", ".join(sorted(found[name])) for found in (gone, new))
        text = f"the sharding that {name} asks for is {now} and was {was}"
        yield Change("sharding", name, was, now, text, follows)


def _specs(lines: Counter[str]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for line in lines:
        if match := _MANUAL.search(line):
            over = match[3].replace('"', "")
            spec = f"in {readable(match[1])}, out {readable(match[2])} over {over}"
            found.setdefault("shard_map", set()).add(spec)
        elif match := _CONSTRAINT.search(line):
            found.setdefault("a sharding constraint", set()).add(readable(match[1]))
    return found


def code(
    before: ProgramText,
    after: ProgramText,
    pairs: Sequence[Pair],
    signature: set[ChangeKind],
    other_devices: bool,
    other_tracing: bool,
) -> Iterator[Change]:
    """What is left in the operations."""
    if before.order == after.order:
        if before.meshes != after.meshes and not signature:
            was, now = _meshes(before), _meshes(after)
            text = f"the mesh is {now} and was {was}"
            yield Change("sharding", "the mesh", was, now, text, other_devices or other_tracing)
        elif not signature and not other_devices and not other_tracing:
            yield _unread("its operations read the same: a large constant or metadata differs")
        return
    gone, new = _only(before, after)
    if {*_specs(gone)} & {*_specs(new)}:  # told already
        gone, new = (_without_specs(lines) for lines in (gone, new))
        if not gone and not new:
            return
    free = _free(signature, pairs, other_devices)
    unbidden = {
        name
        for name in _differing(before.operations, after.operations)
        if free is not None and name not in free and not name.startswith("sdy.")
    }
    told = free is not None and (
        bool(unbidden)
        or _constants_differ(gone, new, pairs, signature)
        or (not signature & {"dtype", "shape"} and not other_devices and bool(gone or new))
    )
    if not gone and not new:
        text = "the same operations stand in another order or are connected otherwise"
        if before.lines is None or after.lines is None:
            text = "its operations differ; there are too many of them to be recorded one by one"
            text += _counted(before.operations, after.operations)
        follows = bool(signature) or other_devices or other_tracing
        yield Change("code", "the operations", None, None, text, follows)
        return
    if signature & {"dtype", "shape"}:  # of most lines only the types have changed
        gone, new = (_telling(lines, unbidden) for lines in (gone, new))
    text = "; ".join(
        part
        for part in (
            f"operations are new: {_shown(new)}" if new else "",
            f"operations are gone: {_shown(gone)}" if gone else "",
        )
        if part
    )
    follows = other_tracing or not told
    text = text or "its operations have other types"
    if not signature and {operation_of(line) for line in (*gone, *new)} == {"stablehlo.convert"}:
        text += ": a number of Python's (weakly typed) became an array, or the other way round"
    if follows:
        text += " (which comes with the above; whether the code changed too does not show)"
    yield Change("code", "the operations", _shown(gone) or None, _shown(new) or None, text, follows)


def _without_specs(lines: Counter[str]) -> Counter[str]:
    return Counter({line: n for line, n in lines.items() if not line.startswith("% = sdy.")})


def _telling(lines: Counter[str], kinds: Collection[str]) -> Counter[str]:
    return Counter(
        {
            line: count
            for line, count in lines.items()
            if operation_of(line) in kinds or (not kinds and _CONSTANT.match(line))
        }
    )


def _unread(text: str) -> Change:
    return Change("code", "the operations", None, None, text)


def _free(
    signature: set[ChangeKind], pairs: Sequence[Pair], other_devices: bool
) -> frozenset[str] | None:
    """The operations that may come and go with such a change; None: all of them may."""
    if "arguments" in signature:
        return None
    free: frozenset[str] = frozenset()
    if "shape" in signature:
        free |= _WITH_SHAPE
        if any(bool(p.before.shape) != bool(p.after.shape) for p in pairs):
            free |= {"stablehlo.convert"}  # a plain number's type yields to that of an array
    if "dtype" in signature:
        free |= _WITH_DTYPE
        if any(_class(p.before.dtype) != _class(p.after.dtype) for p in pairs):
            free |= _WITH_CLASS
    if signature & {"sharding", "committed"} or other_devices:
        free |= _WITH_SHARDING
    return free


def _class(dtype: str) -> str:
    return re.sub(r"\d.*", "", dtype).replace("bf", "f")


def _differing(before: Mapping[str, int], after: Mapping[str, int]) -> set[str]:
    return {name for name in {*before, *after} if before.get(name, 0) != after.get(name, 0)}


def _only(before: ProgramText, after: ProgramText) -> tuple[Counter[str], Counter[str]]:
    was, now = Counter(before.lines or {}), Counter(after.lines or {})
    if before.lines is None or after.lines is None:
        return Counter(), Counter()
    return was - now, now - was


def _constants_differ(
    gone: Counter[str], new: Counter[str], pairs: Sequence[Pair], signature: set[ChangeKind]
) -> bool:
    """Whether numbers in the code have changed that are neither rounded nor made of a shape."""
    was, now = Counter(_constants(gone)), Counter(_constants(new))
    was, now = was - now, now - was
    if "dtype" in signature:
        was, now = _unrounded(was, now)
    if "shape" in signature:
        sizes = [_sizes(p.before for p in pairs), _sizes(p.after for p in pairs)]
        left = [
            {value for value in found if not _is_made_of(value, known)}
            for found, known in zip((was, now), sizes, strict=True)
        ]
        return bool(left[0] and left[1])
    return bool(was and now)


def _constants(lines: Counter[str]) -> Iterator[float]:
    for line, count in lines.items():
        if match := _CONSTANT.match(line):
            value = {"true": 1.0, "false": 0.0}.get(match[1])
            yield from itertools.repeat(float(match[1]) if value is None else value, count)


def _unrounded(was: Counter[float], now: Counter[float]) -> tuple[Counter[float], Counter[float]]:
    left = Counter(now)
    kept: Counter[float] = Counter()
    for value in was.elements():
        near = next((n for n in left if left[n] and math.isclose(n, value, rel_tol=0.02)), None)
        if near is None:
            kept[value] += 1
        else:
            left[near] -= 1
    limits = {v for v in (*kept, *left) if abs(v) > 1e4}  # of the dtype
    return +Counter({v: n for v, n in kept.items() if v not in limits}), +Counter(
        {v: n for v, n in left.items() if v not in limits}
    )


def _sizes(values: Iterator[Value]) -> set[int]:
    """The dimensions of arguments, and their products."""
    found: set[int] = set()
    for value in itertools.islice(values, 64):
        dimensions = [int(d) for d in value.shape or () if d.isdigit()]
        for count in range(1, min(len(dimensions), 6) + 1):
            found |= {math.prod(some) for some in itertools.combinations(dimensions, count)}
    return found


def _is_made_of(value: float, sizes: set[int]) -> bool:
    for size in sizes:
        made = (size, size - 1, size + 1, -size, math.sqrt(size), size / 2)
        if any(math.isclose(value, m, rel_tol=1e-5) for m in made):
            return True
        if any(m and math.isclose(value, 1 / m, rel_tol=1e-2) for m in made):
            return True
    return False


def _meshes(program: ProgramText) -> str:
    return "; ".join(sorted(map(readable_mesh, program.meshes.values()))) or "none"


def _shown(lines: Counter[str]) -> str:
    shown = [
        (f"{count} x " if count > 1 else "") + _plain(line)
        for line, count in sorted(lines.items(), key=lambda item: _interest(item[0]))[:_SHOWN]
    ]
    if len(lines) > _SHOWN:
        shown.append(f"and {len(lines) - _SHOWN} more")
    return ", ".join(shown)


def _interest(line: str) -> int:
    """What only moves data about is looked at last."""
    return int(operation_of(line) in _WITH_SHAPE) + int(operation_of(line) == "return")


def _plain(line: str) -> str:
    line = line.removeprefix("% = ").removeprefix("stablehlo.")
    return f"`{line if len(line) <= 100 else line[:97] + '...'}`"


def _counted(before: Mapping[str, int], after: Mapping[str, int]) -> str:
    changed = sorted(_differing(before, after))
    counts = [f"{n} {before.get(n, 0)} -> {after.get(n, 0)}" for n in changed[:_SHOWN]]
    return f"; by kind: {', '.join(counts)}" if counts else ""
