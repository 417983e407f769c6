"""Which hotstart a submitted job runs with: this one, a wheel's, or the cluster's own.

The first two go as a folder in `py_modules`, which Ray puts in front of every process's path, so
the driver, the agents and their workers all import this version of it, installed or not. Ray
would give a wheel there to `pip install`, jax and all the rest, on each host; so it is unpacked
here. The dependencies, jax included, are the cluster's, and so is `python`, the first one on the
head's PATH. See https://docs.ray.io/en/latest/ray-core/handling-dependencies.html.
"""

from __future__ import annotations

import importlib.util
import shutil
import zipfile
from pathlib import Path

from hotstart.launcher.errors import UsageError

SHIP, CLUSTER = "ship", "cluster"
_PACKAGES = ("cache", "conf", "launcher")
_SHIPPED_SUFFIXES = (".py", ".yaml", ".typed")
_INIT = '"""hotstart, as it was sent with this job."""\n'


def check_hotstart(choice: str) -> None:
    """Raise `UsageError` for what `stage_package` can't take."""
    if choice in (SHIP, CLUSTER):
        return
    if not choice.endswith(".whl"):
        raise UsageError(f"--hotstart: expected ship, cluster or the path of a wheel, got {choice}")
    _members_of(Path(choice))


def stage_package(scratch: Path, choice: str = SHIP) -> Path:
    """Copy the hotstart of a choice but `cluster` to `scratch/hotstart`; raises `UsageError`.

    With an `__init__.py` of its own it hides any other hotstart on the cluster completely.
    """
    package = scratch / "hotstart"
    if choice != SHIP:
        with zipfile.ZipFile(choice) as wheel:
            wheel.extractall(scratch, _members_of(Path(choice)))
        (package / "__init__.py").write_text(_INIT)
        return package
    for name in _PACKAGES:
        spec = importlib.util.find_spec(f"hotstart.{name}")
        source = spec and spec.submodule_search_locations
        if not source:
            raise UsageError(f"hotstart.{name} is not a folder of files; install hotstart again")
        shutil.copytree(source[0], package / name, ignore=_not_shipped)
    (package / "__init__.py").write_text(_INIT)
    return package


def _members_of(wheel: Path) -> list[str]:
    try:
        with zipfile.ZipFile(wheel) as opened:
            names = opened.namelist()
    except (OSError, zipfile.BadZipFile) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"--hotstart: {wheel}: {reason}; give ship, cluster or a wheel") from error
    members = [name for name in names if name.startswith("hotstart/")]
    if "hotstart/launcher/cli.py" not in members:
        raise UsageError(
            f"--hotstart: {wheel} is not a wheel of hotstart; it has no launcher in it"
        )
    return members


def _not_shipped(folder: str, names: list[str]) -> set[str]:
    return {
        name
        for name in names
        if name == "__pycache__"
        or not (name.endswith(_SHIPPED_SUFFIXES) or Path(folder, name).is_dir())
    }
