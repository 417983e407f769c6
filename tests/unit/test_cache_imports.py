"""What imports what: the layers, the costly packages, and JAX's and Ray's internals."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hotstart.cache import errors

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
LAYERS = ("cache", "conf", "launcher")
COSTLY = ("ray", "omegaconf", "jax", "gcsfs", "fsspec", "aiohttp", "rich", "click")


def modules(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    """The dotted names that a module imports anywhere in it, absolutely."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def importers(package: str, *folders: str) -> set[str]:
    """The modules that import a package or something in it."""
    return {
        str(path.relative_to(ROOT))
        for path in modules(*folders)
        if any(f"{name}.".startswith(f"{package}.") for name in imported(path))
    }


@pytest.mark.parametrize("package", LAYERS)
def test_no_module_imports_a_layer_by_its_bare_name(package):
    assert importers(package, *LAYERS, "tests", "examples") == set()


@pytest.mark.parametrize(
    ("package", "folder"),
    [
        ("hotstart.launcher", "cache"),
        ("hotstart.conf", "cache"),
        ("hotstart.launcher", "conf"),
        ("ray", "cache"),
        ("ray", "conf"),
        ("omegaconf", "cache"),
    ],
)
def test_no_import_goes_back(package, folder):
    assert importers(package, folder) == set()


def test_jax_internals_are_imported_in_jaxlink_only():
    assert importers("jax._src", *LAYERS) == {"cache/jaxlink.py"}
    assert importers("jaxlib", *LAYERS) <= {"cache/jaxlink.py"}


def test_ray_internals_are_imported_nowhere():
    assert importers("ray._private", *LAYERS) == set()
    assert importers("ray._raylet", *LAYERS) == set()


def test_gcsfs_is_imported_in_one_module():
    assert importers("gcsfs", *LAYERS) == {"cache/gcs_client.py"}
    assert importers("fsspec", *LAYERS) == set()


def loaded_after(code: str) -> set[str]:
    """Top-level packages, and hotstart's own, that a fresh process has loaded after `code`."""
    report = "import sys; print(*(n for n in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_import_of_the_cache_loads_nothing_costly_and_no_other_layer():
    loaded = loaded_after("import hotstart.cache")

    assert loaded.isdisjoint({*COSTLY, "hotstart.conf", "hotstart.launcher"})


def test_enable_with_a_directory_loads_jax_and_nothing_else_costly(tmp_path):
    loaded = loaded_after(
        f"import hotstart.cache; hotstart.cache.enable({str(tmp_path)!r}, node_dir=None)"
    )

    assert "jax" in loaded
    assert loaded.isdisjoint({*COSTLY, "hotstart.conf", "hotstart.launcher"} - {"jax"})


def test_enable_with_a_bucket_loads_neither_ray_nor_omegaconf(tmp_path):
    loaded = loaded_after(
        f"import hotstart.cache; hotstart.cache.enable('gs://b/p', node_dir={str(tmp_path)!r})"
    )

    in_background = {"jax", "gcsfs", "fsspec", "aiohttp"}
    assert loaded.isdisjoint({*COSTLY, "hotstart.conf", "hotstart.launcher"} - in_background)


def test_exception_tree_drawn_in_the_docstring_is_that_of_the_classes():
    drawn: dict[str, str | None] = {}
    parents: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"^(?P<branch>[ |']*(?:[|'] ?-|\|-|'-)? ?)(?P<name>[A-Z]\w+)(  |$)", line)
        if found is None or (not parents and found["name"] != "CacheError"):
            continue
        depth = len(found["branch"])
        while parents and parents[-1][0] >= depth:
            parents.pop()
        drawn[found["name"]] = parents[-1][1] if parents else None
        parents.append((depth, found["name"]))

    classes = {
        name: value.__bases__[0].__name__ if value is not errors.CacheError else None
        for name, value in vars(errors).items()
        if isinstance(value, type)
    }
    assert drawn == classes


def test_invalid_location_is_a_value_error_too():
    assert issubclass(errors.InvalidLocation, ValueError)
