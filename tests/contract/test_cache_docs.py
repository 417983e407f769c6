"""Every command of docs/cache-commands.md, as it stands there and in that order."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import zstandard
from click.testing import CliRunner

from hotstart.cache.store import open_store
from hotstart.launcher.cli import main
from tests.support.recorded_runs import KEYS, fill, record_run

pytestmark = pytest.mark.contract

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "cache-commands.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)


def test_cache_page_has_all_its_commands() -> None:
    names = {line.split("hotstart cache ")[1].split()[0] for b in BLOCKS for line in b.splitlines()}
    assert names == {"ls", "stats", "show", "gc", "pin", "unpin", "export", "import"}


def test_cache_page_commands_run_as_they_stand_there(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(open_store(f"{bucket}/cache"), 0)
    record_run(f"{bucket}/runs", "lm-1", f"{bucket}/cache", [KEYS[0]], state="running")
    stock = tmp_path / "jax-cache"
    stock.mkdir()
    (stock / f"{KEYS[1]}-cache").write_bytes(zstandard.compress(bytes(4) + b"executable"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOTSTART_HOME", str(tmp_path / "home"))
    told = []
    for line in "".join(BLOCKS).splitlines():
        line = line.replace("gs://bucket", bucket).replace("/tmp/", f"{tmp_path}/")
        sent, _, command = line.rpartition(" | ")
        done = CliRunner().invoke(
            main,
            shlex.split(command)[1:],
            input=Path(sent.removeprefix("cat ")).read_bytes() if sent else None,
        )
        assert done.exit_code == 0, f"{line}\n{done.output}"
        told.append(done.stdout)
    shown = "".join(told)
    assert f"{tmp_path}/baked/cache: 1 entries of bundle.tar: 1 new" in shown
    assert f"{bucket}/other: 1 entries of -: 1 new" in shown
    assert f"{tmp_path}/for-jax: 2 entries of {bucket}/cache for stock JAX: 2 new" in shown
