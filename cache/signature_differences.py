"""How the signatures of two programs differ: arguments and results, one by one. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from itertools import takewhile
from typing import Literal

from hotstart.cache.program_text import ProgramText, Value, operation_of
from hotstart.cache.sharding_text import readable, readable_mesh

ChangeKind = Literal[
    "dtype", "shape", "arguments", "donation", "sharding", "committed", "layout", "code"
]

_DONATED = ("tf.aliasing_output", "jax.buffer_donor")
_SHARDINGS = ("sdy.sharding", "mhlo.sharding")
_LAYOUTS = ("mhlo.layout_mode", "mhlo.memory_kind")
_MESH_OF = re.compile(r"sdy\.sharding<@([^,>\s]+)")
_TILES = re.compile(r"devices=\[([\d,]+)\][^ \"}]*")
_NAMED = 4  # arguments that are named one by one
_MATCHED = 200  # between those that begin and end both; matching takes up to the cube of it


@dataclass(frozen=True)
class Change:
    """One change; it is no cause where it only `follows` from others."""

    kind: ChangeKind
    subject: str
    before: str | None
    after: str | None
    text: str
    follows: bool = False


@dataclass(frozen=True)
class Pair:
    position: int
    before: Value
    after: Value

    @property
    def label(self) -> str:
        name = self.after.name or self.before.name
        return f"{self.position} ({name})" if name else str(self.position)


def paired(before: Sequence[Value], after: Sequence[Value]) -> tuple[list[Pair], list[Change]]:
    """Arguments that are the same one in both, and those that are in one only.

    The longest run that is in both need not be what stayed, for parameters of few types alternate;
    so what both begin and end with is taken first.
    """
    if len(before) == len(after):
        return [Pair(i, *both) for i, both in enumerate(zip(before, after, strict=True))], []
    by_name = all(v.name for v in (*before, *after))
    marks = [[v.name if by_name else v.type for v in values] for values in (before, after)]
    first = _common(marks[0], marks[1])
    last = _common(marks[0][first:][::-1], marks[1][first:][::-1])
    ends = len(before) - last, len(after) - last
    steps: list[tuple[str, int, int, int, int]] = [("equal", 0, first, 0, first)]
    if max(ends) - first <= _MATCHED:
        middle = SequenceMatcher(
            None, marks[0][first : ends[0]], marks[1][first : ends[1]], autojunk=False
        )
        steps += [
            (what, first + i, first + j, first + k, first + m)
            for what, i, j, k, m in middle.get_opcodes()
        ]
    steps.append(("equal", ends[0], len(before), ends[1], len(after)))
    pairs, gone, new = [], [], []
    for what, i, j, k, m in steps:
        if what == "equal" or (what == "replace" and j - i == m - k):
            pairs += [Pair(k + n, before[i + n], after[k + n]) for n in range(j - i)]
        else:
            gone += [_label(n, before[n]) for n in range(i, j)]
            new += [_label(n, after[n]) for n in range(k, m)]
    text = f"the program takes {len(after)} arguments and took {len(before)}"
    text += f"; new: {_listed(new)}" if new else ""
    text += f"; gone: {_listed(gone)}" if gone else ""
    counts = str(len(before)), str(len(after))
    return pairs, [Change("arguments", "the arguments", *counts, text)]


def _common(before: Sequence[str], after: Sequence[str]) -> int:
    """How many are the same from the beginning on."""
    same = (was == now for was, now in zip(before, after, strict=False))
    return sum(1 for _ in takewhile(bool, same))


def _label(position: int, value: Value) -> str:
    return (
        f"{position} ({value.name}: {value.type})" if value.name else f"{position} ({value.type})"
    )


def types(pairs: Sequence[Pair], noun: str = "argument") -> Iterator[Change]:
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


def donation(pairs: Sequence[Pair], before: ProgramText, after: ProgramText) -> Iterator[Change]:
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


def shardings(
    pairs: Sequence[Pair],
    before: ProgramText,
    after: ProgramText,
    other_devices: bool,
    other_notation: bool,
) -> Iterator[Change]:
    """With `other_notation` the two are written in languages that are not compared here."""
    found: dict[tuple[ChangeKind, str | None, str | None, bool], list[str]] = {}
    for pair in pairs:
        was, now = sharding(pair.before, before), sharding(pair.after, after)
        if was == now:
            continue
        kind: ChangeKind = "sharding"
        if None in (was, now) and not _splits((was or now or "").partition(" with ")[0]):
            kind = "committed"
        same = other_notation or (other_devices and pattern(was or "") == pattern(now or ""))
        found.setdefault((kind, was, now, bool(was and now and same)), []).append(pair.label)
    for (kind, was, now, follows), labels in found.items():
        which = _arguments(labels)
        was, now = _readable(was), _readable(now)
        if kind == "committed":
            states = f"committed ({now or was})", "uncommitted"
            is_now, has_been = states if now else states[::-1]
            text = (
                f"{which} {_is(labels)} {is_now} and {_was(labels)} {has_been}: restored arrays "
                "are committed, and so is what `device_put` or jit's `in_shardings` place"
            )
        else:
            text = (
                f"the sharding of {which} is {now or 'none (uncommitted)'} and was "
                f"{was or 'none (uncommitted)'}"
            )
        yield Change(kind, which, was, now, text, follows)


def sharding(value: Value, program: ProgramText) -> str | None:
    """With its mesh; None for what the program's arguments are free to be."""
    for name in _SHARDINGS:
        if name in value.attributes:
            text = value.attributes[name].removeprefix("#sdy.sharding").strip('"')
            mesh = _MESH_OF.search(value.attributes[name])
            axes = program.meshes.get(mesh[1], "") if mesh else ""
            return f"{text} with {axes}" if axes and axes != "[]" else text
    return None


