"""An entrypoint is found, or not, without importing anything of the user's."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from hotstart.conf.entrypoint import entrypoint_problem

pytestmark = pytest.mark.unit


def write(folder: Path, files: dict[str, str]) -> None:
    """Files by their paths below `folder`."""
    for name, source in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)


@pytest.mark.parametrize(
    "source",
    [
        "def main(): ...",
        "async def main(): ...",
        "class main: ...",
        "main = print",
        "main: object = print",
        "a, (main, *b) = 1, (2, 3)",
        "from os import path as main",
        "import main",
        "from os.path import *",
        "def __getattr__(name): ...",
        "if True:\n    def main(): ...",
        "try:\n    from fast import main\nexcept ImportError:\n    pass",
        "def install():\n    global main\n    main = 1",
    ],
)
def test_entrypoint_function_bound_at_top_level_is_found(tmp_path: Path, source: str) -> None:
    write(tmp_path, {"program.py": source})
    assert entrypoint_problem("program:main", tmp_path) is None


@pytest.mark.parametrize("source", ["def f():\n    main = 1", "class A:\n    def main(self): ..."])
def test_entrypoint_function_bound_elsewhere_is_not_found(tmp_path: Path, source: str) -> None:
    write(tmp_path, {"program.py": source})
    expected = f"{tmp_path}/program.py defines no main"
    assert entrypoint_problem("program:main", tmp_path) == expected


def test_entrypoint_in_packages_is_found_without_importing(tmp_path: Path) -> None:
    raises = "raise SystemExit('imported')\n"
    write(tmp_path, {"pkg/__init__.py": raises, "pkg/sub/__init__.py": raises})
    write(tmp_path, {"pkg/sub/mod.py": raises + "def main(): ...\n"})
    assert entrypoint_problem("pkg.sub.mod:main", tmp_path) is None
    assert "pkg" not in sys.modules


def test_entrypoint_in_folders_without_init_is_found(tmp_path: Path) -> None:
    write(tmp_path, {"space/inner/mod.py": "def main(): ...\n"})
    assert entrypoint_problem("space.inner.mod:main", tmp_path) is None


def test_entrypoint_of_a_package_is_looked_for_in_its_init(tmp_path: Path) -> None:
    write(tmp_path, {"pkg/__init__.py": "def main(): ...\n"})
    assert entrypoint_problem("pkg:main", tmp_path) is None


def test_entrypoint_folder_comes_before_an_installed_module(tmp_path: Path) -> None:
    write(tmp_path, {"json.py": "def main(): ...\n"})
    assert entrypoint_problem("json:main", tmp_path) is None


def test_entrypoint_of_an_editable_install_is_found(tmp_path: Path) -> None:
    assert entrypoint_problem("hotstart.conf.load:load_job", tmp_path) is None


def test_entrypoint_folder_as_module_has_no_function(tmp_path: Path) -> None:
    (tmp_path / "space").mkdir()
    expected = "space is a folder without __init__.py, so it has no function main"
    assert entrypoint_problem("space:main", tmp_path) == expected


@pytest.mark.parametrize(
    ("entrypoint", "expected"),
    [
        ("train.x:main", "module train.x cannot be found: train is not a package"),
        (
            "absent_module:main",
            "module absent_module cannot be found in {folder} or on Python's path; "
            "set working_dir to the folder that holds it",
        ),
        (
            "pkg.modl:main",
            "module pkg.modl cannot be found in {folder} or on Python's path; "
            "did you mean pkg.mod?",
        ),
        (
            "pkg.other.deep:main",
            "module pkg.other.deep cannot be found in {folder} or on Python's path "
            "(no pkg.other); check the spelling of what follows pkg",
        ),
    ],
)
def test_entrypoint_module_missing_says_where_it_was_looked_for(
    tmp_path: Path, entrypoint: str, expected: str
) -> None:
    write(tmp_path, {"train.py": "def main(): ...\n", "pkg/__init__.py": "", "pkg/mod.py": ""})
    assert entrypoint_problem(entrypoint, tmp_path) == expected.replace("{folder}", str(tmp_path))


@pytest.mark.parametrize("entrypoint", [":", "a:", ":f", ".a:f", "a..b:f", "a:b:c", "a:b.c"])
def test_entrypoint_malformed_is_refused(tmp_path: Path, entrypoint: str) -> None:
    expected = f"expected module:function with dotted Python names, got {entrypoint!r}"
    assert entrypoint_problem(entrypoint, tmp_path) == expected
