"""All rows of the bench, in the order of the table."""

from __future__ import annotations

from tests.bench import (
    claim_rows,
    compilations,
    growth,
    memory,
    puts,
    raw_store,
    reads,
    restarts,
    starts,
)
from tests.bench.rows import Row

ROWS: tuple[Row, ...] = (
    *restarts.ROWS,
    *starts.ROWS,
    *compilations.ROWS,
    *reads.ROWS,
    *puts.ROWS,
    *raw_store.ROWS,
    *claim_rows.ROWS,
    *growth.ROWS,
    *memory.ROWS,
)
