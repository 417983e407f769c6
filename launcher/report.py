"""The report of a run: built from the run record by a pure function, shown as JSON or text.

`docs/report-schema.md` documents every field. Nothing is guessed: what a worker did not report
is null (a time) or 0 (a count).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from hotstart.launcher.facts import AttemptFacts, RunFacts
from hotstart.launcher.preemption_report import notice_line, notices_of
from hotstart.launcher.preflight import recorded
from hotstart.launcher.progress import PHASES

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

SCHEMA = 1
COUNTS = (
    "requests",
    "hits",
    "compiled",
    "waits",
    "errors",
    "unsigned",
    "bad_signature",
    "read_bytes",
    "written_bytes",
    "retries",
    "outages",
    "compiled_before_enable",
)
SECONDS = ("compile_s", "saved_s", "retry_s")

HOST_COUNTS = (
    "reads",
    "read_bytes",
    "from_peers",
    "from_peers_bytes",
    "uploads",
    "written_bytes",
    "errors",
    "unsigned",
    "bad_signature",
    "retries",
    "outages",
)
HOST_SECONDS = ("retry_s",)

_LEGEND = (
    "start to step: seconds since it was decided to start the attempt;\n"
    "spent, saved: seconds of compilation"
)
_ONE_TABLE_COLUMNS = 115  # narrower than this, phases and cache get a table each

_COLD_SHARE = 0.1  # of the compilation time; an attempt that saved less was a cold start


def build_report(facts: RunFacts) -> dict[str, Any]:
    """The report as JSON-ready data of schema 1 (see `docs/report-schema.md`)."""
    ended = facts.end if facts.end is not None and facts.end.state == facts.state else None
    return {
        "schema": SCHEMA,
        "run": facts.run,
        "state": facts.state,
        "exit_code": ended.exit_code if ended else None,
        "reason": ended.reason if ended else None,
        "launched_at": _iso(facts.created.get("created_s")),
        "cache": _cache_used(facts.attempts),
        "manifest": _manifest(facts.attempts),
        "cost": _cost(facts.attempts),
        "attempts": [_attempt(a) for a in facts.attempts],
    }


def render_text(report: Mapping[str, Any], console: Console) -> None:
    """Print a report of schema 1 to a console; readable from 80 columns on."""
    from rich.text import Text

    console.print(Text(_header(report)))
    for attempt in report["attempts"]:
        console.print()
        console.print(Text(_attempt_line(attempt), style="bold"))
        for table in _tables(attempt["workers"], console.width):
            console.print(table)
        for note in _notes(attempt):
            console.print(Text(f"  {note}"))
    if report["attempts"]:
        console.print()
        console.print(Text(_LEGEND, style="dim"))
        console.print(Text(_comparison(report["attempts"])))


def _attempt(facts: AttemptFacts) -> dict[str, Any]:
    workers = sorted((_worker(w) for w in facts.workers), key=lambda w: w["process_index"])
    first_steps = [w["phases"]["first_step"] for w in workers]
    # A worker that died unheard reached no step that anybody knows of.
    count = _number(facts.start.get("process_count"))
    complete = len(workers) == (len(workers) if count is None else count)
    reached = bool(workers) and complete and None not in first_steps
    end = facts.end or {}
    return {
        "attempt": facts.attempt,
        "outcome": end.get("outcome"),
        "reason": end.get("reason"),
        "first_worker": end.get("first_worker"),
        "started_at": _iso(facts.start.get("started_at_s")),
        "waited_s": _number(facts.start.get("waited_s")) or 0.0,
        "ended_at": _iso(end.get("ended_at_s")),
        "process_count": count,
        "host_count": _number(facts.start.get("host_count")),
        "workers_wanted": _wanted(facts.start.get("workers")),
        "seconds_to_first_step": max(first_steps) if reached else None,
        "preemption": notices_of(end),
        "differences": [d for stage in facts.differences for d in recorded(stage)],
        "workers": workers,
        "hosts": [_host(host) for host in end.get("hosts") or () if isinstance(host, Mapping)],
    }


def _wanted(workers: object) -> dict[str, float | int | None] | None:
    found = _mapping(workers)
    return {name: _number(found.get(name)) for name in ("min", "max")} if found else None


def _host(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "host": str(facts.get("host", "")),
        **_counters(facts, HOST_COUNTS, HOST_SECONDS),
        "warnings": _texts(facts, "warnings"),
    }


def _worker(report: Mapping[str, Any]) -> dict[str, Any]:
    phases, cache = _mapping(report.get("phases")), _mapping(report.get("cache"))
    names = cache.get("compiled_before_enable_names")
    return {
        "process_index": int(_number(report.get("process_index")) or 0),
        "host": str(report.get("host", "")),
        "standby": report.get("standby") is True,
        "phases": {name: _number(phases.get(name)) for name in PHASES},
        "cache": {
            **_counters(cache, COUNTS, SECONDS),
            "compiled_before_enable_names": list(names) if isinstance(names, list) else [],
        },
        "programs": list(_programs(report.get("programs"))),
        "last_step": report.get("last_step"),
        "warnings": _texts(report, "warnings"),
    }


def _programs(found: object) -> Iterator[dict[str, Any]]:
    for program in found if isinstance(found, list) else ():
        facts = _mapping(program)
        yield {
            "module": str(facts.get("module", "")),
            "outcome": str(facts.get("outcome", "")),
            "compile_s": float(_number(facts.get("compile_s")) or 0),
            "size_bytes": int(_number(facts.get("size_bytes")) or 0),
        }


def _cost(attempts: tuple[AttemptFacts, ...]) -> dict[str, Any] | None:
    """Worker hours by the job's price; None where the job has none."""
    prices = [_number(a.start.get("cost_per_worker_hour")) for a in attempts]
    if not prices or prices[-1] is None:
        return None
    spent, saved = 0.0, 0.0
    for attempt, price in zip(attempts, prices, strict=True):
        start_s = _number(attempt.start.get("started_at_s"))
        end_s = _number((attempt.end or {}).get("ended_at_s"))
        count = _number(attempt.start.get("process_count")) or len(attempt.workers)
        if start_s is not None and end_s is not None:
            spent += (price or 0) * count * max(0.0, end_s - start_s) / 3600
        saved_s = sum(_worker(w)["cache"]["saved_s"] for w in attempt.workers)
        saved += (price or 0) * saved_s / 3600
    return {
        "per_worker_hour": prices[-1],
        "spent": round(spent, 6),
        "saved": round(saved, 6),
    }


