"""The page of the model: inputs and figures from the last bench, in docs/scale.md.

python -m tests.bench.scale_page      docs/scale.md and docs/growth.svg
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from tests.bench import growth, table
from tests.bench.scale import WAYS, Inputs, inputs_from

DOCS = table.ROOT / "docs" / "scale.md"
HOSTS = (1000, 10_000)
_BEGIN, _END = "<!-- figures -->", "<!-- end of figures -->"


def markdown(inputs: Inputs, source: Mapping[str, str], cells: Sequence[Mapping[str, Any]]) -> str:
    """Inputs, figures and what growth has measured."""
    lines = ["### Inputs", "", "| input | value | from |", "|---|---|---|"]
    for field in fields(inputs):
        value = getattr(inputs, field.name)
        origin = f"measured, `{source[field.name]}`" if field.name in source else "assumed"
        lines.append(f"| `{field.name}` | {value:g} | {origin} |")
    for hosts in HOSTS:
        lines += [
            "",
            f"### {hosts:,} hosts, {inputs.keys} keys",
            "",
            "| start | way | requests | USD | bytes of the bucket | reads, s | writes, s | "
            "claims, s | in a row, s | start, s |",
            "|---|---|---|---|---|---|---|---|---|---|",
        ]
        for start, way, formula in WAYS:
            cost = formula(inputs, hosts)
            lines.append(
                f"| {start} | {way} | {cost.requests:,.0f} | {cost.usd:.2g} | "
                f"{_size(cost.bucket_bytes)} | {_seconds(cost.reads_s)} | "
                f"{_seconds(cost.writes_s)} | {_seconds(cost.claims_s)} | "
                f"{_seconds(cost.path_s)} | {_seconds(cost.start_s)} |"
            )
    if cells:
        lines += [
            "",
            "### Measured growth",
            "",
            "| workers | hosts | keys | requests, cold | warm | CPU seconds, cold | warm |",
            "|---|---|---|---|---|---|---|",
        ]
        for cell in cells:
            lines.append(
                f"| {cell['workers']} | {cell['hosts']} | {cell['keys']} | "
                f"{cell['cold_requests']} | {cell['warm_requests']} | "
                f"{cell['cold_cpu_s']:.3g} | {cell['warm_cpu_s']:.3g} |"
            )
    return "\n".join(lines) + "\n"


def update_docs(
    rows: Sequence[Mapping[str, Any]], path: Path = DOCS, picture: Path = growth.PLOT
) -> None:
    """Put the figures between the marks of a Markdown file, with a plot where it can be drawn."""
    inputs, source = inputs_from(rows)
    cells: list[dict[str, Any]] = next(
        (r["beside"]["cells"] for r in rows if r["slug"] == "growth" and not r.get("error")), []
    )
    figures = markdown(inputs, source, cells)
    if cells and (growth.plot(cells, picture) or picture.exists()):
        figures += f"\n![requests and CPU seconds over workers]({picture.name})\n"
    head, _, rest = path.read_text().partition(_BEGIN)
    _, _, tail = rest.partition(_END)
    path.write_text(f"{head}{_BEGIN}\n{figures}{_END}{tail}")


def _seconds(seconds: float) -> str:
    return f"{seconds:,.0f}" if seconds >= 10 else f"{seconds:.2g}"


def _size(size_bytes: float) -> str:
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if size_bytes < 1000:
            return f"{size_bytes:.3g} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.3g} PB"


if __name__ == "__main__":
    update_docs(table.read())
