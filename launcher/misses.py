"""The report with, for each attempt that compiled something, one line a program: why."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from hotstart.cache.errors import CacheError
from hotstart.cache.explain import Listed
from hotstart.launcher.asked_facts import AskedProgram
from hotstart.launcher.explaining import explain_recorded, short
from hotstart.launcher.facts import RunFacts
from hotstart.launcher.record import RunRecord
from hotstart.launcher.report import build_report

logger = logging.getLogger(__name__)

_DEADLINE_S = 5.0
_LOOKING = "hotstart-misses"
_MAX_FIRST = 3  # programs that are simply new are summed up where there are more


def report_of(record: RunRecord) -> dict[str, Any]:
    """`build_report` of a record, with `misses`. Blocks; raises `StoreError` for the record.

    A cache that can't be looked at costs lines, never the report.
    """
    facts = record.read()
    return _with_misses(record, facts, build_report(facts))


def report_soon(record: RunRecord, within_s: float) -> dict[str, Any]:
    """As `report_of`, but without `misses` where these take longer than `within_s`.

    For the end of a run: who waits for its exit code must not wait for a bucket that is out.
    """
    facts = record.read()
    found: list[dict[str, Any]] = []
    looking = threading.Thread(
        target=lambda: found.append(_with_misses(record, facts, build_report(facts))),
        name=_LOOKING,
        daemon=True,
    )
    looking.start()
    looking.join(within_s)
    if found:
        return found[0]
    report = build_report(facts)
    for attempt in report["attempts"]:
        attempt["misses"] = []
    return report


def is_looking() -> bool:
    """Whether `report_soon` went on without a look that is still going on."""
    return any(thread.name == _LOOKING for thread in threading.enumerate())


def _with_misses(record: RunRecord, facts: RunFacts, report: dict[str, Any]) -> dict[str, Any]:
    asked: Mapping[int, Sequence[AskedProgram]] = {}
    try:
        if facts.attempts:
            asked = record.asked()
    except CacheError as error:
        logger.warning("what was compiled is not explained: %s", error)
    listings: dict[str, list[Listed]] = {}
    for attempt, shown in zip(facts.attempts, report["attempts"], strict=True):
        shown["misses"] = []
        if not any(program.missed for program in asked.get(attempt.attempt, ())):
            continue
        try:
            from hotstart.cache.keyring import load_keyring

            explained = explain_recorded(
                record,
                attempt,
                load_keyring(),
                asked=asked,
                deadline_s=_DEADLINE_S,
                listings=listings,
            )
        except CacheError as error:
            logger.warning("what attempt %d compiled is not explained: %s", attempt.attempt, error)
            continue
        shown["misses"] = _misses(explained)
    return report


def _misses(explained: dict[str, Any]) -> list[dict[str, Any]]:
    programs = explained["programs"]
    first = [program for program in programs if program["status"] == "first"]
    misses = [_miss(program) for program in programs if program not in first]
    if len(first) > _MAX_FIRST:
        modules = list(dict.fromkeys(program["module"] for program in first))
        more = f" and {len(modules) - _MAX_FIRST} more" if len(modules) > _MAX_FIRST else ""
        text = (
            f"{len(first)} programs compiled of which no earlier one is known: "
            f"{', '.join(modules[:_MAX_FIRST])}{more}"
        )
        misses += [{**_miss(program), "text": ""} for program in first]
        misses[-len(first)]["text"] = text
    else:
        misses += [_miss(program) for program in first]
    for found in explained["disagreements"]:
        misses.append(
            {
                "key": found["key"],
                "module": found["module"],
                "processes": found["processes"],
                "status": "disagreement",
                "causes": found["causes"],
                "text": f"processes differ: {found['summary']}",
            }
        )
    return misses


def _miss(program: dict[str, Any]) -> dict[str, Any]:
    kept = {name: program[name] for name in ("key", "module", "processes", "status", "causes")}
    return {**kept, "text": short(program)}
