"""How two programs differ: arguments first, then what is left in their operations.

Pure. An argument's type, donation and sharding stand in the program's signature and are compared
one by one. Operations are compared as a multiset of lines. Where the signature has changed,
operations change with it (another dtype converts elsewhere, another shape broadcasts elsewhere);
then the code is named as a cause only for operations that no such change brings about.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from typing import Literal

from hotstart.cache.program_text import ProgramText, Value, operation_of

ChangeKind = Literal[
    "dtype", "shape", "arguments", "donation", "sharding", "committed", "layout", "code"
]

_DONATED = ("tf.aliasing_output", "jax.buffer_donor")
_SHARDINGS = ("sdy.sharding", "mhlo.sharding")
_LAYOUTS = ("mhlo.layout_mode", "mhlo.memory_kind")
_MESH_OF = re.compile(r"sdy\.sharding<@([^,>\s]+)")
_TILES = re.compile(r"devices=\[([\d,]+)\][^ \"}]*")
_NAMED = 4  # arguments that are named one by one
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
_PRECISION = re.compile(r", precision = \[[^\]]*\]")


@dataclass(frozen=True)
class Change:
    """One change; it is no cause where it only `follows` from others."""

    kind: ChangeKind
    subject: str
    before: str | None
    after: str | None
    text: str
    follows: bool = False


def compare_programs(
    before: ProgramText,
    after: ProgramText,
    *,
    other_devices: bool = False,
    other_jax: bool = False,
    settings: Collection[str] = (),
) -> list[Change]:
    """What differs, causes first.

    Told that the number of devices differs, or JAX's version, or these `settings` of JAX that
    enter into tracing: what then changes by itself only follows.
    """
    pairs, changes = _paired(before.arguments, after.arguments)
    changes += _types(pairs)
    changes += _donation(pairs, before, after)
    changes += _shardings(pairs, before, after, other_devices)
    changes += _layouts(pairs)
    signature = {change.kind for change in changes if not change.follows}
    changes += _results(before, after, signature, other_devices)
    signature = {change.kind for change in changes if not change.follows}
    other_tracing = other_jax or bool({*settings} - _PLAIN_SETTINGS)
    if {*settings} & _PLAIN_SETTINGS and before.lines != after.lines:
        before, after = _without_precision(before), _without_precision(after)
        if before.lines == after.lines:
            text = "the precision of its operations differs"
            changes.append(Change("code", "the operations", None, None, text, follows=True))
            return sorted(changes, key=lambda change: change.follows)
    if len(before.results) == len(after.results):
        results = zip(before.results, after.results, strict=True)
        pairs += [_Pair(i, was, now) for i, (was, now) in enumerate(results)]
    changes += _code(before, after, pairs, signature, other_devices, other_tracing)
    return sorted(changes, key=lambda change: change.follows)


# Settings of which it is known what they change in a program.
_PLAIN_SETTINGS = frozenset({"jax_default_matmul_precision", "jax_enable_x64"})


def _without_precision(program: ProgramText) -> ProgramText:
    if program.lines is None:
        return program
    lines: Counter[str] = Counter()
    for line, count in program.lines.items():
        lines[_PRECISION.sub("", line)] += count
    return replace(program, lines=dict(lines))


@dataclass(frozen=True)
class _Pair:
    position: int
    before: Value
    after: Value

    @property
    def label(self) -> str:
        name = self.after.name or self.before.name
        return f"{self.position} ({name})" if name else str(self.position)


def _paired(before: Sequence[Value], after: Sequence[Value]) -> tuple[list[_Pair], list[Change]]:
    """Arguments that are the same one in both, and those that are in one only."""
    if len(before) == len(after):
        return [_Pair(i, *both) for i, both in enumerate(zip(before, after, strict=True))], []
    by_name = all(v.name for v in (*before, *after))
    marks = [[v.name if by_name else v.type for v in values] for values in (before, after)]
    pairs, gone, new = [], [], []
    for what, i, j, k, m in SequenceMatcher(None, marks[0], marks[1], autojunk=False).get_opcodes():
        if what == "equal" or (what == "replace" and j - i == m - k):
            pairs += [_Pair(k + n, before[i + n], after[k + n]) for n in range(j - i)]
        else:
            gone += [_label(n, before[n]) for n in range(i, j)]
            new += [_label(n, after[n]) for n in range(k, m)]
    text = f"the program takes {len(after)} arguments and took {len(before)}"
    text += f"; new: {_listed(new)}" if new else ""
    text += f"; gone: {_listed(gone)}" if gone else ""
    counts = str(len(before)), str(len(after))
    return pairs, [Change("arguments", "the arguments", *counts, text)]


def _label(position: int, value: Value) -> str:
    return (
        f"{position} ({value.name}: {value.type})" if value.name else f"{position} ({value.type})"
    )


def _types(pairs: Sequence[_Pair], noun: str = "argument") -> Iterator[Change]:
    for kind, of in (
        ("dtype", lambda v: v.dtype),
        ("shape", lambda v: None if v.shape is None else f"[{','.join(v.shape)}]"),
    ):
        found: dict[tuple[str | None, str | None], list[str]] = {}
        for pair in pairs:
            was, now = of(pair.before), of(pair.after)
            if was != now:
                found.setdefault((was, now), []).append(pair.label)
        for (was, now), labels in found.items():
            text = f"the {kind} of {_arguments(labels, noun)} is {now} and was {was}"
            yield Change(kind, _arguments(labels, noun), was, now, text)  # type: ignore[arg-type]


def _donation(pairs: Sequence[_Pair], before: ProgramText, after: ProgramText) -> Iterator[Change]:
    found: dict[tuple[bool, bool], list[str]] = {}
    for pair in pairs:
        was, now = _is_donated(pair.before), _is_donated(pair.after)
        if was != now:
            # JAX drops a donation for which there is no result of the same type.
            program, value = (after, pair.after) if was else (before, pair.before)
            usable = any(result.type == value.type for result in program.results)
            follows = not usable and pair.before.type != pair.after.type
            found.setdefault((now, follows), []).append(pair.label)
    for (now, follows), labels in found.items():
        which = _arguments(labels)
        text = f"{which} {_is(labels)} donated and {_was(labels)} not"
        if not now:
            text = f"{which} {_is(labels)} not donated and {_was(labels)}"
        if follows:
            text += ", for want of a result of that type"
        states = ("donated", "not donated")
        yield Change("donation", which, states[now], states[not now], text, follows)


def _is_donated(value: Value) -> bool:
    return any(name in value.attributes for name in _DONATED)


def _shardings(
    pairs: Sequence[_Pair], before: ProgramText, after: ProgramText, other_devices: bool
) -> Iterator[Change]:
    found: dict[tuple[ChangeKind, str | None, str | None, bool], list[str]] = {}
    for pair in pairs:
        was, now = _sharding(pair.before, before), _sharding(pair.after, after)
        if was == now:
            continue
        kind: ChangeKind = "sharding"
        if None in (was, now) and not _splits((was or now or "").partition(" with ")[0]):
            kind = "committed"
        follows = other_devices and was and now and _pattern(was) == _pattern(now)
        found.setdefault((kind, was, now, bool(follows)), []).append(pair.label)
    for (kind, was, now, follows), labels in found.items():
        which = _arguments(labels)
        if kind == "committed":
            states = f"committed ({now or was})", "uncommitted"
            is_now, has_been = states if now else states[::-1]
            text = (
                f"{which} {_is(labels)} {is_now} and {_was(labels)} {has_been}: restored arrays "
                "are committed, those of a fresh start often are not"
            )
        else:
            text = (
                f"the sharding of {which} is {now or 'none (uncommitted)'} and was "
                f"{was or 'none (uncommitted)'}"
            )
        yield Change(kind, which, was, now, text, follows)


def _sharding(value: Value, program: ProgramText) -> str | None:
    """With its mesh; None for what the program's arguments are free to be."""
    for name in _SHARDINGS:
        if name in value.attributes:
            text = value.attributes[name].removeprefix("#sdy.sharding").strip('"')
            mesh = _MESH_OF.search(value.attributes[name])
            axes = program.meshes.get(mesh[1], "") if mesh else ""
            return f"{text} with {axes}" if axes and axes != "[]" else text
    return None


