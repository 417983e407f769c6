"""Why there was no entry of a key that an earlier attempt asked for, as far as is known. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from hotstart.cache.entry import entry_name
from hotstart.launcher.asked_facts import AskedProgram


@dataclass(frozen=True)
class Circumstances:
    """What else the record says of an attempt.

    mode, location: of its cache. unsigned, errors: cache errors of its workers and hosts.
    warnings: of both. problem: why the cache can't be looked at now, "" where it can.
    """

    mode: str = ""
    location: str = ""
    unsigned: int = 0
    errors: int = 0
    warnings: tuple[str, ...] = ()
    problem: str = ""


def same_reason(
    program: AskedProgram, last: int, before: AskedProgram, around: Circumstances
) -> str:
    """Of a program that attempt `last` asked for as `before`; what is known comes first."""
    if useless := unusable(program.key, around):
        return useless
    if {*before.outcomes} <= {"unfinished"}:
        return f"attempt {last} ended before it was compiled"
    if {*before.outcomes} <= {"unstored", "unfinished"}:
        return (
            f"attempt {last} did not hand it to the cache: it compiled faster than "
            "cache.min_compile_time_s, calls back into Python, or failed to compile"
        )
    # In a gang that compiles once, the others' hits are what one of them compiled.
    was_there = "hit" in before.outcomes and "compiled" not in before.outcomes
    if around.mode == "read-only" and not was_there:
        return (
            f"attempt {last} asked for it too, and with cache.mode=read-only nothing is stored "
            "for the next"
        )
    if perhaps := suspected(around):
        return perhaps
    if was_there:
        return (
            f"its entry was there in attempt {last} and was gone: evicted (cache.max_size), "
            "expired by a lifecycle rule, or deleted"
        )
    return (
        f"attempt {last} compiled it, and its entry was not there: it had not reached the cache "
        "by that attempt's end, or was evicted, expired or deleted since"
    )


def unusable(key: str, around: Circumstances) -> str:
    """What the attempt's own warnings say of an entry of this key that did not verify.

    Such a warning begins with the entry's name; others that name it are of what could not be
    written, or of which executable a gang runs.
    """
    for warning in around.warnings:
        if warning.startswith(entry_name(key)):
            return f"an entry was there and was of no use: {warning}"
    return ""


def suspected(around: Circumstances) -> str:
    """What the attempt's counts say; whether it was of this key, they do not."""
    if around.unsigned:
        return (
            f"{around.unsigned} objects of the cache were refused as unsigned or wrongly signed, "
            "perhaps its entry; see docs/trust.md"
        )
    if around.errors:
        return f"the cache had {around.errors} errors in this attempt, perhaps with its entry"
    return ""
