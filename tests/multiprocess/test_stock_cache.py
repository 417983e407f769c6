"""Stock JAX's cache, taken over and given back, by processes that run stock JAX and hotstart."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest
from click.testing import CliRunner

from hotstart.launcher.cli import main
from tests.support.gcs_proxy import GcsProxy
from tests.support.jax_lab import JaxLab, jax_lab

pytestmark = [pytest.mark.multiprocess, pytest.mark.internals]

ROOT = Path(__file__).resolve().parents[2]
# JAX 0.10 has XLA's autotune folder, which is in the cache's own, in its keys.
HAS_FOLDER_IN_KEY = jax.__version_info__ < (0, 12)
NO_FOLDER = {"JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES": "none"}

# The lab's program `step`, under stock JAX with its own cache.
STOCK = """
import json, sys
from tests.support.compile_counter import install
import jax, jax.numpy as jnp

counter = install()
jax.config.update("jax_compilation_cache_dir", sys.argv[1])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

def step(x):
    return jnp.sin(x) * 0 + 4

value = float(jax.jit(step)(1.0))
print(json.dumps({"value": value, "compiled": counter.compiled, "requested": counter.requested}))
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with jax_lab(tmp_path_factory.mktemp("home")) as running:
        yield running


def stock(folder: Path | str, environ: dict[str, str]) -> Any:
    """One process of stock JAX that calls the program, with its cache in `folder`."""
    done = subprocess.run(
        [sys.executable, "-c", STOCK, str(folder)],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", **environ},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return json.loads(done.stdout)


def cache(*arguments: str) -> dict[str, Any]:
    done = CliRunner().invoke(main, ["cache", *arguments, "--json"])
    assert done.exit_code == 0, done.output
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


def test_stock_entries_are_imported_hit_and_exported_again(lab: JaxLab, tmp_path: Path) -> None:
    theirs, ours, back = tmp_path / "stock", tmp_path / "cache", tmp_path / "back"
    first = stock(theirs, NO_FOLDER)
    assert first["compiled"] == first["requested"] != []
    imported = cache("import", "--stock", str(theirs), str(ours))
    assert (imported["new"], imported["bad"]) == (len(first["compiled"]), 0)
    assert (imported["platforms"], imported["autotune_folders"]) == (
        {"cpu": len(first["compiled"])},
        {},
    )
    start = lab.start(ours)
    assert (start["value"], start["compiled"]) == (4.0, [])
    assert start["stats"]["hits"] == len(start["requested"]) == len(first["requested"])

    exported = cache("export", str(ours), "--stock", str(back))
    assert exported["new"] == len(first["compiled"])
    again = stock(back, NO_FOLDER)
    assert (again["value"], again["compiled"]) == (4.0, [])
    assert sorted(path.name for path in back.iterdir() if path.name.endswith("-cache")) == sorted(
        path.name for path in theirs.iterdir() if path.name.endswith("-cache")
    )


def test_hotstarts_entries_are_exported_and_stock_jax_hits(lab: JaxLab, tmp_path: Path) -> None:
    ours, theirs = tmp_path / "cache", tmp_path / "stock"
    start = lab.start(ours)
    assert start["compiled"] != []
    cache("export", str(ours), "--stock", str(theirs))
    found = stock(theirs, NO_FOLDER)
    assert (found["value"], found["compiled"]) == (4.0, [])
    bounded = stock(theirs, {**NO_FOLDER, "JAX_COMPILATION_CACHE_MAX_SIZE": "100000000"})
    assert (bounded["value"], bounded["compiled"]) == (4.0, [])


def test_stock_entries_with_a_folder_in_their_keys_are_told(lab: JaxLab, tmp_path: Path) -> None:
    theirs, ours = tmp_path / "stock", tmp_path / "cache"
    first = stock(theirs, {})
    imported = cache("import", "--stock", str(theirs), str(ours))
    folder = str(theirs / "xla_gpu_per_fusion_autotune_cache_dir")
    assert imported["autotune_folders"] == {folder: len(first["compiled"])}
    start = lab.start(ours)
    assert start["value"] == 4.0
    assert (start["compiled"] != []) is HAS_FOLDER_IN_KEY


def test_stock_entries_of_a_bucket_are_imported_and_hit(
    lab: JaxLab, tmp_path: Path, bucket: str, proxy: GcsProxy
) -> None:
    theirs, ours = tmp_path / "stock", tmp_path / "cache"
    first = stock(theirs, NO_FOLDER)
    cache("import", "--stock", str(theirs), str(tmp_path / "there"))
    cache("export", str(tmp_path / "there"), "--stock", f"{bucket}/stock")
    proxy.reset()
    imported = cache("import", "--stock", f"{bucket}/stock", str(ours))
    assert imported["new"] == len(first["compiled"])
    assert len(proxy.requests("GET")) == 1 + len(first["compiled"])  # the list, and each once
    assert lab.start(ours)["compiled"] == []
