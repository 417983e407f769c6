"""Plays trials: starts, explanations, and what was wrong with them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.explain.plants import BASE_ENVIRON, Plant

_ROOT = Path(__file__).resolve().parents[2]
_PREFIX = "planted "
_TIMEOUT_S = 300


@dataclass(frozen=True)
class Played:
    """One trial; `wrong` is empty where the explanation was right."""

    name: str
    wrong: str
    explanation: str


def play(plants: tuple[Plant, ...], folder: Path) -> Played:
    """One trial in a folder of its own; blocks for two starts of JAX."""
    name = "+".join(plant.name for plant in plants) or "control"
    location = folder / "cache"
    start(location, ())
    return judge(name, plants, location, start(location, plants))


def judge(name: str, plants: tuple[Plant, ...], location: Path, told: list[list[str]]) -> Played:
    """Whether the second start did as planted, and is explained by just that."""
    if not plants:
        missed = [key for key, outcome in told if outcome != "hit"]
        return Played(name, f"compiled {missed}" if missed or not told else "", "")
    compiled = [key for key, outcome in told if outcome == "compiled"]
    if len(compiled) != 1:
        return Played(name, f"compiled {len(compiled)} programs, not one: {told}", "")
    explained = explain(compiled[0], str(location))
    wanted = frozenset[str]().union(*(plant.kinds for plant in plants))
    named = {cause["kind"] for cause in explained["causes"]}
    text = "; ".join(cause["text"] for cause in explained["causes"])
    unsaid = [word for plant in plants for word in plant.says if word not in text]
    wrong = ""
    if named != wanted:
        wrong = f"named {sorted(named)}, planted {sorted(wanted)}"
    elif unsaid:
        wrong = f"does not say {unsaid}"
    return Played(name, wrong, text + f" || {[f['text'] for f in explained['follows']]}")


def explain(key: str, location: str) -> dict[str, list[dict[str, str]]]:
    """What `hotstart cache explain KEY LOCATION --json` says, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "hotstart.launcher.cli", "cache", "explain", key, location]
        + ["--json"],
        env={**os.environ, "PYTHONPATH": _python_path()},
        capture_output=True, text=True, timeout=_TIMEOUT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    explained: dict[str, list[dict[str, str]]] = json.loads(done.stdout)["programs"][0]
    return explained


def start(location: Path, plants: tuple[Plant, ...]) -> list[list[str]]:
    """One start with these causes: key and outcome of each request for the program."""
    environ = {**os.environ, **BASE_ENVIRON, "JAX_PLATFORMS": "cpu"}
    environ |= {"PYTHONPATH": _python_path(), "HOTSTART_HOME": str(location.parent / "home")}
    for name in ("JAX_COMPILATION_CACHE_DIR", "LIBTPU_INIT_ARGS"):
        environ.pop(name, None)
    words: list[str] = []
    for plant in plants:
        environ |= plant.environ
        words += [plant.variant] if plant.variant else []
        words += plant.arguments
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("planted.py")), str(location), *words],
        env=environ, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (line,) = [x for x in done.stdout.splitlines() if x.startswith(_PREFIX)]
    told: list[list[str]] = json.loads(line.removeprefix(_PREFIX))
    return told


def _python_path() -> str:
    """As it is, with the tests; a Python that has another checkout installed names this one."""
    before = os.environ.get("PYTHONPATH", "")
    return os.pathsep.join(filter(None, (before, str(_ROOT))))
