"""Explains a key in a cache, or what a run compiled: reads stores and records, and says it.

What is explained by `cache/explain.py` and `explained.py`, without I/O, is read and shown here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from hotstart.cache.entry import entry_name, module_of
from hotstart.cache.errors import CacheError
from hotstart.cache.explain import (
    Known,
    Listed,
    Moment,
    entries_of,
    find_keys,
    listed,
    moment,
)
from hotstart.cache.signing import Keyring, Seal
from hotstart.cache.store import Store
from hotstart.launcher.asked_facts import AskedProgram
from hotstart.launcher.cache_location import open_location
from hotstart.launcher.errors import UsageError
from hotstart.launcher.explained import (
    explain_attempt,
    explain_entry,
    made_by,
    shown_processes,
)
from hotstart.launcher.facts import AttemptFacts
from hotstart.launcher.foreground import runs_location
from hotstart.launcher.record import RunRecord
from hotstart.launcher.unfound import Circumstances

SCHEMA = 1


def explain_key(wanted: str, location: str | None) -> dict[str, Any]:
    """Why the entry that `wanted` means was compiled; see `find_keys`. Blocks.

    Raises `UsageError` where there is none, or several; `StoreError`.
    """
    from hotstart.cache.keyring import load_keyring

    store = open_location(location)
    seal = Seal(load_keyring(), store.url)
    listing = list(listed(store))
    found = find_keys(store, wanted, seal, listing)
    keys = sorted({one.key for one in found})
    if not found:
        raise UsageError(_not_there(store, wanted, listing))
    if len(keys) > 1:
        raise UsageError(
            f"{wanted} is the beginning of {len(keys)} keys in {store.url}: "
            f"{', '.join(keys[:4])}; give one of them"
        )
    target = found[-1]
    entries = entries_of(
        store,
        module_of(target.key),
        seal,
        always=[target.key],
        before=(target.order, target.where),
        listing=listing,
    )
    program = explain_entry(target, entries)
    return _explained(store.url, None, None, {"programs": [program], "disagreements": []})


def explain_run_named(run: str, attempt: int | None, run_dir: str | None) -> dict[str, Any]:
    """Why an attempt of a run compiled what it did. Blocks.

    Raises `RunNotFound`, `UsageError` for an attempt that is not there, `StoreError`.
    """
    from hotstart.cache.keyring import load_keyring
    from hotstart.launcher.runs import open_runs, resolve_run

    keyring = load_keyring()
    runs = open_runs(runs_location(run_dir), keyring)
    record = resolve_run(runs, run)
    attempts = {facts.attempt: facts for facts in record.attempts()}
    if not attempts:
        raise UsageError(f"run {record.name} has started no attempt yet")
    number = attempt if attempt is not None else max(attempts)
    if number not in attempts:
        there = ", ".join(map(str, sorted(attempts)))
        raise UsageError(f"run {record.name} has no attempt {number}; it has {there}")
    explained = explain_recorded(record, attempts[number], keyring)
    return _explained(explained.pop("location"), record.name, number, explained)


def explain_recorded(
    record: RunRecord,
    attempt: AttemptFacts,
    keyring: Keyring,
    asked: Mapping[int, Sequence[AskedProgram]] | None = None,
    deadline_s: float = 30.0,
    listings: dict[str, list[Listed]] | None = None,
) -> dict[str, Any]:
    """What one attempt of a record compiled, and why; `asked` where it has been read. Blocks.

    `deadline_s` bounds each operation on a bucket. `listings` has what is in a cache, by its URL,
    and keeps what is listed here for the next attempt.

    A cache that can't be looked at costs its part of the explanation. Raises `StoreError` for the
    record.
    """
    asked = record.asked() if asked is None else asked
    cache = attempt.start.get("cache")
    cache = cache if isinstance(cache, Mapping) else {}
    location = str(cache.get("location") or "") or None
    listings = {} if listings is None else listings
    missed = {p.module for p in asked.get(attempt.attempt, ()) if p.missed}
    shared = _asked_in_part(asked.get(attempt.attempt, ()))
    entries: dict[str, list[Known]] = {}
    problem = "" if location else "the record does not say where it is"
    try:
        if location and (missed or shared):
            store = open_location(location, deadline_s=deadline_s)
            seal = Seal(keyring, store.url)
            location = store.url
            if location not in listings:
                listings[location] = list(listed(store))
            listing = listings[location]
            stored = _first_stored(listing)
            made = made_by(attempt.attempt, asked)
            own = asked.get(attempt.attempt, ())
            keys, told = [p.key for p in own], [p.key for p in own if p.parts]
            for module in sorted(missed | shared):
                entries[module] = entries_of(
                    store,
                    module,
                    seal,
                    always=keys,
                    unread=told,
                    before=_latest(module, own, made, stored),
                    listing=listing,
                )
    except (CacheError, UsageError) as error:
        problem = str(error)
    around = circumstances(attempt, cache, problem)
    explained = explain_attempt(attempt.attempt, asked, entries, around)
    known = attempt.attempt in asked
    return {"location": location, "recorded": known, "problem": problem or None, **explained}


def _first_stored(listing: Sequence[Listed]) -> dict[str, Moment]:
    """When each entry of a cache, or its first replacement, was stored; by the entry's name."""
    stored: dict[str, Moment] = {}
    for stat, _, _ in sorted(listing, key=lambda one: moment(one[0])):
        stored.setdefault(stat.name.partition("~")[0], moment(stat))
    return stored


