"""Pages without tests of their own: links lead somewhere, and snippets are what they say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / "docs" / page).read_text()
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_page_links_to_files_that_are_there(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert missing == []


def test_without_ray_snippet_puts_the_cache_where_the_variable_says(tmp_path: Path) -> None:
    (snippet,) = blocks("without-ray.md", "python")
    program = f"{snippet}\nimport jax\njax.jit(lambda x: x + 1)(1)\nhotstart.cache.flush()"
    for expected in ("0 1", "1 0"):
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                f"{program}\ns = hotstart.cache.stats()\nprint(s.hits, s.compiled)",
            ],
            env={**os.environ, "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.stdout == f"{expected}\n", done.stderr


def test_without_ray_scripts_are_well_formed() -> None:
    (script,) = blocks("without-ray.md", "bash")
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0
    (job,) = blocks("without-ray.md", "yaml")
    container = yaml.safe_load(job)["spec"]["template"]["spec"]["containers"][0]
    assert container["env"][0] == {
        "name": "JAX_COMPILATION_CACHE_DIR",
        "value": "gs://bucket/cache",
    }