def _splits(sharding: str) -> bool:
    """Whether it has an axis in it, or tiles."""
    return '"' in sharding or "devices=" in sharding


def _pattern(sharding: str) -> str:
    """Without how many devices there are: another number of them changes that alone."""
    text = sharding.partition(" with ")[0]
    axes = ",".join(re.findall(r'"(\w+)"=', sharding.partition(" with ")[2]))

    def tiles(match: re.Match[str]) -> str:
        return "devices=" + ",".join("1" if n == "1" else "n" for n in match[1].split(","))

    return f"{_TILES.sub(tiles, text)} {axes}"


def _layouts(pairs: Sequence[_Pair]) -> Iterator[Change]:
    known = {*_DONATED, *_SHARDINGS}
    for pair in pairs:
        names = ({*pair.before.attributes} | {*pair.after.attributes}) - known
        for name in sorted(names):
            was, now = pair.before.attributes.get(name), pair.after.attributes.get(name)
            if was != now:
                which = f"argument {pair.label}"
                text = f"{name} of {which} is {now or 'not set'} and was {was or 'not set'}"
                yield Change("layout", which, was, now, text)


def _results(
    before: ProgramText, after: ProgramText, signature: set[ChangeKind], other_devices: bool
) -> Iterator[Change]:
    typed = bool(signature & {"dtype", "shape", "arguments"})
    if len(before.results) != len(after.results):
        counts = str(len(before.results)), str(len(after.results))
        text = f"the program has {counts[1]} results and had {counts[0]}"
        yield Change("code", "the results", *counts, text, "arguments" in signature)
        return
    for i, (was, now) in enumerate(zip(before.results, after.results, strict=True)):
        # Without another argument it comes from a value that is not one, such as a static size.
        for change in _types([_Pair(i, was, now)], "result"):
            yield replace(change, follows=typed)
        shardings = _sharding(was, before), _sharding(now, after)
        if shardings[0] != shardings[1]:
            text = (
                f"the sharding of result {i} is {shardings[1] or 'left to XLA'} and was "
                f"{shardings[0] or 'left to XLA'}"
            )
            follows = bool(signature & {"sharding", "committed"}) or (
                other_devices and _pattern(shardings[0] or "") == _pattern(shardings[1] or "")
            )
            yield Change("sharding", f"result {i}", *shardings, text, follows)
        for name in ("jax.result_info", *_LAYOUTS):
            values = was.attributes.get(name), now.attributes.get(name)
            if values[0] != values[1]:
                text = f"{name} of result {i} is {values[1]} and was {values[0]}"
                kind: ChangeKind = "code" if name == "jax.result_info" else "layout"
                yield Change(kind, f"result {i}", *values, text)


