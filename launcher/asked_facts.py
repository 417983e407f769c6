"""What an attempt asked the cache for, as its record keeps it: `attempts/<n>/asked/<size>`.

    {"version": 1, "programs": [{"key": ..., "order": 0, "parts": ...,
                                 "outcomes": {"compiled": [[0, 1]], "hit": [[2, 7]]}}]}

`order` is the smallest in which a process asked. `outcomes` has the processes that it ended for
in this way, as ranges: `hit`, `compiled`, `unstored` (compiled or failed, and nothing was handed
to the cache) and `unfinished` (the attempt ended before the program was compiled). `parts`
describes the key of what was compiled (cache/description.py); of a hit it is in the entry.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hotstart.cache.description import MAX_TEXT
from hotstart.cache.entry import module_of
from hotstart.launcher.manifest import MAX_ENTRIES, as_ranges, is_count, is_key

VERSION = 1
MAX_PARTS = 4 << 20  # characters of all descriptions together
OUTCOMES = ("hit", "compiled", "unstored", "unfinished")


@dataclass(frozen=True)
class AskedProgram:
    """One key that an attempt asked for; `outcomes` has process indices as inclusive ranges."""

    key: str
    order: int
    outcomes: Mapping[str, tuple[tuple[int, int], ...]]
    parts: str = ""

    @property
    def module(self) -> str:
        """The module's name."""
        return module_of(self.key)

    @property
    def missed(self) -> bool:
        """Whether some process did not find it."""
        return any(outcome != "hit" for outcome in self.outcomes)

    def processes(self, *but: str) -> tuple[tuple[int, int], ...]:
        """Who asked for it, whose outcome is none of these."""
        found = (
            r for outcome, ranges in self.outcomes.items() if outcome not in but for r in ranges
        )
        return as_ranges(i for first, last in found for i in range(first, last + 1))


def asked_facts(answers: Mapping[int, Sequence[Mapping[str, Any]]]) -> dict[str, Any] | None:
    """The fact of what workers say that they asked for, by process index; None for nothing.

    What they say may be anything, for a worker is the user's process.
    """
    found: dict[str, dict[str, Any]] = {}
    room = MAX_PARTS
    for index in sorted(answers):
        for report in answers[index]:
            key, order, outcome = report.get("key"), report.get("order"), report.get("outcome")
            if not is_key(key) or not is_count(order) or outcome not in OUTCOMES:
                continue
            if key not in found and len(found) >= MAX_ENTRIES:
                continue
            program = found.setdefault(
                str(key), {"key": key, "order": order, "outcomes": {}, "parts": ""}
            )
            program["order"] = min(program["order"], order)
            program["outcomes"].setdefault(outcome, set()).add(index)
            parts = report.get("parts")
            if (
                not program["parts"]
                and isinstance(parts, str)
                and len(parts) <= min(room, MAX_TEXT)
            ):
                program["parts"] = parts
                room -= len(parts)
    for program in found.values():
        program["outcomes"] = {k: as_ranges(v) for k, v in sorted(program["outcomes"].items())}
    ordered = sorted(found.values(), key=lambda p: (p["order"], p["key"]))
    return {"version": VERSION, "programs": ordered} if found else None


def size_of(facts: Mapping[str, Any]) -> int:
    """How much is known, to tell the latest of an attempt's facts from the others."""
    return sum(
        1
        + bool(program["parts"])
        + sum(last - first + 1 for r in program["outcomes"].values() for first, last in r)
        for program in facts["programs"]
    )


def read_asked(facts: Mapping[str, Any] | None) -> tuple[AskedProgram, ...]:
    """The programs in a fact, in the order of asking; what is odd is left out."""
    programs = facts.get("programs") if facts is not None else None
    if facts is None or facts.get("version") != VERSION or not isinstance(programs, list):
        return ()
    return tuple(_programs(programs))


def _programs(programs: Sequence[Any]) -> Iterator[AskedProgram]:
    for program in programs:
        try:
            outcomes = {
                str(outcome): tuple((int(first), int(last)) for first, last in ranges)
                for outcome, ranges in program["outcomes"].items()
                if outcome in OUTCOMES
            }
            if is_key(program["key"]):
                parts = str(program["parts"])
                yield AskedProgram(program["key"], int(program["order"]), outcomes, parts)
        except (KeyError, TypeError, ValueError, AttributeError):
            continue
