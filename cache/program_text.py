"""A program as MLIR prints it, taken apart: its arguments, results, meshes and operations.

Works on text, so it needs no JAX and compares programs of different versions. It reads what JAX
0.10 to 0.12 lower to: one module, a public function `main`, one operation a line.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

_MAIN = re.compile(r"^\s*func\.func public @main\(")
_MESH = re.compile(r"^\s*sdy\.mesh @(\S+) = <(.*?)>(?:\s|$)")
_VALUE = re.compile(r"%[\w.]+(?::\d+)?(?:#\d+)?")
_OPERATION = re.compile(r'^(?:% = )?(?:"([\w.]+)"|([\w]+(?:\.[\w.]+)?))')
_NUMBERED = re.compile(r"(@[A-Za-z_]\w*?)_\d+\b")
_RESULTS = re.compile(r"^%[\w.]+(?::\d+)?(?:, %[\w.]+(?::\d+)?)* = ")
_TENSOR = re.compile(r"tensor<((?:[\d?]+x)*)([^,>]*(?:<[^>]*>)?)[^>]*>")
_MAX_LINE = 240


@dataclass(frozen=True)
class Value:
    """An argument or a result of `main`.

    type: as MLIR prints it, `tensor<8x16xf32>`.
    name: what the program calls an argument; "" where that is not known.
    attributes: donation, sharding, layout and the like, as MLIR prints them.
    """

    type: str
    attributes: Mapping[str, str] = field(default_factory=dict)
    name: str = ""

    @property
    def shape(self) -> tuple[str, ...] | None:
        """The dimensions; None where it is no tensor."""
        match = _TENSOR.fullmatch(self.type)
        return None if match is None else tuple(d for d in match[1].split("x") if d)

    @property
    def dtype(self) -> str:
        """The type of an element; the whole type where it is no tensor."""
        match = _TENSOR.fullmatch(self.type)
        return self.type if match is None else match[2]


@dataclass(frozen=True)
class ProgramText:
    """What is kept of a program.

    meshes: its meshes by name.
    lines: how often each operation is there, with its attributes and types but without the
        names of values. None where that took too much room.
    operations: how often each kind of operation is there.
    order: SHA-256, in hex, of all lines in order.
    """

    arguments: tuple[Value, ...] = ()
    results: tuple[Value, ...] = ()
    meshes: Mapping[str, str] = field(default_factory=dict)
    lines: Mapping[str, int] | None = None
    operations: Mapping[str, int] = field(default_factory=dict)
    order: str = ""


def read_program(text: str, names: Sequence[str] = ()) -> ProgramText:
    """Take a module's text apart. `names` are those of its arguments, the first ones at least."""
    arguments: tuple[Value, ...] = ()
    results: tuple[Value, ...] = ()
    meshes: dict[str, str] = {}
    lines: Counter[str] = Counter()
    operations: Counter[str] = Counter()
    order = hashlib.sha256()
    for line in text.splitlines():
        if match := _MESH.match(line):
            meshes[match[1]] = match[2]
        elif match := _MAIN.match(line):
            arguments, results = _signature(line[match.end() :], names)
        elif (normal := _normalized(line)) is not None:
            order.update(normal.encode() + b"\n")
            if name := operation_of(normal):
                lines[_shortened(normal)] += 1
                operations[name] += 1
    return ProgramText(arguments, results, meshes, dict(lines), dict(operations), order.hexdigest())


def operation_of(line: str) -> str:
    """The kind of a line's operation, "" for what is no operation."""
    match = _OPERATION.match(line)
    name = (match[1] or match[2]) if match else ""
    # What stands between the regions of one operation.
    return "" if name in ("cond", "do", "reducer", "else") else name


def _normalized(line: str) -> str | None:
    line = line.strip()
    if not line or line.startswith(("module", "}")) and not line.startswith("} do"):
        return None
    line = _RESULTS.sub("% = ", line)
    line = _VALUE.sub("%", line)
    # Functions are numbered in the order in which they were lowered.
    return _NUMBERED.sub(r"\1", line)


def _shortened(line: str) -> str:
    if len(line) <= _MAX_LINE:
        return line
    return f"{line[:_MAX_LINE]}... (SHA-256 {hashlib.sha256(line.encode()).hexdigest()[:12]})"


def _signature(rest: str, names: Sequence[str]) -> tuple[tuple[Value, ...], tuple[Value, ...]]:
    """What follows `@main(`: arguments, an arrow, results, attributes of the function."""
    inside, after = _until_closed(rest)
    arguments = tuple(
        _value(part.partition(":")[2].strip(), names[i] if i < len(names) else "")
        for i, part in enumerate(_parts(inside))
    )
    after = after.strip()
    if not after.startswith("->"):
        return arguments, ()
    after = after[2:].strip()
    if after.startswith("("):
        inside, _ = _until_closed(after[1:])
        return arguments, tuple(_value(part) for part in _parts(inside))
    return arguments, (Value(after.removesuffix("{").partition(" attributes ")[0].strip()),)


def _value(text: str, name: str = "") -> Value:
    kind, brace, attributes = text.partition(" {")
    if not brace:
        return Value(text.strip(), {}, name)
    found = {}
    for part in _parts(attributes.rstrip().removesuffix("}")):
        key, _, value = part.partition(" = ")
        found[key.strip()] = value.strip()
    return Value(kind.strip(), found, name)


_SPECIAL = re.compile(r'"(?:[^"\\]|\\.)*"|->|[()\[\]{}<>,]')


def _characters(text: str) -> Iterator[tuple[int, str, int]]:
    """Brackets and commas outside of strings: position, character, depth of brackets after it."""
    depth = 0
    for match in _SPECIAL.finditer(text):
        character = match[0]
        if len(character) > 1:
            continue
        depth += 1 if character in "([{<" else -1 if character in ")]}>" else 0
        yield match.start(), character, depth


def _until_closed(text: str) -> tuple[str, str]:
    for i, _, depth in _characters(text):
        if depth < 0:
            return text[:i], text[i + 1 :]
    return text, ""


def _parts(text: str) -> list[str]:
    """Split at the commas that stand in no bracket and no string."""
    parts, start = [], 0
    for i, character, depth in _characters(text):
        if character == "," and depth == 0:
            parts.append(text[start:i].strip())
            start = i + 1
    parts.append(text[start:].strip())
    return [part for part in parts if part]
