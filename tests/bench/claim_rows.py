"""The coordinator's rows, which `claims.py` measures without JAX and Ray."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.bench.results import Bound, Condition, Result
from tests.bench.rows import Row, Tell
from tests.bench.stage import Options

_CLAIMS = Result(
    "claims",
    "coordinator, 1,000 simulated agents x 200 keys: claims a second",
    "",
    "claims/s",
    Bound(">=", 5000.0),
)


def measure(options: Options, tell: Tell) -> Sequence[Result]:
    """What `claims.measure` gives, as rows."""
    from tests.bench import claims

    return [as_result(row) for row in claims.measure(rounds=options.rounds)]


def as_result(row: dict[str, Any]) -> Result:
    """A row that was measured elsewhere; what is not a column of the table is told beside."""
    known = {"slug", "what", "against", "ours", "theirs", "unit", "ratio", "target", "met"}
    beside = {name: value for name, value in row.items() if name not in known}
    bound = None
    if row.get("target") is not None:
        bound = _CLAIMS.bound if row["slug"] == _CLAIMS.slug else Bound("<=", row["target"])
    conditions = ()
    if "p99_ms" in beside:
        conditions = (Condition("p99 ms", float(beside.pop("p99_ms")), Bound("<", 50.0)),)
    return Result(
        row["slug"],
        row["what"],
        row.get("against") or "",
        row["unit"],
        bound,
        ours=row["ours"],
        theirs=row["theirs"],
        conditions=conditions,
        beside=beside,
    )


ROWS: tuple[Row, ...] = (Row(_CLAIMS, measure, limit_s=900),)
