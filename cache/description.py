"""What a key was made of, so that people can read it and two of them can be compared.

JAX's key is a SHA-256 over eight components. Of each its own digest is kept, which tells whether
it differs, and what it was made from, which tells how. A description goes with its entry, in the
header, and with the record of an attempt that compiled the program.

Its text is the base64 of zlib-compressed JSON:

    v           1; readers leave what they don't know
    complete    whether the components together do give the key: if not, it has more of them
    digests     by component, in hex
    versions    jax, jaxlib, backend, backend version
    flags       by source (XLA_FLAGS, LIBTPU_INIT_ARGS, arguments): those that are in the key
    outside     flags that were given and are not in the key
    options     XLA's compile options by field
    devices     those that the program runs on, and how many there are in all
    compression, hook
    settings    JAX's settings that enter into tracing
    program     see program_text.py; null where it could not be read
    session     the run and attempt in which the key was made, or else a mark of the process; ""
                in descriptions by an older hotstart, which also lack overriding options of no value
"""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from hotstart.cache.program_text import ProgramText, Value

COMPONENTS = (
    "computation",
    "jaxlib version",
    "backend version",
    "XLA flags",
    "compile options",
    "devices",
    "compression",
    "custom hook",
)
MAX_TEXT = 20_000  # characters: the header of an entry has room for it
_MAX_JSON = 4 << 20
_MAX_COUNT = 1_000_000  # of one operation in a program
_VERSION = 1


@dataclass(frozen=True)
class Description:
    """What one key was made of; see the module."""

    complete: bool = False
    digests: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    flags: Mapping[str, list[str]] = field(default_factory=dict)
    outside: list[str] = field(default_factory=list)
    options: Mapping[str, str] = field(default_factory=dict)
    devices: Mapping[str, str] = field(default_factory=dict)
    compression: str = ""
    hook: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)
    program: ProgramText | None = None
    session: str = ""


def to_text(description: Description) -> str:
    """The text, of at most `MAX_TEXT` characters: what is largest is left out first."""
    program = description.program
    for smaller in (
        lambda: description,
        lambda: _with(description, program, lines=None),
        lambda: _with(description, program, lines=None, arguments=_plain(program)),
        lambda: replace(description, program=None),
        lambda: replace(description, program=None, options={}),
    ):
        form = {"v": _VERSION, **asdict(smaller())}
        plain = json.dumps(form, separators=(",", ":")).encode()
        text = base64.b64encode(zlib.compress(plain, 6)).decode()
        if len(text) <= MAX_TEXT and len(plain) <= _MAX_JSON:
            return text
    return ""


def from_text(text: str) -> Description | None:
    """The description in a text; None where there is none that this hotstart can read."""
    if not text or len(text) > MAX_TEXT:
        return None
    try:
        unpack = zlib.decompressobj()
        form = json.loads(unpack.decompress(base64.b64decode(text, validate=True), _MAX_JSON))
        return _description(form)
    except (ArithmeticError, LookupError, RecursionError, TypeError, ValueError, AttributeError):
        return None
    except (binascii.Error, zlib.error):
        return None


def _description(form: dict[str, Any]) -> Description | None:
    if form["v"] != _VERSION:
        return None
    program = form.get("program")
    return Description(
        complete=form["complete"] is True,
        digests=_texts(form["digests"]),
        versions=_texts(form["versions"]),
        flags={str(k): [str(f) for f in v] for k, v in form["flags"].items()},
        outside=[str(f) for f in form["outside"]],
        options=_texts(form["options"]),
        devices=_texts(form["devices"]),
        compression=str(form["compression"]),
        hook=str(form["hook"]),
        settings=_texts(form["settings"]),
        program=None if program is None else _program(program),
        session=str(form.get("session", "")),
    )


def _program(form: dict[str, Any]) -> ProgramText:
    lines = form["lines"]
    return ProgramText(
        arguments=tuple(map(_value, form["arguments"])),
        results=tuple(map(_value, form["results"])),
        meshes=_texts(form["meshes"]),
        lines=None if lines is None else _counts(lines),
        operations=_counts(form["operations"]),
        order=str(form["order"]),
    )


def _value(form: dict[str, Any]) -> Value:
    return Value(str(form["type"]), _texts(form["attributes"]), str(form["name"]))


def _texts(form: dict[str, Any]) -> dict[str, str]:
    return {str(k): str(v) for k, v in form.items()}


def _counts(form: dict[str, Any]) -> dict[str, int]:
    counts = {str(k): int(v) for k, v in form.items()}
    if not all(0 <= count <= _MAX_COUNT for count in counts.values()):
        raise ValueError("no count of operations")
    return counts


def _with(description: Description, program: ProgramText | None, **parts: Any) -> Description:
    return replace(description, program=replace(program, **parts) if program else None)


def _plain(program: ProgramText | None) -> tuple[Value, ...]:
    """The arguments without their names, of which large programs have many long ones."""
    return tuple(replace(a, name="") for a in program.arguments) if program else ()
