"""Every command of docs/cache-commands.md, as it stands there and in that order."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import zstandard

from hotstart.cache.store import open_store
from tests.support.recorded_runs import KEYS, fill, record_run

pytestmark = pytest.mark.contract

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "cache-commands.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)


def test_cache_page_has_all_its_commands() -> None:
    names = {line.split("hotstart cache ")[1].split()[0] for b in BLOCKS for line in b.splitlines()}
    assert names == {"ls", "stats", "show", "gc", "pin", "unpin", "export", "import"}


def test_cache_page_commands_run_as_they_stand_there(bucket: str, tmp_path: Path) -> None:
    fill(open_store(f"{bucket}/cache"), 0)
    record_run(f"{bucket}/runs", "lm-1", f"{bucket}/cache", [KEYS[0]], state="running")
    stock = tmp_path / "jax-cache"
    stock.mkdir()
    (stock / f"{KEYS[1]}-cache").write_bytes(zstandard.compress(bytes(4) + b"executable"))
    script = "".join(BLOCKS).replace("gs://bucket", bucket).replace("/tmp/", f"{tmp_path}/")
    runner = tmp_path / "hotstart"
    runner.write_text(f'#!/bin/sh\nexec {sys.executable} -m hotstart.launcher.cli "$@"\n')
    runner.chmod(0o755)
    done = subprocess.run(
        ["bash", "-eu", "-o", "pipefail", "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{tmp_path}/baked/cache: 1 entries of bundle.tar: 1 new" in done.stdout
    assert f"{bucket}/other: 1 entries of -: 1 new" in done.stdout
    assert f"{tmp_path}/for-jax: 2 entries of {bucket}/cache for stock JAX: 2 new" in done.stdout
