"""What a report says of an attempt's preemption notices; see `docs/report-schema.md`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def notices_of(end: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The notices in the recorded end of an attempt, each with the fields of the schema."""
    return [_notice(n) for n in end.get("preemption") or () if isinstance(n, Mapping)]


def notice_line(notice: Mapping[str, Any]) -> str:
    """One notice in one line."""
    what = " ".join(filter(None, (notice["source"], notice["detail"])))
    if notice["process_index"] is not None:
        what += f" to process {notice['process_index']}"
    line = f"preemption notice for {notice['host']} ({what}) after {_seconds(notice['seen_at_s'])}"
    if notice["left_s"] is not None:
        line += f", {_seconds(notice['left_s'])} left"
    for left in notice["left"]:
        line += f"; process {left['process_index']} left after {_seconds(left['at_s'])}"
    return line + ("; the others were ended" if notice["ended_by_launcher"] else "")


def _notice(facts: Mapping[str, Any]) -> dict[str, Any]:
    left = [entry for entry in facts.get("left") or () if isinstance(entry, Mapping)]
    return {
        "source": str(facts.get("source", "")),
        "detail": str(facts.get("detail", "")),
        "host": str(facts.get("host", "")),
        "process_index": _whole(facts.get("process_index")),
        "seen_at_s": _seconds_in(facts.get("seen_at_s")),
        "left_s": _seconds_in(facts.get("left_s")),
        "left": [
            {
                "process_index": _whole(entry.get("process_index")),
                "at_s": _seconds_in(entry.get("at_s")),
                "last_step": _whole(entry.get("last_step")),
            }
            for entry in left
        ],
        "ended_by_launcher": facts.get("ended_by_launcher") is True,
    }


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _seconds_in(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _seconds(value: float | None) -> str:
    return "? s" if value is None else f"{value:.1f} s"