def _code(
    before: ProgramText,
    after: ProgramText,
    pairs: Sequence[_Pair],
    signature: set[ChangeKind],
    other_devices: bool,
    other_tracing: bool,
) -> Iterator[Change]:
    """What is left in the operations."""
    if before.order == after.order:
        if before.meshes != after.meshes and not signature:
            was, now = _meshes(before), _meshes(after)
            text = f"the mesh is {now} and was {was}"
            yield Change("sharding", "the mesh", was, now, text, other_devices)
        elif not signature and not other_devices and not other_tracing:
            yield _unread("its operations read the same: a large constant or metadata differs")
        return
    gone, new = _only(before, after)
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
    if follows:
        text += " (which comes with the above; whether the code changed too does not show)"
    yield Change("code", "the operations", _shown(gone) or None, _shown(new) or None, text, follows)


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
    signature: set[ChangeKind], pairs: Sequence[_Pair], other_devices: bool
) -> frozenset[str] | None:
    """The operations that may come and go with such a change; None: all of them may."""
    if "arguments" in signature:
        return None
    free: frozenset[str] = frozenset()
    if "shape" in signature:
        free |= _WITH_SHAPE
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
    gone: Counter[str], new: Counter[str], pairs: Sequence[_Pair], signature: set[ChangeKind]
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
    return ", ".join(sorted(program.meshes.values())) or "none"


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


def _arguments(labels: Sequence[str], noun: str = "argument") -> str:
    return f"{noun if len(labels) == 1 else f'{noun}s'} {_listed(labels)}"


def _is(labels: Sequence[str]) -> str:
    return "is" if len(labels) == 1 else "are"


def _was(labels: Sequence[str]) -> str:
    return "was" if len(labels) == 1 else "were"


def _listed(labels: Sequence[str]) -> str:
    shown = ", ".join(labels[:_NAMED])
    return f"{shown} and {len(labels) - _NAMED} more" if len(labels) > _NAMED else shown
