"""What an attempt compiled, and why: built from its record and the cache's entries. Pure.

For each program that some process did not find:

    changed      its key differs from the nearest earlier one of its module; the causes say how
    same         nothing has changed: the key is that of an earlier attempt; `reason` says what is
                 known of why there was no entry of it
    first        no earlier key of the module is known
    undescribed  there are earlier ones, but of one of the two nothing was recorded

`disagreements`: modules of which processes asked for different keys, and what differs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from itertools import islice
from typing import Any

from hotstart.cache.description import Description, from_text
from hotstart.cache.differences import Cause, Comparison, changed, compare, quoted
from hotstart.cache.entry import module_of
from hotstart.cache.explain import MAX_READ, Known, Moment, Nearest, nearest
from hotstart.launcher.asked_facts import AskedProgram
from hotstart.launcher.unfound import Circumstances, same_reason, suspected, unusable

_parsed = lru_cache(maxsize=4096)(from_text)  # each is compared with many
_BEFORE_ALL = -1e15  # the order of what is not in the store: older than all that is


def explain_attempt(
    attempt: int,
    asked: Mapping[int, Sequence[AskedProgram]],
    entries: Mapping[str, Sequence[Known]],
    around: Circumstances,
) -> dict[str, Any]:
    """JSON-ready: `programs` that were not found, and `disagreements` among processes.

    `asked` is by attempt, `entries` by module, the oldest first.
    """
    own = asked.get(attempt, ())
    described = _descriptions(own, entries)
    programs = []
    for program in own:
        if program.missed:
            programs.append(_program(program, attempt, asked, entries, described, around))
    return {"programs": programs, "disagreements": list(_disagreements(own, described))}


def explain_entry(target: Known, entries: Sequence[Known]) -> dict[str, Any]:
    """JSON-ready, the same as for a program of an attempt: why this entry was compiled."""
    earlier = [
        one
        for one in entries
        if one.key != target.key and (one.order, one.where) < (target.order, target.where)
    ]
    found = None
    if target.description is not None:
        found = nearest(target.description, earlier, session=target.session)
    return _judged(target.key, None, target.description, found, bool(earlier), "in this cache")


def _program(
    program: AskedProgram,
    attempt: int,
    asked: Mapping[int, Sequence[AskedProgram]],
    entries: Mapping[str, Sequence[Known]],
    described: Mapping[str, Description],
    around: Circumstances,
) -> dict[str, Any]:
    processes = [list(r) for r in program.processes("hit")]
    before = {n: {p.key: p for p in found} for n, found in asked.items() if n < attempt}
    last = max((n for n, found in before.items() if program.key in found), default=None)
    if last is not None:
        reason = same_reason(program, last, before[last][program.key], around)
        return {
            **_judged(program.key, processes, None, None, True, ""),
            "status": "same",
            "reason": reason,
            "summary": f"nothing has changed since attempt {last}: {reason}",
        }
    own = {p.key for p in asked.get(attempt, ())}
    until = _until(program, attempt, asked, entries)
    earlier = list(_earlier(program, attempt, asked, entries, own, until))
    description = described.get(program.key)
    found = None
    if description is not None:
        found = nearest(description, earlier, own, description.session)
    where = "in this cache or in this run's record"
    judged = _judged(program.key, processes, description, found, bool(earlier), where)
    if (
        found is not None
        and until is None
        and all(found.known.key not in k for k in before.values())
    ):
        judged["nearest"]["choice"] += (
            "; it may be newer than this attempt, of which no entry is there to compare with"
        )
    if around.problem and judged["status"] == "first":
        judged["summary"] += f"; the cache can't be looked at ({around.problem})"
    trouble = unusable(program.key, around) or suspected(around)
    if trouble and judged["status"] == "first":
        judged |= {"reason": trouble, "summary": f"{judged['summary']}; {trouble}"}
    return judged


def _earlier(
    program: AskedProgram,
    attempt: int,
    asked: Mapping[int, Sequence[AskedProgram]],
    entries: Mapping[str, Sequence[Known]],
    own: Collection[str],
    until: Moment | None,
) -> Iterator[Known]:
    """Keys of the module that are older than this attempt, as far as that is known."""
    before = {p.key for n, found in asked.items() if n < attempt for p in found}
    later = {p.key for n, found in asked.items() if n > attempt for p in found} - before - {*own}
    made_now = made_by(attempt, asked)
    seen = set()
    for entry in entries.get(program.module, ()):
        is_newer = until is not None and (entry.order, entry.where) > until
        if entry.key in made_now or entry.key in later or (is_newer and entry.key not in before):
            continue
        seen.add(entry.key)
        yield entry
    recorded = (
        (n, other)
        for n, found in sorted(asked.items(), reverse=True)
        for other in (found if n < attempt else ())
        if other.module == program.module and other.parts
    )
    for n, other in islice(((n, o) for n, o in recorded if o.key not in seen), MAX_READ):
        if other.key not in seen:
            seen.add(other.key)
            yield Known(other.key, _BEFORE_ALL + n, f"attempt {n}", _parsed(other.parts))


def made_by(attempt: int, asked: Mapping[int, Sequence[AskedProgram]]) -> frozenset[str]:
    """The keys that were compiled in this attempt, and asked for in none before."""
    before = {p.key for n, found in asked.items() if n < attempt for p in found}
    compiled = {p.key for p in asked.get(attempt, ()) if "compiled" in p.outcomes}
    return frozenset(compiled - before)


def _until(
    program: AskedProgram,
    attempt: int,
    asked: Mapping[int, Sequence[AskedProgram]],
    entries: Mapping[str, Sequence[Known]],
) -> Moment | None:
    """What was stored later than this is newer than the program's compilation.

    When its own entry was stored, or where there is none the first one that the attempt made.
    """
    made = [e for e in entries.get(program.module, ()) if e.key == program.key][:1]
    if not made:
        keys = made_by(attempt, asked)
        made = [e for found in entries.values() for e in found if e.key in keys]
    return min(((e.order, e.where) for e in made), default=None)


def _descriptions(
    own: Sequence[AskedProgram], entries: Mapping[str, Sequence[Known]]
) -> dict[str, Description]:
    found: dict[str, Description] = {}
    for program in own:
        description = _parsed(program.parts)
        if description is None:
            in_store = (
                e.description for e in entries.get(program.module, ()) if e.key == program.key
            )
            description = next(in_store, None)
        if description is not None:
            found[program.key] = description
    return found


def _judged(
    key: str,
    processes: list[list[int]] | None,
    description: Description | None,
    found: Nearest | None,
    has_earlier: bool,
    where: str,
) -> dict[str, Any]:
    judged: dict[str, Any] = {
        "key": key,
        "module": module_of(key),
        "processes": processes,
        "status": "changed",
        "reason": None,
        "summary": "",
        "nearest": None,
        "causes": [],
        "follows": [],
    }
    if found is not None:
        judged["nearest"] = {
            "key": found.known.key,
            "where": found.known.where,
            "choice": found.choice,
            "components": list(found.comparison.components),
        }
        judged |= _told(found.comparison)
    elif not has_earlier:
        judged["status"] = "first"
        judged["summary"] = f"no earlier key of {judged['module']} is known {where}"
    else:
        judged["status"] = "undescribed"
        whose = "this key" if description is None else "the earlier ones"
        judged["summary"] = (
            f"there are earlier keys of {judged['module']}, but what {whose} was made of was not "
            "recorded (an older hotstart, or a process that ended too early)"
        )
    return judged


def _told(comparison: Comparison) -> dict[str, Any]:
    texts = [cause.text for cause in comparison.causes]
    return {
        "summary": "; ".join(texts),
        "causes": [asdict(cause) for cause in comparison.causes],
        "follows": [asdict(cause) for cause in comparison.follows],
    }


def _disagreements(
    own: Sequence[AskedProgram], described: Mapping[str, Description]
) -> Iterator[dict[str, Any]]:
    """Keys that only a part of the processes asked for which asked for their module at all."""
    modules: dict[str, list[AskedProgram]] = {}
    for program in own:
        modules.setdefault(program.module, []).append(program)
    for module, programs in modules.items():
        everybody = _indices(programs)
        partial = [p for p in programs if _indices([p]) != everybody]
        if len(partial) < 2:
            continue
        reference = max(partial, key=lambda p: (len(_indices([p])), -min(_indices([p]))))
        for other in partial:
            if _indices([other]) & _indices([reference]):
                continue
            yield _disagreement(module, reference, other, described)


def _disagreement(
    module: str,
    reference: AskedProgram,
    other: AskedProgram,
    described: Mapping[str, Description],
) -> dict[str, Any]:
    pair = described.get(reference.key), described.get(other.key)
    who, whom = shown_processes(other.processes()), shown_processes(reference.processes())
    told: dict[str, Any] = {
        "summary": "what their keys were made of was not recorded",
        "causes": [],
        "follows": [],
    }
    if pair[0] is not None and pair[1] is not None:
        told = _told(_side_by_side(compare(pair[0], pair[1]), who, whom))
    return {
        "module": module,
        "processes": [list(r) for r in other.processes()],
        "key": other.key,
        "against_processes": [list(r) for r in reference.processes()],
        "against_key": reference.key,
        **told,
        "summary": f"{who} asks for another {module} than {whom}: {told['summary']}",
    }


def _side_by_side(comparison: Comparison, who: str, whom: str) -> Comparison:
    """In words for two processes of one moment, not for what is and what was."""

    def of_both(cause: Cause) -> Cause:
        subject = cause.subject.removeprefix("override.")
        said = changed(subject, cause.before, cause.after)
        values = (cause.after, cause.before)
        now, was = ("is not set" if v is None else f"is {quoted(v)}" for v in values)
        text = f"{subject} {now} for {who} and {was.removeprefix('is ')} for {whom}"
        return replace(cause, text=cause.text.replace(said, text))

    return replace(
        comparison,
        causes=tuple(map(of_both, comparison.causes)),
        follows=tuple(map(of_both, comparison.follows)),
    )


def shown_processes(ranges: Sequence[Sequence[int]]) -> str:
    """`process 3`, `processes 0-2, 5`."""
    parts = [str(first) if first == last else f"{first}-{last}" for first, last in ranges]
    single = len(ranges) == 1 and ranges[0][0] == ranges[0][1]
    return f"process{'' if single else 'es'} {', '.join(parts)}"


def _indices(programs: Sequence[AskedProgram]) -> frozenset[int]:
    return frozenset(
        i for p in programs for first, last in p.processes() for i in range(first, last + 1)
    )
