"""The schema as a tree of keys, and layers of a job file as settings of those keys."""

from __future__ import annotations

import contextlib
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from typing import Any, Literal

from hotstart.conf.errors import ConfigError, Origin, dotted, nearest, shown
from hotstart.conf.lines import KeyPath, Value, read_yaml
from hotstart.conf.schema import JobConfig

ENVIRONMENT_PREFIX = "HOTSTART_JOB__"
_RANGE = re.compile(r"\s*([0-9]{1,9})\s*\.\.\s*([0-9]{1,9})\s*")
_EXPECTED = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
_BOOLEANS = dict.fromkeys(("true", "yes", "on", "1"), True) | dict.fromkeys(
    ("false", "no", "off", "0"), False
)


@dataclass(frozen=True)
class Key:
    """One key of the schema; `type` is a section's dataclass or the type of its values."""

    path: KeyPath
    kind: Literal["scalar", "list", "mapping", "section"]
    type: type
    optional: bool
    bounds: Mapping[str, Any]


@dataclass(frozen=True)
class Setting:
    """One value for one key from one place, of the key's type or text with `${...}` in it.

    In a mapping each item is a setting of its own, and `item` is its name.
    """

    key: Key
    value: Any
    origin: Origin
    item: str | None = None

    @property
    def path(self) -> KeyPath:
        return self.key.path if self.item is None else (*self.key.path, self.item)


@cache
def keys_of(section: type, prefix: KeyPath = ()) -> dict[str, Key]:
    """The keys of a section's dataclass by name, in the order of the schema."""
    hints = typing.get_type_hints(section)
    return {
        item.name: _key((*prefix, item.name), hints[item.name], item.metadata)
        for item in fields(section)
    }


def _key(path: KeyPath, hint: Any, bounds: Mapping[str, Any]) -> Key:
    if is_dataclass(hint):
        return Key(path, "section", typing.cast(type, hint), False, bounds)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is list:
        return Key(path, "list", arguments[0], False, bounds)
    if origin is dict:
        return Key(path, "mapping", arguments[1], False, bounds)
    if origin is types.UnionType:
        return Key(path, "scalar", arguments[0], True, bounds)
    return Key(path, "scalar", hint, False, bounds)


def leaf_keys(section: type = JobConfig, prefix: KeyPath = ()) -> Iterator[Key]:
    """All keys of the schema that hold values, sections walked through."""
    for key in keys_of(section, prefix).values():
        if key.kind == "section":
            yield from leaf_keys(key.type, key.path)
        else:
            yield key


def settings_of(
    tree: dict[str, Value],
    origin_of: Callable[[KeyPath], Origin],
    section: type = JobConfig,
    prefix: KeyPath = (),
) -> Iterator[Setting]:
    """The settings in a tree of plain values; raises `ConfigError` on what the schema lacks."""
    every = keys_of(section, prefix)
    known = {name: key for name, key in every.items() if "part_of" not in key.bounds}
    for name, value in tree.items():
        path = (*prefix, name)
        origin = origin_of(path)
        key = known.get(name)
        if key is None:
            raise _unknown(path, known, origin)
        if path == ("workers",):
            least, value = _least_and_most(value, origin)
            yield Setting(every["workers_min"], least, origin)
        if key.kind == "section":
            if isinstance(value, dict):
                yield from settings_of(value, origin_of, key.type, path)
            elif value is not None:
                names = ", ".join(keys_of(key.type, path))
                text = f"expected a mapping of {names}; got {shown(value)}"
                raise origin.error(text, key=dotted(path))
        elif key.kind == "mapping":
            yield from _items(key, value, origin_of)
        elif key.kind == "list":
            yield from _list(key, value, origin)
        elif value is None and (key.optional or "computed" in key.bounds):
            yield Setting(key, None, origin)
        else:
            yield Setting(key, _convert(key, path, value, origin), origin)


def _least_and_most(value: Value, origin: Origin) -> tuple[int | None, Value]:
    """What `workers` says of the fewest workers, None where of one number only, and of the most."""
    if isinstance(value, str) and (match := _RANGE.fullmatch(value)):
        return int(match[1]), match[2]
    if not isinstance(value, dict) or not value.keys() & {"min", "max"}:
        return None, value
    text = {name: str(value.get(name)) for name in ("min", "max")}
    if value.keys() != text.keys() or not all(re.fullmatch("[0-9]{1,9}", t) for t in text.values()):
        hint = "expected a whole number, {min: 2, max: 8} or 2..8"
        raise origin.error(f"{hint}; got {shown_mapping(value)}", key="workers")
    return int(text["min"]), text["max"]


