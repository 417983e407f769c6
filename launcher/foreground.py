"""A run in the foreground: followed, shown, interrupted by signals, ended with its exit code."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any, NoReturn

import click

if TYPE_CHECKING:
    from hotstart.conf.schema import JobConfig
    from hotstart.launcher.launch import Run

EXIT_CODES = """\b
Exit codes:
  0    done
  1    the job failed
  2    usage or configuration; nothing was started
  3    restart budget spent
  4    the cache is required and cannot be used, or a required warm start missed
  130  interrupted
"""
_STUCK_S = 8.0
_MISSES_S = 3.0

run_dir_option = click.option(
    "--run-dir", metavar="DIR", help="Where runs are kept [default: $HOTSTART_HOME/runs]."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output.")
events_option = click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print what happens on standard output, one JSON object a line (docs/events.md).",
)
address_option = click.option(
    "--address",
    metavar="ADDRESS",
    help="Ray: host:port, `auto`, or `local` to start it here "
    "[default: $RAY_ADDRESS, else a running cluster, else started here].",
)


def check_cluster(address: str | None, config: JobConfig) -> None:
    """Raise `UsageError` where the cluster is known not to do, before anything is recorded."""
    from hotstart.launcher.cluster import check_address, check_hosts
    from hotstart.launcher.placement import place

    check_address(address)
    shares, spread = place(config, config.least_workers), config.placement == "spread"
    check_hosts(address, shares, spread=spread, labels=config.labels)


def follow(run: Run, address: str | None, as_json: bool) -> NoReturn:
    """Execute a run, show it, print its report, and exit with its code.

    With `as_json` standard output gets events (`events.py`) and nothing else, standard error the
    rest.
    """

    def interrupt(number: int, frame: object) -> None:
        run.interrupt()
        _end_later(run, run.config.timeouts.stop_s + _STUCK_S)
        # At once: agents and guards clean up when the driver ends.
        signal.signal(number, lambda number, frame: os._exit(run.exit_code))
        if run.is_over:
            ends = (
                f"hotstart ends with exit code {run.exit_code}, and waits for the record no more\n"
            )
            _notice(ends.encode())
        else:
            _notice(b"hotstart stopping; press Ctrl-C again to stop at once\n")

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    from hotstart.cache.errors import StoreError
    from hotstart.launcher.console import Console
    from hotstart.launcher.misses import is_looking
    from hotstart.launcher.run_events import RunOnStdout

    stream = sys.stderr if as_json else sys.stdout
    console = Console(run.name, run.config.workers, stream)
    console.take_logs()
    console.say(f"run {run.name} in {run.record.store.url}")
    shown = RunOnStdout(run, console) if as_json else None
    try:
        if shown is None:
            decision = run.execute(console, address, console.say)
        else:
            decision = run.execute(shown.events, address, shown.note)
    finally:
        console.close()
        if shown is not None:
            shown.close(_MISSES_S)
    try:
        if not as_json:
            print_report(run.record, as_json, within_s=_MISSES_S)
    except StoreError as error:  # the job has ended as it has
        console.say(f"no report: the record of run {run.name} can't be read: {error}")
    if decision.exit_code:
        console.say(f"{decision.reason} (exit code {int(decision.exit_code)})")
        if decision.exit_code in (1, 3, 130) and not run.superseded:
            argument = run_dir_argument(run.record.store.url)
            console.say(f"restart it with: hotstart restart {run.name}{argument}")
    console.flush()
    if sys.stdout is not None:
        sys.stdout.flush()
    # Ray, broken off by a signal, may abort as Python ends; so may a thread that is in native code.
    if decision.exit_code == 130 or is_looking():
        os._exit(int(decision.exit_code))
    sys.exit(int(decision.exit_code))


def _notice(line: bytes) -> None:
    """Write to standard error from a signal handler: past all buffers, and never blocking."""
    with contextlib.suppress(OSError, ValueError):
        if select.select([], [2], [], 0)[1]:
            os.write(2, line)


def _end_later(run: Run, delay_s: float) -> None:
    """End all the same if Ray should be stuck on processes that the signal has ended too."""
    timer = threading.Timer(delay_s, lambda: os._exit(run.exit_code))
    timer.daemon = True
    timer.start()


def run_dir_argument(url: str) -> str:
    """What names this run directory on a command line; empty for the default one."""
    return "" if url == runs_location(None) else f" --run-dir {url}"


def runs_location(run_dir: str | None) -> str:
    """Where runs are kept, in its one spelling; raises `InvalidLocation`."""
    from hotstart.cache.config import hotstart_home
    from hotstart.cache.store import normalize_location

    return normalize_location(run_dir or str(hotstart_home() / "runs"))


def print_report(record: Any, as_json: bool, within_s: float | None = None) -> None:
    """Print the report of a run on standard output; see `misses.report_soon` for `within_s`."""
    from hotstart.launcher.misses import report_of, report_soon
    from hotstart.launcher.report import render_text

    built = report_of(record) if within_s is None else report_soon(record, within_s)
    if as_json:
        click.echo(json.dumps(built, indent=2))
        return
    from rich.console import Console as RichConsole

    render_text(built, RichConsole())