def _latest(
    module: str,
    own: Sequence[AskedProgram],
    made: Collection[str],
    stored: Mapping[str, Moment],
) -> Moment | None:
    """From here on no entry of the module is earlier than what the attempt compiled of it.

    None where that is not known.
    """
    first = min((stored[n] for n in map(entry_name, made) if n in stored), default=None)
    ends = [stored.get(entry_name(p.key), first) for p in own if p.missed and p.module == module]
    known = [end for end in ends if end is not None]
    return max(known) if known and len(known) == len(ends) else None


def circumstances(attempt: AttemptFacts, cache: Mapping[str, Any], problem: str) -> Circumstances:
    """What the record says of an attempt beside what it asked for."""
    hosts = (attempt.end or {}).get("hosts")
    reports = [w.get("cache") for w in attempt.workers] + list(hosts if hosts else ())
    said = [*attempt.workers, *(h for h in hosts or () if isinstance(h, Mapping))]
    counts = [report for report in reports if isinstance(report, Mapping)]

    def total(*names: str) -> int:
        values = [report.get(name) for report in counts for name in names]
        return sum(value for value in values if isinstance(value, int))

    return Circumstances(
        mode=str(cache.get("mode", "")),
        location=str(cache.get("location", "")),
        unsigned=total("unsigned", "bad_signature"),
        errors=total("errors"),
        warnings=tuple(
            str(warning)
            for one in said
            for warning in (one.get("warnings") or () if isinstance(one, Mapping) else ())
        ),
        problem=problem,
    )


def render(explained: Mapping[str, Any]) -> Iterator[str]:
    """Lines for people."""
    if explained["run"] is not None:
        where = f"cache {explained['location']}"
        yield f"run {explained['run']}, attempt {explained['attempt']}; {where}"
        if not explained["recorded"]:
            yield (
                "  what this attempt asked for is not in its record: it ended before its first "
                "step was over, its cache was off, or an older hotstart ran it"
            )
        elif not explained["programs"]:
            yield "  nothing was compiled: every program was found in the cache"
        if explained["problem"]:
            yield f"  the cache can't be looked at: {explained['problem']}"
    for program in explained["programs"]:
        yield from _render_program(program)
    for found in explained["disagreements"]:
        yield f"processes differ: {found['summary']}"


def short(program: Mapping[str, Any]) -> str:
    """One program in one line, for the report."""
    who = f" ({shown_processes(program['processes'])})" if program["processes"] else ""
    return f"{program['module']} compiled{who}: {program['summary']}"


def _render_program(program: Mapping[str, Any]) -> Iterator[str]:
    who = f", by {shown_processes(program['processes'])}" if program["processes"] else ""
    yield f"{program['key']} was compiled{who}"
    if program["status"] != "changed":
        yield f"  {program['summary']}"
        return
    for cause in program["causes"]:
        yield f"  {cause['kind']}: {cause['text']}"
    for cause in program["follows"]:
        yield f"    and so: {cause['text']}"
    nearest = program["nearest"]
    yield f"  against {nearest['key']} ({nearest['where']}):"
    yield f"    {nearest['choice']}"
    yield f"    components of the key that differ: {', '.join(nearest['components']) or 'none'}"


def _explained(
    location: str, run: str | None, attempt: int | None, found: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "location": location,
        "run": run,
        "attempt": attempt,
        "recorded": True,
        "problem": None,
        **found,
    }


def _asked_in_part(programs: Sequence[AskedProgram]) -> set[str]:
    """Modules of which several keys were asked for: processes may differ in them."""
    modules = [program.module for program in programs]
    return {module for module in modules if modules.count(module) > 1}


def _not_there(store: Store, wanted: str, listing: Sequence[Listed]) -> str:
    modules = sorted({module for _, _, module in listing if module})
    near = get_close_matches(wanted.rpartition("-")[0] or wanted, modules, n=3, cutoff=0.4)
    there = (
        f"the modules there are {', '.join((near or modules)[:6])}" if modules else "it is empty"
    )
    return (
        f"no entry of {wanted} in {store.url}; {there}. What a run compiled and did not store is "
        "explained by `hotstart cache explain --run RUN`"
    )