def _counters(
    facts: Mapping[str, Any], counts: Sequence[str], seconds: Sequence[str]
) -> dict[str, int | float]:
    return {name: int(_number(facts.get(name)) or 0) for name in counts} | {
        name: float(_number(facts.get(name)) or 0) for name in seconds
    }


def _texts(facts: Mapping[str, Any], name: str) -> list[str]:
    found = facts.get(name)
    return [str(text) for text in found] if isinstance(found, list) else []


def _cache_used(attempts: tuple[AttemptFacts, ...]) -> dict[str, Any] | None:
    """The cache of the latest attempt that says one: a restart may use another."""
    for attempt in reversed(attempts):
        if cache := _mapping(attempt.start.get("cache")):
            return {name: cache.get(name) for name in ("location", "source", "mode")}
    return None


def _manifest(attempts: tuple[AttemptFacts, ...]) -> dict[str, int] | None:
    """What the run's next start is to have ready: the latest that an attempt left."""
    for attempt in reversed(attempts):
        if attempt.manifest is not None:
            return {"keys": attempt.manifest.keys, "size_bytes": attempt.manifest.size_bytes}
    return None


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _number(value: object) -> float | int | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _iso(seconds: object) -> str | None:
    number = _number(seconds)
    if number is None:
        return None
    return datetime.fromtimestamp(number, UTC).isoformat(timespec="milliseconds")


@dataclass(frozen=True)
class _Column:
    title: str
    cell: Callable[[Mapping[str, Any]], str]


def _phase(title: str, name: str) -> _Column:
    return _Column(title, lambda worker: _seconds(worker["phases"][name]))


def _count(title: str, name: str) -> _Column:
    return _Column(title, lambda worker: str(worker["cache"][name]))


def _size(title: str, name: str) -> _Column:
    return _Column(title, lambda worker: _bytes(worker["cache"][name]))


def _spent(title: str, name: str) -> _Column:
    return _Column(title, lambda worker: _seconds(worker["cache"][name]))


_INDEX_COLUMN = _Column("proc", lambda worker: str(worker["process_index"]))
_PHASE_COLUMNS = (
    _phase("start", "process_start"),
    _phase("jax", "import_jax"),
    _phase("cache", "cache_enabled"),
    _phase("dist", "distributed"),
    _phase("code", "user_code"),
    _phase("compile", "first_compile"),
    _phase("step", "first_step"),
)
_CACHE_COLUMNS = (
    _count("asked", "requests"),
    _count("hit", "hits"),
    _count("compiled", "compiled"),
    _count("waited", "waits"),
    _size("read", "read_bytes"),
    _size("written", "written_bytes"),
    _spent("spent", "compile_s"),
    _spent("saved", "saved_s"),
    _count("retries", "retries"),
)


def _tables(workers: list[Mapping[str, Any]], width: int) -> Iterator[Table]:
    from rich.table import Table

    if not workers:
        return
    groups: list[tuple[_Column, ...]]
    if width >= _ONE_TABLE_COLUMNS:
        groups = [(_INDEX_COLUMN, *_PHASE_COLUMNS, *_CACHE_COLUMNS)]
    else:
        groups = [(_INDEX_COLUMN, *_PHASE_COLUMNS), (_INDEX_COLUMN, *_CACHE_COLUMNS)]
    for columns in groups:
        table = Table(box=None, padding=(0, 0, 0, 1), header_style="dim")
        for column in columns:
            table.add_column(column.title, justify="right", no_wrap=True)
        for worker in workers:
            table.add_row(*(column.cell(worker) for column in columns))
        yield table


