"""What a worker leaves for the processes that it spawns, and what those do with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hotstart.cache.children import SETTINGS_VARIABLE, offer, withdraw
from hotstart.cache.config import CacheConfig
from hotstart.cache.keyring import create_key_file, load_keyring
from hotstart.cache.signing import Keyring

pytestmark = pytest.mark.unit

CONFIG = CacheConfig("/a/cache", strict=True, require_warm=True)


def offered(path: str | None = None) -> dict[str, str]:
    """An environment with an offer, where `path` was PYTHONPATH."""
    environ = dict(os.environ)
    environ.pop("PYTHONPATH", None)
    if path is not None:
        environ["PYTHONPATH"] = path
    assert offer(CONFIG, Keyring(), environ)
    return environ


def run(code: str, environ: dict[str, str], *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *options, "-c", code],
        env=environ,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


FACTS = """
import json, sys
print(json.dumps({
    "waits": [type(f).__name__ for f in sys.meta_path].count("_AfterJax"),
    "hotstart": [n for n in sys.modules if n.startswith("hotstart.")],
    "path": [p for p in sys.path if "in_children" in p],
}))
"""


def test_child_without_jax_has_one_finder_more_and_nothing_else() -> None:
    child = run(FACTS, offered())
    assert json.loads(child.stdout) == {"waits": 1, "hotstart": [], "path": []}, child.stderr


def test_child_whose_settings_were_taken_away_is_as_it_would_be() -> None:
    environ = offered()
    del environ[SETTINGS_VARIABLE]
    assert json.loads(run(FACTS, environ).stdout) == {"waits": 0, "hotstart": [], "path": []}


def test_child_in_isolated_mode_sees_nothing_of_it() -> None:
    child = run(FACTS, offered(), "-I")
    assert json.loads(child.stdout) == {"waits": 0, "hotstart": [], "path": []}


def test_child_with_a_sitecustomize_of_its_own_runs_that_too(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.mine = __file__\n")
    code = "import sys, sitecustomize; print(sys.mine == sitecustomize.__file__); " + FACTS
    first, second = run(code, offered(str(tmp_path))).stdout.strip().splitlines()
    assert first == "True"
    assert json.loads(second)["waits"] == 1


def test_child_without_a_usable_hotstart_runs_as_if_nothing_were_there(tmp_path: Path) -> None:
    (tmp_path / "jax").mkdir()
    (tmp_path / "jax" / "__init__.py").write_text("NAME = 'a jax'\n")
    code = "import sys; sys.modules['hotstart'] = None; import jax; print(jax.NAME)"
    child = run(code, offered(str(tmp_path)))
    assert (child.returncode, child.stdout, child.stderr) == (0, "a jax\n", "")


def test_child_with_settings_that_are_none_says_so_in_one_line_and_lives(tmp_path: Path) -> None:
    (tmp_path / "jax").mkdir()
    (tmp_path / "jax" / "__init__.py").write_text("NAME = 'a jax'\n")
    environ = offered(str(tmp_path)) | {SETTINGS_VARIABLE: "{"}
    code = "import importlib.util as u; u.find_spec('jax'); import jax; print(jax.NAME)"
    child = run(code, environ)  # who looks whether jax is there has not imported it yet
    assert (child.returncode, child.stdout) == (0, "a jax\n")
    [line] = child.stderr.splitlines()
    assert line.startswith("hotstart's cache is not in place in this process: ")


@pytest.mark.parametrize("path", [None, "", "/a", "/a:/b", ":/a"])
def test_offer_twice_then_withdrawn_leaves_the_path_as_it_was(path: str | None) -> None:
    environ = offered(path)
    assert offer(CONFIG, Keyring(), environ)
    assert environ["PYTHONPATH"].count("in_children") == 1
    withdraw(environ)
    assert SETTINGS_VARIABLE not in environ
    assert environ.get("PYTHONPATH") == (path or None)


def test_offer_never_asks_a_child_to_raise() -> None:
    settings = json.loads(offered()[SETTINGS_VARIABLE])
    assert CacheConfig(**settings) == CacheConfig("/a/cache", strict=False, require_warm=False)


def test_offer_without_the_keys_that_a_child_would_need_is_none(tmp_path: Path) -> None:
    keyring = create_key_file(str(tmp_path / "key"))
    environ = {"PYTHONPATH": "/a"}
    assert not offer(CONFIG, keyring, environ)
    assert environ == {"PYTHONPATH": "/a"}


def test_offer_with_keys_in_a_file_has_the_child_read_that(tmp_path: Path) -> None:
    path = str(tmp_path / "key")
    create_key_file(path)
    config = CacheConfig("/a/cache", signing_key_file=path)
    environ: dict[str, str] = {}
    assert offer(config, load_keyring(path, {}), environ)
    assert json.loads(environ[SETTINGS_VARIABLE])["signing_key_file"] == path
    assert not offer(CONFIG, load_keyring(path, {}), {})
