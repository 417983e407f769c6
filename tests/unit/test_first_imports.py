"""Which imports of a script may be done before it is its turn."""

from __future__ import annotations

from pathlib import Path

import pytest

from hotstart.launcher.first_imports import first_imports

pytestmark = pytest.mark.unit

SCRIPTS = {
    "imports, a docstring and the future": (
        '"""What it does."""\nfrom __future__ import annotations\nimport os, jax.numpy as jnp\n'
        "import optax\n",
        ("os", "jax.numpy", "optax"),
    ),
    "names of a package": (
        "from flax import nnx\nfrom jax.sharding import Mesh, NamedSharding\n",
        ("flax", "jax.sharding"),
    ),
    "one named twice": ("import os\nimport sys\nimport os\n", ("os", "sys")),
    "a setting between them": ("import os\nos.environ['A'] = '1'\nimport optax\n", ("os",)),
    "an assignment first": ("A = 1\nimport optax\n", ()),
    "a choice": ("import os\nif os.name:\n    import optax\nimport flax\n", ("os",)),
    "a try": ("try:\n    import optax\nexcept ImportError:\n    optax = None\nimport flax\n", ()),
    "a module of its own": ("import os\nimport model\nimport optax\n", ("os",)),
    "a package of its own": ("import os\nfrom layers.dense import Dense\nimport optax\n", ("os",)),
    "a folder without code": ("import plain\nimport optax\n", ("plain", "optax")),
    "a relative import": ("import os\nfrom . import model\nimport optax\n", ("os",)),
    "everything of a module": ("from os import *\n", ("os",)),
    "no Python": ("import os\nimport (\n", ()),
    "nothing": ("", ()),
}


@pytest.mark.parametrize(("text", "names"), SCRIPTS.values(), ids=SCRIPTS)
def test_first_imports_of(text: str, names: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "model.py").touch()
    (tmp_path / "layers").mkdir()
    (tmp_path / "layers" / "__init__.py").touch()
    (tmp_path / "plain").mkdir()
    script = tmp_path / "train.py"
    script.write_text(text)
    assert first_imports(str(script), [str(tmp_path)]) == names


def test_first_imports_of_no_script_that_can_be_read_are_none(tmp_path: Path) -> None:
    (tmp_path / "binary.py").write_bytes(b"\0\xff" * 9)
    assert first_imports(None, []) == ()
    assert first_imports(str(tmp_path / "gone.py"), []) == ()
    assert first_imports(str(tmp_path), []) == ()
    assert first_imports(str(tmp_path / "binary.py"), []) == ()
