"""Find `module:function` without importing anything of the user's.

The driver must not run user code: it would initialize JAX there, or fail on what only the
workers have. So packages are walked by path and the function is looked for in the source.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from hotstart.conf.errors import nearest, shown


def entrypoint_problem(entrypoint: str, folder: Path) -> str | None:
    """What keeps `module:function` from being found with `folder` first on the path, or None.

    Reads directories and one source file; imports nothing. The function's name counts as
    found where only a run could tell: no source, `from x import *`, a module `__getattr__`.
    """
    module, colon, function = entrypoint.partition(":")
    if not colon:
        return f"expected module:function, got {shown(entrypoint)}"
    if not all(part.isidentifier() for part in [*module.split("."), function]):
        return f"expected module:function with dotted Python names, got {shown(entrypoint)}"
    locations: Sequence[str] | None = [str(folder), *sys.path]
    spec: ModuleSpec | None = None
    found = ""
    for part in module.split("."):
        if locations is None:
            return f"module {module} cannot be found: {found} is not a package"
        name = f"{found}.{part}" if found else part
        spec = _find(name, locations)
        if spec is None:
            return _not_found(module, name, folder, list(locations))
        locations = spec.submodule_search_locations
        found = name
    return _function_problem(module, function, spec)


def _find(name: str, locations: Sequence[str]) -> ModuleSpec | None:
    # The bare last name keeps PathFinder from asking sys.modules for parents never imported.
    spec = PathFinder.find_spec(name.rpartition(".")[2], list(locations))
    if spec is not None:
        return spec
    for finder in sys.meta_path:  # editable installs have finders of their own
        try:
            spec = finder.find_spec(name, list(locations) if "." in name else None)
        except Exception:  # a foreign finder's bug, or a parent that was never imported
            continue
        if spec is not None:
            return spec
    return None


def _not_found(module: str, name: str, folder: Path, locations: Sequence[str]) -> str:
    missing = "" if name == module else f" (no {name})"
    parent, dot, last = name.rpartition(".")
    near = nearest(last, _modules_in(locations if dot else [str(folder)]))
    if near:
        hint = f"did you mean {parent}{dot}{near}?"
    elif dot:
        hint = f"check the spelling of what follows {parent}"
    else:
        hint = "set working_dir to the folder that holds it"
    return f"module {module} cannot be found in {folder} or on Python's path{missing}; {hint}"


def _modules_in(folders: Sequence[str]) -> list[str]:
    names = []
    for folder in map(Path, folders):
        try:
            names += [p.stem for p in folder.iterdir() if p.suffix == ".py" or p.is_dir()]
        except OSError:
            continue
    return [name for name in names if name.isidentifier()]


def _function_problem(module: str, function: str, spec: ModuleSpec | None) -> str | None:
    origin = spec.origin if spec else None
    if spec is not None and spec.loader is None and origin is None:
        return f"{module} is a folder without __init__.py, so it has no function {function}"
    if origin is None or not origin.endswith(".py"):
        return None
    try:
        tree = ast.parse(Path(origin).read_bytes(), origin)
    except SyntaxError as error:
        return f"{origin}:{error.lineno}: Python cannot parse it: {error.msg}"
    except (OSError, ValueError, RecursionError, MemoryError):
        return None
    names = set(_defined(tree.body))
    if function in names or not names.isdisjoint({"*", "__getattr__"}):
        return None
    near = nearest(function, names)
    hint = f"; did you mean {module}:{near}?" if near else ""
    return f"{origin} defines no {function}{hint}"


def _defined(body: Sequence[ast.stmt]) -> Iterator[str]:
    """Names that a module's statements bind at its top level."""
    pending: list[ast.AST] = list(body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
            # What a function body binds is its own, except for names that it declares global.
            for inner in ast.walk(node):
                if isinstance(inner, ast.Global):
                    yield from inner.names
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                yield alias.asname or alias.name.partition(".")[0]
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        pending.extend(ast.iter_child_nodes(node))
