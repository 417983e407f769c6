"""`hotstart cache explain`: why a program was compiled and not found. Needs neither Ray nor JAX."""

from __future__ import annotations

import json
from typing import Any

import click

_EXAMPLES = """\b
Examples:
  hotstart cache explain jit_step gs://bucket/cache
  hotstart cache explain jit_step-1f2e3d... ~/.hotstart/cache
  hotstart cache explain --run latest
  hotstart cache explain --run bytelm-20261124-163001-3f2a --attempt 2 --json
"""


@click.command(epilog=_EXAMPLES)
@click.argument("key", metavar="[KEY", required=False)
@click.argument("location", metavar="[LOCATION]]", required=False)
@click.option("--run", metavar="RUN", help="Explain what a run compiled: its name, or `latest`.")
@click.option("--attempt", type=int, metavar="N", help="Which attempt [default: the last].")
@click.option(
    "--run-dir", metavar="DIR", help="Where runs are kept [default: $HOTSTART_HOME/runs]."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output.")
def explain(
    key: str | None,
    location: str | None,
    run: str | None,
    attempt: int | None,
    run_dir: str | None,
    as_json: bool,
) -> None:
    """Say why a program was compiled and not found: what has changed against an earlier one.

    KEY is one of LOCATION's keys as JAX logs it, its hash or the beginning of that, or a module's
    name, whose latest entry is explained. LOCATION is a cache, by default the one of this host.
    """
    from hotstart.launcher.errors import UsageError
    from hotstart.launcher.explaining import render

    if (key is None) == (run is None):
        raise UsageError(
            "give either a key, and where its cache is, or --run RUN; see "
            "`hotstart cache explain --help`"
        )
    explained: dict[str, Any]
    if key is not None:
        if attempt is not None or run_dir is not None:
            raise UsageError("--attempt and --run-dir go with --run RUN, not with a key")
        from hotstart.launcher.explaining import explain_key

        explained = explain_key(key, location)
    else:
        assert run is not None
        from hotstart.launcher.explaining import explain_run_named

        explained = explain_run_named(run, attempt, run_dir, location)
    if as_json:
        click.echo(json.dumps(explained, indent=2))
        return
    for line in render(explained):
        click.echo(line)