def _readable(sharding: str | None) -> str | None:
    if sharding is None:
        return None
    if "<@empty_mesh, " in sharding:
        return "to one device"
    text, _, axes = sharding.partition(" with ")
    return f"{readable(text)} over {readable_mesh(axes)}" if axes else readable(text)


def _splits(sharding: str) -> bool:
    """Whether it has an axis in it, or tiles."""
    return '"' in sharding or "devices=" in sharding


def pattern(sharding: str) -> str:
    """Without how many devices there are: another number of them changes that alone."""
    text = sharding.partition(" with ")[0]
    axes = ",".join(re.findall(r'"(\w+)"=', sharding.partition(" with ")[2]))

    def tiles(match: re.Match[str]) -> str:
        return "devices=" + ",".join("1" if n == "1" else "n" for n in match[1].split(","))

    return f"{_TILES.sub(tiles, text)} {axes}"


def layouts(pairs: Sequence[Pair]) -> Iterator[Change]:
    known = {*_DONATED, *_SHARDINGS}
    for pair in pairs:
        names = ({*pair.before.attributes} | {*pair.after.attributes}) - known
        for name in sorted(names):
            was, now = pair.before.attributes.get(name), pair.after.attributes.get(name)
            if was != now:
                which = f"argument {pair.label}"
                text = f"{name} of {which} is {now or 'not set'} and was {was or 'not set'}"
                yield Change("layout", which, was, now, text)


def results(
    before: ProgramText, after: ProgramText, signature: set[ChangeKind], other_devices: bool
) -> Iterator[Change]:
    infos = [[r.attributes.get("jax.result_info") for r in p.results] for p in (before, after)]
    typed = bool(signature & {"dtype", "shape", "arguments"})
    # With the same arguments another kind of operation is by the code.
    typed |= infos[0] != infos[1] or _other_operations(before, after)
    if len(before.results) != len(after.results):
        counts = str(len(before.results)), str(len(after.results))
        text = f"the program has {counts[1]} results and had {counts[0]}"
        named = [{n.strip('"') for n in names if n} for names in infos]
        for word, names in (("new", named[1] - named[0]), ("gone", named[0] - named[1])):
            text += f"; {word}: {_listed(sorted(names))}" if names else ""
        yield Change("code", "the results", *counts, text, "arguments" in signature)
        return
    for i, (was, now) in enumerate(zip(before.results, after.results, strict=True)):
        for change in types([Pair(i, was, now)], "result"):
            text = f"{change.text}, with the same arguments: by a static value, or by the code"
            yield replace(change, follows=True) if typed else replace(change, text=text)
        shardings = sharding(was, before), sharding(now, after)
        if shardings[0] != shardings[1]:
            shown = _readable(shardings[0]), _readable(shardings[1])
            text = (
                f"the sharding of result {i} is {shown[1] or 'left to XLA'} and was "
                f"{shown[0] or 'left to XLA'}"
            )
            follows = bool(signature & {"sharding", "committed"}) or (
                other_devices and pattern(shardings[0] or "") == pattern(shardings[1] or "")
            )
            yield Change("sharding", f"result {i}", *shown, text, follows)
        for name in ("jax.result_info", *_LAYOUTS):
            values = was.attributes.get(name), now.attributes.get(name)
            if values[0] != values[1]:
                is_now, has_been = (value or "not set" for value in values[::-1])
                text = f"{name} of result {i} is {is_now} and was {has_been}"
                kind: ChangeKind = "code" if name == "jax.result_info" else "layout"
                yield Change(kind, f"result {i}", *values, text, kind in signature - {"code"})


def _other_operations(before: ProgramText, after: ProgramText) -> bool:
    """Whether more differs than what the functions return."""
    if before.lines is None or after.lines is None:
        return before.operations != after.operations
    was, now = (
        Counter({line: n for line, n in (p.lines or {}).items() if operation_of(line) != "return"})
        for p in (before, after)
    )
    return was != now


def _arguments(labels: Sequence[str], noun: str = "argument") -> str:
    return f"{noun if len(labels) == 1 else f'{noun}s'} {_listed(labels)}"


def _is(labels: Sequence[str]) -> str:
    return "is" if len(labels) == 1 else "are"


def _was(labels: Sequence[str]) -> str:
    return "was" if len(labels) == 1 else "were"


def _listed(labels: Sequence[str]) -> str:
    shown = ", ".join(labels[:_NAMED])
    return f"{shown} and {len(labels) - _NAMED} more" if len(labels) > _NAMED else shown
