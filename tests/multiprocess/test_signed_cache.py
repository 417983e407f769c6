"""`hotstart.cache.enable` with a signing key, in real JAX processes that share a directory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hotstart.cache.keyring import create_key_file
from hotstart.cache.signing import SIGNATURE_BYTES

pytestmark = pytest.mark.multiprocess

PROGRAM = """
import dataclasses, json, sys
import jax, hotstart.cache
hotstart.cache.enable(sys.argv[1], signing_key_file=sys.argv[2] or None)
print(float(jax.jit(lambda x: x * 4 + 1)(1.0)))
hotstart.cache.flush()
print(json.dumps(dataclasses.asdict(hotstart.cache.stats())))
"""


def run(location: Path, key_file: str) -> dict[str, int]:
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("HOTSTART_", "JAX_"))}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(location), key_file],
        env={**environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    result, stats = done.stdout.splitlines()
    assert result == "5.0"
    names = ("requests", "hits", "compiled", "errors", "unsigned", "bad_signature")
    return {name: json.loads(stats)[name] for name in names}


def test_enable_with_a_key_compiles_once_more_what_was_unsigned_and_is_warm_from_then_on(
    tmp_path: Path,
) -> None:
    location, key = tmp_path / "cache", str(tmp_path / "signing.key")
    create_key_file(key)
    plain = run(location, "")
    count = plain["compiled"]
    zeros = {"errors": 0, "unsigned": 0, "bad_signature": 0}

    assert plain == {"requests": count, "hits": 0, "compiled": count, **zeros}
    first = run(location, key)
    assert first == {**plain, "unsigned": count}
    assert run(location, key) == {**plain, "hits": count, "compiled": 0}
    assert run(location, "") == {**plain, "hits": count, "compiled": 0}  # without one all is read

    for path in (location / "entries" / "v1").iterdir():  # a downgrade
        path.write_bytes(path.read_bytes()[:-SIGNATURE_BYTES])
    assert run(location, key) == first
