"""What a script imports before it does anything else.

Up to its first statement that is no import, importing the same modules ahead, in the same order,
changes nothing but the time. A module of the program's own may do what later imports go by, so the
first of these ends it too. Of `from a import b` only `a` is named: `a.b` may be a module and
something else that `a` has by that name.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import PathFinder
from pathlib import Path


def first_imports(script: str | None, path: Sequence[str]) -> tuple[str, ...]:
    """The names in order; none where the script can't be read or parsed. Imports nothing.

    path: where the program's own modules are.
    """
    if script is None:
        return ()
    try:
        statements = ast.parse(Path(script).read_bytes(), script).body
    except (OSError, ValueError, SyntaxError, RecursionError, MemoryError):
        return ()
    names: dict[str, None] = {}
    for statement in statements:
        match statement:
            case ast.Expr(value=ast.Constant()) | ast.ImportFrom(module="__future__"):
                continue
            case ast.Import() | ast.ImportFrom(level=0):
                found = list(_names_in(statement))
            case _:
                break
        if any(is_own(name.partition(".")[0], path) for name in found):
            break
        names |= dict.fromkeys(found)
    return tuple(names)


def _names_in(statement: ast.Import | ast.ImportFrom) -> Iterator[str]:
    if isinstance(statement, ast.Import):
        yield from (alias.name for alias in statement.names)
        return
    assert statement.module is not None  # of level 0
    yield statement.module


def is_own(name: str, path: Sequence[str]) -> bool:
    """Whether the program has a top-level module of its own by this name, where its `path` is."""
    found = PathFinder.find_spec(name, list(path))
    for folder in path:
        sys.path_importer_cache.pop(folder, None)
    return found is not None and found.loader is not None  # a folder without code gives way
