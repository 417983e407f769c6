"""`bench.json` and the Markdown table: write them, and bring them into `docs/`.

python -m tests.bench.table      docs/bench.md, with the rows of build/bench.json
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
JSON = ROOT / "build" / "bench.json"
MARKDOWN = ROOT / "build" / "bench.md"
DOCS = ROOT / "docs" / "bench.md"
_BEGIN, _END = "<!-- rows -->", "<!-- end of rows -->"


def write(rows: Sequence[dict[str, Any]], folder: Path = JSON.parent) -> None:
    """Write both files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / JSON.name).write_text(json.dumps(rows, indent=2) + "\n")
    (folder / MARKDOWN.name).write_text(markdown(rows))


def read(path: Path = JSON) -> list[dict[str, Any]]:
    """The rows of an earlier run; none where there is no such file."""
    return json.loads(path.read_text()) if path.exists() else []


def merge(
    old: Iterable[dict[str, Any]], new: Sequence[dict[str, Any]], order: Sequence[str]
) -> list[dict[str, Any]]:
    """The old rows with the new ones in place of their like, in this order of slugs."""
    rows = {row["slug"]: row for row in (*old, *new)}
    return [rows.pop(slug) for slug in order if slug in rows] + list(rows.values())


def markdown(rows: Iterable[dict[str, Any]]) -> str:
    """A table with one line a row, and a list of what was measured beside."""
    lines = [
        "| row | what | against | ours | theirs | ratio | target | met |",
        "|---|---|---|---|---|---|---|---|",
    ]
    notes = []
    for row in rows:
        cells = (
            f"`{row['slug']}`",
            row["what"],
            row.get("against") or "",
            _amount(row["ours"], row["unit"]),
            _amount(row["theirs"], row["unit"]),
            _number(row["ratio"]),
            _target(row),
            {True: "yes", False: "**no**", None: ""}[row["met"]],
        )
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        notes += _notes(row)
    return "\n".join([*lines, "", *notes]) + "\n"


def update_docs(rows: Iterable[dict[str, Any]], path: Path = DOCS) -> None:
    """Put the table between the marks of a Markdown file."""
    head, _, rest = path.read_text().partition(_BEGIN)
    _, _, tail = rest.partition(_END)
    path.write_text(f"{head}{_BEGIN}\n{markdown(rows)}{_END}{tail}")


def _target(row: dict[str, Any]) -> str:
    bounds = [row["bound"]] if row.get("bound") else []
    bounds += [f"{c['what']} {c['bound']}" for c in row.get("conditions", ())]
    if not bounds and row["target"] is not None:
        bounds = [_number(row["target"])]
    return "; ".join(bounds) or "report"


def _notes(row: dict[str, Any]) -> list[str]:
    if row.get("error"):
        return [f"- `{row['slug']}` failed: {_one_line(row['error'])}"]
    said = [f"{c['what']} {_number(c['value'])}" for c in row.get("conditions", ())]
    said += [
        f"{name} {_number(value)}"
        for name, value in row.get("beside", {}).items()
        if not isinstance(value, list | dict)
    ]
    spread = [
        f"{side} {_number(min(values))} to {_number(max(values))} in {len(values)} rounds"
        for side, values in row.get("rounds", {}).items()
        if len(values) > 1
    ]
    if spread:
        said.append(", ".join(spread))
    return [f"- `{row['slug']}`: {'; '.join(said)}"] if said else []


def _one_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "no message"


def _amount(value: float | None, unit: str) -> str:
    return "" if value is None else f"{_number(value)} {unit}"


def _number(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if value == int(value) and abs(value) >= 1000:
        return f"{int(value):,}"
    return f"{value:.3g}"


if __name__ == "__main__":
    update_docs(read())
