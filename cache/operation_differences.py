"""How the operations of two programs differ, once it is known how their signatures do. Pure.

Operations are compared as a multiset of lines. Where the signature has changed they change with it
(another dtype converts elsewhere, another shape broadcasts elsewhere); then the code is named as a
cause only for operations that no such change brings about.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence

from hotstart.cache.constant_differences import (
    CONSTANT,
    constants_differ,
    constants_of,
    with_plain_number,
)
from hotstart.cache.inner_shardings import (
    axis_sizes,
    specs_of,
    with_axes_of,
    without_specs,
)
from hotstart.cache.program_text import ProgramText, operation_of
from hotstart.cache.setting_effects import is_known, precisions, without_effects
from hotstart.cache.sharding_text import readable_mesh
from hotstart.cache.signature_differences import Change, ChangeKind, Pair

_SHOWN = 6  # lines of operations

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
_SAME_TYPE = re.compile(r"^% = stablehlo\.convert % : tensor<\w+>$")
_FROM_NUMBER = re.compile(r"^% = stablehlo\.convert % : (?:tensor<\w+>$|\(tensor<[a-z]\w*>\))")
_TYPED_KEY = re.compile(r"^% = sdy\.sharding_constraint % <@empty_mesh, \[.*\]> : tensor<.*xui32>$")
_TYPED = (
    "a random key is typed (`jax.random.key`) and was an array of numbers (`PRNGKey`), or the "
    "other way round"
)
_WEAK = "a number of Python's (weakly typed) became an array, or the other way round"


def code(
    before: ProgramText,
    after: ProgramText,
    pairs: Sequence[Pair],
    signature: set[ChangeKind],
    other_devices: bool,
    other_jax: bool,
    settings: Collection[str],
) -> Iterator[Change]:
    """What is left in the operations."""
    if before.order == after.order:
        if before.meshes != after.meshes and not signature:
            was, now = _meshes(before), _meshes(after)
            text = f"the mesh is {now} and was {was}"
            follows = other_devices or other_jax or bool(settings)
            yield Change("sharding", "the mesh", was, now, text, follows)
        elif not signature and not other_devices and not other_jax and not settings:
            yield _unread("its operations read the same: a large constant or metadata differs")
        return
    if before.lines is None or after.lines is None:
        text = "its operations differ; there are too many of them to be recorded one by one"
        text += _counted(before.operations, after.operations)
        free = _free(signature, pairs, other_devices)
        kinds = _differing(before.operations, after.operations)
        unbidden = free is not None and bool(kinds - free)
        follows = other_jax or bool(settings) or (bool(signature or other_devices) and not unbidden)
        yield Change("code", "the operations", None, None, text, follows)
        return
    gone, new = _only(before, after)
    if not gone and not new:
        text = "the same operations stand in another order or are connected otherwise"
        follows = bool(signature) or other_devices or other_jax
        yield Change("code", "the operations", None, None, text, follows)
        return
    left = without_effects(settings, gone, new)
    if settings and not any(map(_besides_frame, left)):
        text = f"its operations differ as {' and '.join(settings)} brings about"
        yield Change("code", "the operations", _shown(gone), _shown(new), text, follows=True)
        return
    if {*specs_of(before)} & {*specs_of(after)}:  # told already
        left = without_specs(left)
    if before.meshes != after.meshes:
        left = with_axes_of(left, before, after)
    is_weak, left = _weak_numbers(left, pairs, signature)
    if is_weak:
        yield Change("dtype", "a number of Python's", None, None, _WEAK)
    is_typed, left = _typed_keys(left)
    if is_typed:
        yield Change("dtype", "a random key", None, None, _TYPED)
    gone, new = map(_besides_frame, left)
    if gone or new:
        axes = axis_sizes(before, after)
        yield _code(gone, new, pairs, signature, other_devices, other_jax, settings, axes)


def _code(
    gone: Counter[str],
    new: Counter[str],
    pairs: Sequence[Pair],
    signature: set[ChangeKind],
    other_devices: bool,
    other_jax: bool,
    settings: Collection[str],
    axes: Collection[tuple[int, int]],
) -> Change:
    free = _free(signature, pairs, other_devices)
    typed = bool(signature & {"dtype", "shape"})
    kinds = {
        name
        for name in _differing(_kinds(gone), _kinds(new))
        if free is not None and name not in free and not name.startswith("sdy.")
    }
    precise = precisions(gone) != precisions(new)
    constants = constants_differ(gone, new, pairs, signature, axes)
    strange = signature == {"dtype"} and not other_jax and _has_strange_types(gone, new, pairs)
    told = free is not None and (
        bool(kinds) or precise or constants or strange or not (typed or other_devices)
    )
    if typed and not strange:  # of most lines only the types have changed
        gone, new = (_telling(lines, kinds, precise, constants) for lines in (gone, new))
    shown = _shown(gone, new), _shown(new, gone)
    text = "; ".join(
        f"operations are {word}: {lines}"
        for word, lines in (("new", shown[1]), ("gone", shown[0]))
        if lines
    )
    text = text or "its operations have other types"
    follows = other_jax or not told
    if follows:
        text += " (which comes with the above; whether the code changed too does not show)"
    elif unknown := sorted(name for name in settings if not is_known(name)):
        text += f" (what of it is by {' and '.join(unknown)} does not show)"
    return Change("code", "the operations", shown[0] or None, shown[1] or None, text, follows)


def _besides_frame(lines: Counter[str]) -> Counter[str]:
    """Without what a function returns: that is told of the results."""
    return Counter({line: n for line, n in lines.items() if operation_of(line) != "return"})


def _kinds(lines: Counter[str]) -> Counter[str]:
    found: Counter[str] = Counter()
    for line, count in lines.items():
        found[operation_of(line)] += count
    return found


def _weak_numbers(
    lines: tuple[Counter[str], Counter[str]], pairs: Sequence[Pair], signature: set[ChangeKind]
) -> tuple[bool, tuple[Counter[str], Counter[str]]]:
    """Whether a number's type became weak, or no longer is; and the other lines.

    A weakly typed number is converted, if only to its own type.
    """
    counts = [sum(n for line, n in ls.items() if _FROM_NUMBER.match(line)) for ls in lines]
    if counts[0] == counts[1] or not any(map(_SAME_TYPE.match, (*lines[0], *lines[1]))):
        return False, lines
    gone, new = (
        Counter({line: n for line, n in ls.items() if not _SAME_TYPE.match(line)}) for ls in lines
    )
    ranked = any(bool(p.before.shape) != bool(p.after.shape) for p in pairs)
    return not ranked and "dtype" not in signature and "arguments" not in signature, (gone, new)


def _typed_keys(
    lines: tuple[Counter[str], Counter[str]],
) -> tuple[bool, tuple[Counter[str], Counter[str]]]:
    """Whether there are more typed random keys, or fewer; and the other lines.

    JAX leaves the numbers of a typed key where they are, by a constraint without a mesh.
    """
    counts = [sum(n for line, n in ls.items() if _TYPED_KEY.match(line)) for ls in lines]
    if counts[0] == counts[1]:
        return False, lines
    gone, new = (
        Counter({line: n for line, n in ls.items() if not _TYPED_KEY.match(line)}) for ls in lines
    )
    return True, (gone, new)


def _has_strange_types(gone: Counter[str], new: Counter[str], pairs: Sequence[Pair]) -> bool:
    """Whether integers stand for floats or the other way round, which no argument does."""
    if any(_class(p.before.dtype) != _class(p.after.dtype) for p in pairs):
        return False
    known = {_class(p.after.dtype) for p in pairs}
    was, now = (
        {_class(t) for line in lines for t in _TYPE.findall(line) if t != "i1"}
        for lines in (gone, new)
    )
    return bool({"f", "i"} & ((was ^ now) - known))


_TYPE = re.compile(r"tensor<(?:[\d?]+x)*(\w+)>")


def _telling(
    lines: Counter[str], kinds: Collection[str], precise: bool, constants: bool
) -> Counter[str]:
    return Counter(
        {
            line: count
            for line, count in lines.items()
            if operation_of(line) in kinds
            or (precise and "precision = " in line)
            or (CONSTANT.match(line) and (constants or not kinds))
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
    return was - now, now - was


def _meshes(program: ProgramText) -> str:
    return "; ".join(sorted(map(readable_mesh, program.meshes.values()))) or "none"


def _shown(lines: Counter[str], others: Counter[str] | None = None) -> str:
    """The most telling lines: numbers first that are not among the `others`."""
    numbers = {*constants_of(others)} if others is not None else set()

    def interest(item: tuple[str, int]) -> int:
        line = item[0]
        if CONSTANT.match(line) and others is not None:
            return -1 if {*constants_of(Counter([line]))} - numbers else 1
        # What only moves data about is looked at last.
        return int(operation_of(line) in _WITH_SHAPE)

    shown = [
        (f"{count} x " if count > 1 else "") + _plain(line)
        for line, count in sorted(lines.items(), key=interest)[:_SHOWN]
    ]
    if len(lines) > _SHOWN:
        shown.append(f"and {len(lines) - _SHOWN} more")
    return ", ".join(shown)


def _plain(line: str) -> str:
    line = with_plain_number(line.removeprefix("% = ").removeprefix("stablehlo."))
    return f"`{line if len(line) <= 100 else line[:97] + '...'}`"


def _counted(before: Mapping[str, int], after: Mapping[str, int]) -> str:
    changed = sorted(_differing(before, after))
    counts = [f"{n} {before.get(n, 0)} -> {after.get(n, 0)}" for n in changed[:_SHOWN]]
    return f"; by kind: {', '.join(counts)}" if counts else ""
