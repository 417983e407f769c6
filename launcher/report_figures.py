"""The figures of a run's page, drawn with Plotly from a report of schema 1.

Colors are those of Okabe and Ito, which color-blind readers can tell apart
(https://jfly.uni-koeln.de/color/).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import plotly.graph_objects as go

from hotstart.launcher.progress import PHASES

STEPS = "steps"
_COLORS = {
    "process_start": "#999999",
    "import_jax": "#56B4E9",
    "cache_enabled": "#0072B2",
    "distributed": "#CC79A7",
    "user_code": "#F0E442",
    "first_compile": "#E69F00",
    "first_step": "#D55E00",
    STEPS: "#009E73",
}
_LABELS = {
    "process_start": "process start",
    "import_jax": "import jax",
    "cache_enabled": "cache in place",
    "distributed": "jax.distributed",
    "user_code": "to user code",
    "first_compile": "to first program",
    "first_step": "to first step",
    STEPS: "steps",
}
_ROW_PX, _MOST_PX = 24, 2400
_MOST_PROGRAMS = 15


@dataclass(frozen=True)
class Bar:
    """What one worker did for a while; seconds since the run was launched."""

    phase: str
    process_index: int
    attempt: int
    from_s: float
    to_s: float


def seconds_between(earlier: str | None, later: str | None) -> float | None:
    """Seconds from one ISO time to another, by one host's clock; None where one is missing."""
    if earlier is None or later is None:
        return None
    return (datetime.fromisoformat(later) - datetime.fromisoformat(earlier)).total_seconds()


def decided_s(report: Mapping[str, Any], attempt: Mapping[str, Any]) -> float | None:
    """When it was decided to start an attempt, from which its phases count, after the launch."""
    start_s = seconds_between(report["launched_at"], attempt["started_at"])
    return None if start_s is None else start_s - float(attempt["waited_s"])


def phase_spans(worker: Mapping[str, Any]) -> Iterator[tuple[str, float, float]]:
    """Each phase that a worker has reached, and when it began and ended: seconds of its attempt."""
    at_s = 0.0
    for phase in PHASES:
        end_s = worker["phases"][phase]
        if end_s is not None and end_s >= at_s:  # a program may compile before user code's main
            yield phase, at_s, end_s
            at_s = end_s


def bars(report: Mapping[str, Any]) -> list[Bar]:
    """The timeline's bars; an attempt without an end goes on until its last phase."""
    found = []
    for attempt in report["attempts"]:
        start_s = decided_s(report, attempt)
        if start_s is None:
            continue
        length_s = seconds_between(attempt["started_at"], attempt["ended_at"])
        if length_s is not None:
            length_s += attempt["waited_s"]
        for worker in attempt["workers"]:
            index, number = worker["process_index"], attempt["attempt"]
            last_s = 0.0
            for phase, from_s, to_s in phase_spans(worker):
                found.append(Bar(phase, index, number, start_s + from_s, start_s + to_s))
                last_s = to_s
            if length_s is not None and length_s > last_s:
                is_stepping = worker["phases"]["first_step"] is not None
                phase = STEPS if is_stepping else _next_phase(worker)
                found.append(Bar(phase, index, number, start_s + last_s, start_s + length_s))
    return found


def timeline(report: Mapping[str, Any]) -> go.Figure:
    """A row a worker, bars for its phases, marks for first steps and for how attempts ended."""
    drawn = bars(report)
    rows = sorted({bar.process_index for bar in drawn}, reverse=True)
    figure = go.Figure()
    for phase in (*PHASES, STEPS):
        here = [bar for bar in drawn if bar.phase == phase]
        if here:
            figure.add_bar(
                name=_LABELS[phase],
                orientation="h",
                y=[_row(bar.process_index) for bar in here],
                x=[bar.to_s - bar.from_s for bar in here],
                base=[bar.from_s for bar in here],
                marker={"color": _COLORS[phase], "line": {"width": 0}},
                customdata=[(bar.attempt, bar.to_s - bar.from_s) for bar in here],
                hovertemplate="%{y}, attempt %{customdata[0]}<br>"
                + _LABELS[phase]
                + ": %{customdata[1]:.2f} s<extra></extra>",
            )
    _add_first_steps(figure, report)
    _add_ends(figure, report)
    figure.update_layout(
        barmode="overlay",
        height=min(_MOST_PX, 230 + _ROW_PX * max(len(rows), 2)),
        xaxis={"title": "seconds since launch", "zeroline": False},
        yaxis={"categoryorder": "array", "categoryarray": [_row(row) for row in rows]},
    )
    return _styled(figure).update_layout(margin={"t": 80})


def first_steps(report: Mapping[str, Any]) -> go.Figure:
    """What each attempt's slowest worker did until its first step."""
    figure = go.Figure()
    slowest = {a["attempt"]: w for a in report["attempts"] if (w := _slowest(a)) is not None}
    for phase in PHASES:
        spans = {n: dict(_lengths(worker)).get(phase, 0.0) for n, worker in slowest.items()}
        figure.add_bar(
            name=_LABELS[phase],
            x=[f"attempt {number}" for number in spans],
            y=list(spans.values()),
            marker={"color": _COLORS[phase]},
            hovertemplate=f"{_LABELS[phase]}: %{{y:.2f}} s<extra>%{{x}}</extra>",
        )
    for number, worker in slowest.items():
        total_s = worker["phases"]["first_step"]
        figure.add_annotation(
            x=f"attempt {number}", y=total_s, text=f"<b>{total_s:.1f} s</b>", yshift=12,
            showarrow=False,
        )  # fmt: skip
    figure.update_layout(barmode="stack", height=380, yaxis={"title": "seconds to first step"})
    return _styled(figure)


