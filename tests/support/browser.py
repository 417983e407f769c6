"""A headless Chromium that opens a file, for tests of what a reader sees."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome-headless-shell")
_QUIET = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--virtual-time-budget=5000",
)


def _open(page: Path, *how: str) -> str:
    browser = next((found for name in _NAMES if (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    with tempfile.TemporaryDirectory(prefix="hs-browser-", ignore_cleanup_errors=True) as profile:
        command = [browser, *_QUIET, f"--user-data-dir={profile}", *how, page.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def rendered(page: Path) -> str:
    """The document once its scripts have run."""
    return _open(page, "--window-size=1200,1700", "--dump-dom")


def screenshot(page: Path, image: Path) -> None:
    """What a reader sees, as PNG of 1200 x 1700 pixels."""
    _open(page, "--window-size=1200,1700", f"--screenshot={image}")