def shown_mapping(value: dict[str, Value]) -> str:
    """A small mapping as a person would write it."""
    return "{" + ", ".join(f"{k}: {shown(v)}" for k, v in value.items()) + "}"


def _items(key: Key, value: Value, origin_of: Callable[[KeyPath], Origin]) -> Iterator[Setting]:
    if value is not None and not isinstance(value, dict):
        origin = origin_of(key.path)
        raise origin.error(f"expected a mapping, got {shown(value)}", key=dotted(key.path))
    for name, item in (value or {}).items():
        path = (*key.path, name)
        origin = origin_of(path)
        yield Setting(key, _convert(key, path, item, origin), origin, name)


def _list(key: Key, value: Value, origin: Origin) -> Iterator[Setting]:
    if value is not None and not isinstance(value, list):
        raise origin.error(f"expected a list, got {shown(value)}", key=dotted(key.path))
    items = [
        _convert(key, (*key.path[:-1], f"{key.path[-1]}[{index}]"), item, origin)
        for index, item in enumerate(value or ())
    ]
    yield Setting(key, items, origin)


def _convert(key: Key, path: KeyPath, value: Value, origin: Origin) -> Any:
    """The value in the key's type; text with an interpolation stays text until it is resolved."""
    if isinstance(value, str) and value != "???":  # OmegaConf's mark of a missing value
        if key.type is str or "${" in value:
            return value
        if key.type is bool and value.lower() in _BOOLEANS:
            return _BOOLEANS[value.lower()]
        if key.type is not bool:
            with contextlib.suppress(ValueError):
                return key.type(value)
    raise origin.error(f"expected {_EXPECTED[key.type]}, got {shown(value)}", key=dotted(path))


def expected(key: Key) -> str:
    """What a key takes, in words."""
    return _EXPECTED[key.type]


def _unknown(path: KeyPath, known: Mapping[str, Key], origin: Origin) -> ConfigError:
    prefix, name = path[:-1], path[-1]
    every = {dotted(key.path): key for key in leaf_keys() if "part_of" not in key.bounds}
    if "." in name and dotted(path) in every:
        nested = f"{': {'.join(name.split('.'))}: ...{'}' * name.count('.')}"
        text = f"unknown key {shown(name)}; nest it: {nested}"
        return origin.error(text, key=dotted(path), named=False)
    elsewhere = next((full for full, key in every.items() if key.path[-1] == name), None)
    near = None if elsewhere else nearest(name, known)
    if near:
        hint = f"; did you mean {dotted((*prefix, near))}?"
    else:
        hint = f"; did you mean {elsewhere}?" if elsewhere else "."
    valid = f"Valid keys{f' of {dotted(prefix)}' if prefix else ''}: {', '.join(known)}"
    text = f"unknown key {dotted(path)}{hint} {valid}"
    return origin.error(text, key=dotted(path), named=False)


def environment_settings(environ: Mapping[str, str]) -> Iterator[Setting]:
    """Settings of the environment: `HOTSTART_JOB__CACHE__LOCATION=...`, values in YAML."""
    for variable in sorted(environ):
        if variable.startswith(ENVIRONMENT_PREFIX):
            label = f"environment {variable}"
            names = variable[len(ENVIRONMENT_PREFIX) :].split("__")
            yield from _one(names, "__", environ[variable], Origin(label, label))


def command_line_settings(overrides: typing.Iterable[str]) -> Iterator[Setting]:
    """Settings of the command line: `a.b=c`, values in YAML."""
    origin = Origin("command line", "command line")
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals:
            raise origin.error(f"expected key=value, got {shown(override)}")
        yield from _one(name.strip().split("."), ".", text, origin)


def _one(names: list[str], separator: str, text: str, origin: Origin) -> Iterator[Setting]:
    path = _schema_path(names, separator)
    value = read_yaml(text, origin, key=dotted(path)).value
    for name in reversed(path[1:]):
        value = {name: value}
    return settings_of({path[0]: value}, lambda _: origin)


def _schema_path(names: list[str], separator: str) -> KeyPath:
    """Key names as the schema spells them; what follows a mapping's name is one item's name."""
    fold = separator == "__"  # environment variables are written in upper case
    path: KeyPath = ()
    section: type | None = JobConfig
    for index, name in enumerate(names):
        spelled = name.lower() if fold else name
        key = keys_of(section, path).get(spelled) if section else None
        path = (*path, spelled)
        if key is not None and key.kind == "mapping" and names[index + 1 :]:
            return (*path, separator.join(names[index + 1 :]))
        section = key.type if key is not None and key.kind == "section" else None
    return path