def _header(report: Mapping[str, Any]) -> str:
    count = len(report["attempts"])
    parts = [f"run {report['run']}: {report['state']}"]
    if report["exit_code"] is not None:
        parts[0] += f" (exit code {report['exit_code']})"
    parts.append(f"{count} attempt{'' if count == 1 else 's'}")
    if cache := report["cache"]:
        source = f", set by {cache['source']}" if cache["source"] else ""
        parts.append(f"cache {cache['location']} ({cache['mode']}{source})")
    return ", ".join(parts)


def _attempt_line(attempt: Mapping[str, Any]) -> str:
    line = f"attempt {attempt['attempt']}{_gang_size(attempt)}: "
    line += attempt["outcome"] or "no end recorded"
    if attempt["reason"]:
        line += f": {attempt['reason']}"
    return line


def _gang_size(attempt: Mapping[str, Any]) -> str:
    """How large a gang it was, where that may differ from attempt to attempt."""
    wanted = attempt.get("workers_wanted")
    if not wanted or wanted["min"] == wanted["max"]:
        return ""
    return f" ({attempt['process_count']} of {wanted['min']} to {wanted['max']} workers)"


def _notes(attempt: Mapping[str, Any]) -> Iterator[str]:
    for miss in attempt.get("misses", ()):
        if miss["text"]:
            yield miss["text"]
    for notice in attempt.get("preemption", ()):
        yield notice_line(notice)
    for difference in attempt.get("differences", ()):
        yield f"warning: {difference['text']}"
    for host in attempt["hosts"]:
        if host["reads"] or host["from_peers"] or host["uploads"]:
            yield (
                f"{host['host']}: {host['reads']} entries read ({_bytes(host['read_bytes'])}), "
                f"{host['from_peers']} from other hosts, "
                f"{host['uploads']} uploaded ({_bytes(host['written_bytes'])})"
            )
        yield from _troubles(host["host"], host)
        for warning in host.get("warnings", ()):
            yield f"{host['host']}: {warning}"
    for worker in attempt["workers"]:
        who, cache = f"process {worker['process_index']}", worker["cache"]
        if cache["compiled_before_enable"]:
            names = ", ".join(map(str, cache["compiled_before_enable_names"])) or "unnamed"
            count = cache["compiled_before_enable"]
            yield f"{who}: {count} compiled before the cache was in place: {names}"
        yield from _troubles(who, cache)
        for warning in worker["warnings"]:
            yield f"{who}: {warning}"


def _troubles(who: str, counts: Mapping[str, Any]) -> Iterator[str]:
    if counts["errors"]:
        yield f"{who}: {counts['errors']} cache errors; none of them fails the job"
    if counts["unsigned"] or counts["bad_signature"]:
        yield (
            f"{who}: {counts['unsigned']} unsigned and {counts['bad_signature']} wrongly signed "
            "objects refused (docs/trust.md)"
        )
    if counts["retries"] or counts["retry_s"] or counts["outages"]:
        text = (
            f"{who}: {counts['retries']} store requests sent again; "
            f"failed tries and their waits took {_seconds(counts['retry_s'])} s"
        )
        if counts["outages"]:
            times = "once" if counts["outages"] == 1 else f"{counts['outages']} times"
            text += f"; the store was out and left alone {times}"
        yield text


def _comparison(attempts: list[Mapping[str, Any]]) -> str:
    def clause(attempt: Mapping[str, Any]) -> str:
        seconds = attempt["seconds_to_first_step"]
        time = "no step" if seconds is None else f"{seconds:.1f} s"
        return " ".join(filter(None, (f"attempt {attempt['attempt']}", _warmth(attempt), time)))

    return "seconds to first step: " + " -> ".join(clause(a) for a in attempts)


def _warmth(attempt: Mapping[str, Any]) -> str:
    hits = sum(w["cache"]["hits"] for w in attempt["workers"])
    compiled = sum(w["cache"]["compiled"] for w in attempt["workers"])
    if not compiled:
        return "warm" if hits else ""
    # By seconds, and less what the others can have saved by this attempt's own compilations.
    count = len(attempt["workers"])
    spent_s = sum(w["cache"]["compile_s"] for w in attempt["workers"])
    all_saved_s = sum(w["cache"]["saved_s"] for w in attempt["workers"])
    saved_s = max(0.0, all_saved_s - (count - 1) * spent_s) / count
    return "cold" if saved_s <= _COLD_SHARE * (saved_s + spent_s) else "partly warm"


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    decimals = 2 if value < 100 else 1 if value < 1000 else 0
    return f"{value:.{decimals}f}"


def _bytes(value: int) -> str:
    if value < 1000:
        return f"{value} B"
    size = float(value)
    for unit in ("kB", "MB", "GB"):
        size /= 1000
        if size < 999.95:
            return f"{size:.1f} {unit}"
    return f"{size / 1000:.1f} TB"
