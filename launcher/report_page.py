"""A run's page: one HTML file that needs no other, for `hotstart report RUN --html FILE`.

It is written beside its place and moved there, so a reader never sees half of it.
"""

from __future__ import annotations

import html
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hotstart.launcher.errors import UsageError

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1b1b1b; margin: 0 auto; max-width: 1160px;
       padding: 24px; }
h1 { font-size: 24px; margin: 0 0 4px; } h2 { font-size: 18px; margin: 32px 0 4px; }
p.sub { color: #555; margin: 0 0 16px; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(170px, 1fr)); gap: 12px; }
.card { border: 1px solid #ddd; border-radius: 8px; padding: 10px 14px; }
.card b { display: block; font-size: 19px; white-space: nowrap; } .card span { color: #555; }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(440px, 1fr)); gap: 16px; }
.two > div { min-width: 0; }
table { border-collapse: collapse; width: 100%; } th { text-align: left; color: #555; }
td, th { border-bottom: 1px solid #eee; padding: 5px 10px 5px 0; vertical-align: top; }
td.n, th.n { text-align: right; }
"""
# Figures are drawn as they are read, when what stands beside them is not there yet.
_FIT = "<script>window.dispatchEvent(new Event('resize'))</script>"
_FAULTS = (
    ("errors", "cache errors"),
    ("retries", "requests sent again"),
    ("outages", "outages"),
    ("retry_s", "seconds lost to them"),
    ("unsigned", "unsigned"),
    ("bad_signature", "wrongly signed"),
)


def write_page(report: Mapping[str, Any], path: Path) -> None:
    """Write the page of a report of schema 1. Raises `UsageError` where it can't be written."""
    try:
        page = render_page(report)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"the page is drawn with {error.name}, which is not installed; "
            "run: pip install 'hotstart[report]'"
        ) from None
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from None
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(page)
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except OSError as error:
        Path(name).unlink(missing_ok=True)
        raise UsageError(f"cannot write {path}: {error.strerror}") from None


def render_page(report: Mapping[str, Any]) -> str:
    """The page's HTML. Needs Plotly; takes a second, most of it to import that."""
    import plotly.io

    from hotstart.launcher import report_figures as figures

    is_first = True

    def draw(figure: Any) -> str:
        nonlocal is_first
        script, is_first = is_first, False
        return plotly.io.to_html(
            figure,
            full_html=False,
            include_plotlyjs=script,
            config={"displayModeBar": False, "responsive": True},
        )

    def body() -> Iterator[str]:
        yield f"<h1>{_text(report['run'])}</h1>"
        yield f"<p class=sub>{_text(_subtitle(report, figures.utc(report['launched_at'])))}</p>"
        yield f"<div class=cards>{''.join(_cards(report))}</div>"
        if not report["attempts"]:
            return
        yield "<h2>Timeline</h2>"
        yield draw(figures.timeline(report))
        yield "<div class=two><div><h2>Time to first step</h2>"
        yield draw(figures.first_steps(report))
        yield "</div><div><h2>Programs</h2>"
        yield draw(figures.programs_asked(report))
        yield "</div></div>"
        if programs := slowest(report):
            yield "<h2>Slowest programs</h2>"
            yield draw(figures.slowest_programs(programs))
        yield "<h2>Attempts</h2>"
        yield from _attempts(report)
        yield "<h2>Retries and faults</h2>"
        yield from _faults(report)

    title = _text(f"hotstart: {report['run']}")
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8>"
        f"<title>{title}</title><style>{_STYLE}</style></head><body>{''.join(body())}{_FIT}</body></html>"
    )


def slowest(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each module's longest compilation that any worker of the run knew of."""
    found: dict[str, dict[str, Any]] = {}
    for attempt in report["attempts"]:
        for worker in attempt["workers"]:
            for program in worker["programs"]:
                known = found.get(program["module"])
                if known is None or program["compile_s"] > known["compile_s"]:
                    found[program["module"]] = dict(program)
    return sorted(found.values(), key=lambda program: -program["compile_s"])


def _cards(report: Mapping[str, Any]) -> Iterator[str]:
    attempts = report["attempts"]
    workers = [worker for attempt in attempts for worker in attempt["workers"]]
    state = report["state"]
    if report["exit_code"] is not None:
        state += f" ({report['exit_code']})"
    yield _card(state, "state (exit code)")
    yield _card(str(len(attempts)), "attempts")
    reached = [a["seconds_to_first_step"] for a in attempts if a["seconds_to_first_step"]]
    if reached:
        arrow = f"{reached[0]:.1f} s" + (f" → {reached[-1]:.1f} s" if len(reached) > 1 else "")
        yield _card(arrow, "first step, first → last attempt")
    hits = sum(worker["cache"]["hits"] for worker in workers)
    compiled = sum(worker["cache"]["compiled"] for worker in workers)
    yield _card(f"{hits} / {compiled}", "programs from the cache / compiled")
    saved_s = sum(worker["cache"]["saved_s"] for worker in workers)
    yield _card(_duration(saved_s), "of compilation saved, worker time")
    if (cost := report["cost"]) is not None:
        spent = "?" if cost["spent"] is None else f"{cost['spent']:,.2f}"
        yield _card(f"{cost['saved']:,.2f} / {spent}", "money saved / spent, job's currency")


def _attempts(report: Mapping[str, Any]) -> Iterator[str]:
    yield "<table><tr><th>attempt<th>ended<th class=n>workers<th class=n>first step<th>why"
    for attempt in report["attempts"]:
        first_s = attempt["seconds_to_first_step"]
        cells = (
            attempt["attempt"],
            attempt["outcome"] or "no end recorded",
            len(attempt["workers"]),
            "-" if first_s is None else f"{first_s:.1f} s",
            attempt["reason"] or "",
        )
        kinds = ("", "", " class=n", " class=n", "")
        yield "<tr>" + "".join(
            f"<td{kind}>{_text(cell)}" for kind, cell in zip(kinds, cells, strict=True)
        )
    yield "</table>"


def _faults(report: Mapping[str, Any]) -> Iterator[str]:
    rows = []
    for attempt in report["attempts"]:
        parts = [worker["cache"] for worker in attempt["workers"]] + attempt["hosts"]
        totals = [sum(part[name] for part in parts) for name, _ in _FAULTS]
        if any(totals):
            rows.append((attempt["attempt"], totals))
    if not rows:
        yield "<p>None.</p>"
        return
    heads = "".join(f"<th class=n>{label}" for _, label in _FAULTS)
    yield f"<table><tr><th>attempt{heads}"
    for number, totals in rows:
        yield f"<tr><td>{number}" + "".join(f"<td class=n>{total:.6g}" for total in totals)
    yield "</table>"


def _subtitle(report: Mapping[str, Any], launched: str) -> str:
    parts = [f"launched {launched}"] if launched else []
    if report["reason"]:
        parts.append(report["reason"])
    if report["cache"]:
        parts.append(f"cache {report['cache']['location']}")
    return "; ".join(parts)


def _card(value: str, what: str) -> str:
    return f"<div class=card><b>{_text(value)}</b><span>{_text(what)}</span></div>"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _text(value: object) -> str:
    return html.escape(str(value))