def programs_asked(report: Mapping[str, Any]) -> go.Figure:
    """Of the programs that JAX asked for: how many were there, and how many were compiled."""
    attempts = [a for a in report["attempts"] if a["workers"]]
    names = [f"attempt {a['attempt']}" for a in attempts]
    figure = go.Figure()
    for count, label, color in (("hits", "hits", "#009E73"), ("compiled", "compiled", "#D55E00")):
        totals = [sum(w["cache"][count] for w in a["workers"]) for a in attempts]
        figure.add_bar(
            name=label, x=names, y=totals, text=totals, marker={"color": color},
            hovertemplate=f"{label}: %{{y}}<extra>%{{x}}</extra>",
        )  # fmt: skip
    figure.update_layout(
        barmode="group", height=380, yaxis={"title": "programs, all workers together"}
    )
    return _styled(figure)


def slowest_programs(programs: Sequence[Mapping[str, Any]]) -> go.Figure:
    """The programs that took longest to compile, `{module, compile_s, size_bytes}` each."""
    shown = sorted(programs, key=lambda program: program["compile_s"])[-_MOST_PROGRAMS:]
    figure = go.Figure(
        go.Bar(
            orientation="h",
            y=[program["module"] for program in shown],
            x=[program["compile_s"] for program in shown],
            text=[f"{program['size_bytes'] / 1e6:.2f} MB" for program in shown],
            marker={"color": _COLORS["first_compile"]},
            hovertemplate="%{y}<br>compiled in %{x:.2f} s<br>entry: %{text}<extra></extra>",
        )
    )
    _styled(figure)
    return figure.update_layout(
        height=140 + _ROW_PX * len(shown),
        margin={"l": 180, "t": 16, "b": 56},
        xaxis={"title": "seconds to compile; size of its entry"},
    )


def _add_first_steps(figure: go.Figure, report: Mapping[str, Any]) -> None:
    points = []
    for attempt in report["attempts"]:
        start_s = decided_s(report, attempt)
        for worker in attempt["workers"]:
            step_s = worker["phases"]["first_step"]
            if start_s is not None and step_s is not None:
                points.append((start_s + step_s, _row(worker["process_index"]), step_s))
    if points:
        at_s, rows, after_s = zip(*points, strict=True)
        figure.add_scatter(
            name="first step", x=at_s, y=rows, mode="markers", customdata=after_s,
            marker={"symbol": "diamond", "size": 9, "color": "black"},
            hovertemplate="%{y}: first step after %{customdata:.2f} s<extra></extra>",
        )  # fmt: skip


def _add_ends(figure: go.Figure, report: Mapping[str, Any]) -> None:
    """A line where an attempt ended, and a cross on the worker that was the first to fail."""
    failed = []
    for attempt in report["attempts"]:
        end_s = seconds_between(report["launched_at"], attempt["ended_at"])
        if end_s is None:
            continue
        figure.add_vline(
            x=end_s, line={"color": "#555", "dash": "dot", "width": 1},
            annotation={"text": f"{attempt['attempt']}: {attempt['outcome']}", "textangle": -30},
            annotation_position="top",
        )  # fmt: skip
        if attempt["first_worker"] is not None:
            failed.append((end_s, _row(attempt["first_worker"]), attempt["reason"] or ""))
    if failed:
        at_s, rows, reasons = zip(*failed, strict=True)
        figure.add_scatter(
            name="first to fail", x=at_s, y=rows, mode="markers", customdata=reasons,
            marker={"symbol": "x", "size": 11, "color": "#B00020"},
            hovertemplate="%{customdata}<extra></extra>",
        )  # fmt: skip


def _slowest(attempt: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The worker that was the last to do its first step; None where one has done none."""
    reached = [w for w in attempt["workers"] if w["phases"]["first_step"] is not None]
    if not reached or attempt["seconds_to_first_step"] is None:
        return None
    return max(reached, key=lambda worker: worker["phases"]["first_step"])


def _lengths(worker: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    return ((phase, to_s - from_s) for phase, from_s, to_s in phase_spans(worker))


def _next_phase(worker: Mapping[str, Any]) -> str:
    reached = [phase for phase, _, _ in phase_spans(worker)]
    return PHASES[PHASES.index(reached[-1]) + 1] if reached else PHASES[0]


def _row(process_index: int) -> str:
    return f"process {process_index}"


def _styled(figure: go.Figure) -> go.Figure:
    figure.update_layout(
        template="plotly_white",
        font={"family": "system-ui, sans-serif", "size": 14},
        margin={"l": 90, "r": 24, "t": 32, "b": 110},
        legend={"orientation": "h", "yref": "container", "y": 0.0, "yanchor": "bottom"},
        legend_traceorder="normal",
    )
    return figure


def utc(iso: str | None) -> str:
    """A time of day for readers; empty where it is not known."""
    if iso is None:
        return ""
    return datetime.fromisoformat(iso).astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
