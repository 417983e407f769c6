"""Commands as another host runs them: another host name, so nobody's pid can be looked up."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping

import pytest

from tests.support.launch import HOTSTART, Finished, Launched, Site

needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root and unshare"
)


def start_elsewhere(
    here: Site, *arguments: str, env: Mapping[str, str] | None = None, name: str = "elsewhere"
) -> Launched:
    """`hotstart` with these arguments on a host of this name, with the site's files."""
    rename = ["unshare", "--uts", "sh", "-c", f'hostname {name} && exec "$@"', "sh"]
    launched = Launched([*rename, str(HOTSTART), *arguments], here.environment(env), here.folder)
    here.adopt(launched)
    return launched


def run_elsewhere(
    here: Site, *arguments: str, env: Mapping[str, str] | None = None, timeout_s: float = 90.0
) -> Finished:
    """The same, to its end."""
    return start_elsewhere(here, *arguments, env=env).wait(timeout_s)
