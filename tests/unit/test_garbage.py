"""The collector of a worker: held back until the first step, in a process of its own."""

from __future__ import annotations

import subprocess
import sys

_IMPORTS = "import gc; from hotstart.launcher.garbage import HeldBack; stock = gc.get_threshold()\n"


def _printed(program: str) -> list[str]:
    """What these lines print in an interpreter of their own, whose collector is as it starts."""
    command = [sys.executable, "-P", "-c", _IMPORTS + program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.split()


def test_held_back_until_the_first_step_collects_rarely() -> None:
    program = """
cycles = gc.get_stats()[0]["collections"]
garbage = HeldBack()
kept = [[] for _ in range(50_000)]
print(gc.get_stats()[0]["collections"] - cycles)
garbage.let_go()
print(gc.get_threshold() == stock)
"""
    assert _printed(program) == ["0", "True"]


def test_held_back_still_collects_what_a_program_piles_up() -> None:
    program = """
import weakref
class Node: pass
garbage = HeldBack()
garbage.freeze()
first = Node()
first.itself = first
gone = weakref.ref(first)
del first
kept = [[] for _ in range(150_000)]
print(gone() is None)
"""
    assert _printed(program) == ["True"]


def test_freeze_leaves_alone_what_was_imported() -> None:
    program = """
garbage = HeldBack()
garbage.freeze()
print(gc.get_freeze_count() > 1000)
"""
    assert _printed(program) == ["True"]


def test_thresholds_of_the_program_stay() -> None:
    program = """
garbage = HeldBack()
gc.set_threshold(123, 4, 5)
garbage.let_go()
print(*gc.get_threshold())
"""
    assert _printed(program) == ["123", "4", "5"]
