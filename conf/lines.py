"""YAML text to plain values, with the line that each key stands on.

Scalars stay the text that was written (only a plain `null`, `~` or nothing is None): the
schema knows the types, so `mode: off` is not False, `NO: 010` in `env` is not 8, and an
argument `1e-3` reaches the script as `1e-3`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import yaml

from hotstart.conf.errors import ConfigError, Origin, dotted, shown

Value = str | None | list["Value"] | dict[str, "Value"]
KeyPath = tuple[str, ...]

_CORE = "tag:yaml.org,2002:"
_SCALAR_TAGS = {
    _CORE + tag for tag in ("str", "int", "float", "bool", "null", "timestamp", "merge", "value")
}
# A job file has tens of values; aliases of aliases can make billions of them.
_MAX_VALUES = 10_000


@dataclass
class Document:
    """The value of a YAML text and the line, from 1, of each key in it."""

    value: Value = None
    lines: dict[KeyPath, int] = field(default_factory=dict)


def at_line(origin: Origin, line: int) -> Origin:
    """The place in a file: `job.yaml:7`; settings from elsewhere have no lines."""
    if origin.file is None:
        return origin
    return Origin(f"{origin.label}:{line}", f"{origin.where}:{line}", origin.file, line)


def read_yaml(text: str, origin: Origin, key: str | None = None) -> Document:
    """Read one YAML document; raises `ConfigError` at `origin`, about `key` where given."""
    try:
        node = yaml.SafeLoader(text).get_single_node()
        if node is None:
            return Document()
        return _Reader(origin, key).read(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = at_line(origin, mark.line + 1) if mark else origin
        problem = " ".join((error.problem or error.context or "a syntax error").split())
        raise place.error(f"not valid YAML: {problem}", key=key) from error
    except yaml.reader.ReaderError as error:
        place = at_line(origin, text.count("\n", 0, error.position) + 1)
        code = error.character if isinstance(error.character, int) else ord(error.character)
        raise place.error(
            f"not valid YAML: the character U+{code:04X} is not allowed", key=key
        ) from error
    except yaml.YAMLError as error:
        raise origin.error("not valid YAML", key=key) from error
    except RecursionError as error:
        raise origin.error("not usable YAML: nested too deeply", key=key) from error


class _Reader:
    def __init__(self, origin: Origin, key: str | None) -> None:
        self._origin = origin
        self._key = key
        self._document = Document()
        self._count = 0
        self._open: list[yaml.Node] = []

    def read(self, node: yaml.Node) -> Document:
        self._document.value = self._value(node, ())
        return self._document

    def _error(self, node: yaml.Node, text: str, path: KeyPath = ()) -> ConfigError:
        place = at_line(self._origin, node.start_mark.line + 1)
        return place.error(text, key=self._key or (dotted(path) if path else None))

    def _value(self, node: yaml.Node, path: KeyPath) -> Value:
        self._count += 1
        if self._count > _MAX_VALUES:
            raise self._error(node, f"not a job file: more than {_MAX_VALUES} values")
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        if node in self._open:
            raise self._error(node, "an alias that contains itself", path)
        self._open.append(node)
        try:
            if isinstance(node, yaml.MappingNode) and node.tag == _CORE + "map":
                return self._mapping(node, path)
            if isinstance(node, yaml.SequenceNode) and node.tag == _CORE + "seq":
                return [self._value(child, (*path, str(i))) for i, child in enumerate(node.value)]
        finally:
            self._open.pop()
        raise self._error(node, f"the YAML tag {shown(node.tag)} is not allowed", path)

    def _scalar(self, node: yaml.ScalarNode, path: KeyPath) -> str | None:
        if node.tag not in _SCALAR_TAGS:
            raise self._error(node, f"the YAML tag {shown(node.tag)} is not allowed", path)
        if node.tag == _CORE + "null":
            return None
        return self._text(node, path)

    def _text(self, node: yaml.ScalarNode, path: KeyPath) -> str:
        text: str = node.value
        if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
            raise self._error(node, f"{shown(text)} holds a character that no text may hold", path)
        return text

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Value]:
        own: dict[str, Value] = {}
        merged: dict[str, Value] = {}
        first_line: dict[str, int] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise self._error(key_node, "a key must be a plain word", path)
            if key_node.tag == _CORE + "merge":
                merged = self._merge(value_node, path) | merged
                continue
            name = self._text(key_node, path)
            line = key_node.start_mark.line + 1
            here = (*path, name)
            if name in first_line:
                text = f"{dotted(here)} is given twice, first on line {first_line[name]}"
                raise at_line(self._origin, line).error(text, key=dotted(here), named=False)
            first_line[name] = line
            own[name] = self._value(value_node, here)
            self._document.lines[here] = line
        return merged | own

    def _merge(self, node: yaml.Node, path: KeyPath) -> dict[str, Value]:
        sources = node.value if isinstance(node, yaml.SequenceNode) else [node]
        merged: dict[str, Value] = {}
        for source in sources:
            value = self._value(source, path)
            if not isinstance(value, dict):
                raise self._error(node, "<< takes a mapping or a list of mappings", path)
            merged = value | merged
        return merged
