"""The bench: what hotstart costs and saves, against rivals that are measured in turn.

    python -m tests.bench [ROW...] [--rounds 5] [--list]

Writes `build/bench.json` and `build/bench.md`. With rows named, theirs are replaced and the
others stay; without, all are measured and the files begin anew. A row that fails is reported
with its error, and the others go on.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tests.bench import table
from tests.bench.catalog import ROWS
from tests.bench.limits import guarded
from tests.bench.results import Result
from tests.bench.rows import Row
from tests.bench.stage import Options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; 1 where a row failed. A target that isn't met is no failure."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help="all by default")
    parser.add_argument("--list", action="store_true", help="name the rows and do nothing")
    parser.add_argument("--output", type=Path, default=table.JSON.parent)
    for name, value in vars(Options()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value)
    asked = parser.parse_args(arguments)
    if asked.list:
        for row in ROWS:
            print(f"{row.slug:<24}{row.result.what}")
        return 0
    unknown = set(asked.rows) - {row.slug for row in ROWS}
    if unknown:
        parser.error(f"no row {', '.join(sorted(unknown))}; there are {_slugs(ROWS)}")
    options = Options(**{name: getattr(asked, name) for name in vars(Options())})
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    rows = table.read(asked.output / table.JSON.name) if asked.rows else []
    failed = False
    for row in ROWS:
        if asked.rows and row.slug not in asked.rows:
            continue
        results = measure(row, options)
        failed |= any(result.error is not None for result in results)
        rows = table.merge(rows, [r.to_json() for r in results], [known.slug for known in ROWS])
        table.write(rows, asked.output)
    print(f"\n{table.markdown(rows)}")
    return int(failed)


def measure(row: Row, options: Options) -> Sequence[Result]:
    """One row, within its time; says what it does as it goes."""

    def tell(text: str) -> None:
        print(f"{row.slug:<24}{text}", flush=True)

    started = time.monotonic()
    results = guarded(row.result, lambda: row.measure(options, tell), row.limit_s)
    taken = time.monotonic() - started
    results = [result if result.seconds else replace(result, seconds=taken) for result in results]
    for result in results:
        met = {True: "met", False: "not met", None: "reported"}[result.met]
        said = f"failed\n{result.error}" if result.error else f"{met}, ratio {result.ratio}"
        tell(f"{result.slug}: {said} ({taken:.0f} s)")
    return results


def _slugs(rows: Sequence[Row]) -> str:
    return ", ".join(row.slug for row in rows)


if __name__ == "__main__":
    sys.exit(main())
