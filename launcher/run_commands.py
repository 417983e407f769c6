"""Commands about runs that were launched before, from any machine that sees their run directory."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from hotstart.launcher.foreground import (
    EXIT_CODES,
    address_option,
    check_cluster,
    events_option,
    follow,
    json_option,
    print_report,
    run_dir_argument,
    run_dir_option,
    runs_location,
)

if TYPE_CHECKING:
    from hotstart.launcher.record import RunRecord

_FOLLOW_DIRECTORY_S = 0.5
_FOLLOW_BUCKET_S = 3.0
_NOT_STOPPED = 1


@click.command(epilog="\b\nExamples:\n  hotstart runs\n  hotstart runs --run-dir gs://bucket/runs")
@run_dir_option
@json_option
def runs(run_dir: str | None, as_json: bool) -> None:
    """List runs and their states."""
    import dataclasses

    from hotstart.cache.keyring import load_keyring
    from hotstart.launcher.runs import list_runs, open_runs

    location = runs_location(run_dir)
    found = list_runs(open_runs(location, load_keyring()))
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(summary) for summary in found], indent=2))
        return
    if not found:
        click.echo(f"no runs in {location}")
        return
    width = max(len(summary.name) for summary in found)
    click.echo(f"{'RUN':<{width}}  {'STATE':<11}  ATTEMPTS  STARTED (UTC)        REASON")
    for summary in found:
        started = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(summary.started_at_s or 0))
        click.echo(
            f"{summary.name:<{width}}  {summary.state:<11}  {summary.attempts:>8}  {started}  "
            f"{summary.reason or ''}".rstrip()
        )


@click.command(epilog="\b\nExamples:\n  hotstart status latest\n"
               "  hotstart status bytelm-20261124-163001-3f2a --run-dir gs://bucket/runs --json\n"
               "  hotstart status latest --watch-beat 35\n"
               "  hotstart status latest --json --follow")  # fmt: skip
@click.argument("run", metavar="RUN")
@click.option(
    "--watch-beat",
    "watch_s",
    type=click.FloatRange(min=0),
    default=8.0,
    show_default=True,
    metavar="SECONDS",
    help="Watch the beat of an owner on another machine at most so long; 30 or more tell for sure.",
)
@click.option(
    "--follow",
    "follows",
    is_flag=True,
    help="With --json: one object a line for what happened and what happens, until the run ends.",
)
@run_dir_option
@json_option
def status(run: str, watch_s: float, follows: bool, run_dir: str | None, as_json: bool) -> None:
    """Show who owns a run, whether that one lives, what its workers do, and what to do next.

    RUN is a run's name or `latest`. An owner on another machine lives if its beat moves while it
    is watched. The JSON is described in docs/runs.md, with --follow in docs/events.md.
    """
    from hotstart.launcher.errors import UsageError
    from hotstart.launcher.identity import OwnerIdentity
    from hotstart.launcher.run_status import run_status, status_lines

    if follows and not as_json:
        raise UsageError("--follow is for --json; `hotstart logs -f` follows a run for people")
    record = _record(run, run_dir)
    if follows:
        _follow_events(record)
        return
    argument = run_dir_argument(record.store.url)
    me = OwnerIdentity.of_this_process()
    found = run_status(record, me, watch_s, run_dir_argument=argument)
    for line in [json.dumps(found, indent=2)] if as_json else status_lines(found):
        click.echo(line)


@click.command(epilog="\b\nExamples:\n  hotstart logs latest\n  hotstart logs latest -f\n"
               "  hotstart logs latest --worker 3 --attempt 2 --tail 100\n"
               "  hotstart logs RUN --run-dir gs://bucket/runs > all.log")  # fmt: skip
@click.argument("run", metavar="RUN")
@click.option("-f", "--follow", "follows", is_flag=True, help="Go on until the run ends.")
@click.option(
    "--worker", "workers", type=click.IntRange(min=0), multiple=True, metavar="I",
    help="Only this process index; may be given again. [default: all, by time]",
)  # fmt: skip
@click.option(
    "--attempt", type=click.IntRange(min=1), metavar="N",
    help="This attempt. [default: the latest; with -f, those that follow it too]",
)  # fmt: skip
@click.option(
    "--tail", type=click.IntRange(min=0), metavar="N", help="Only each worker's last N lines."
)
@run_dir_option
def logs(
    run: str,
    follows: bool,
    workers: tuple[int, ...],
    attempt: int | None,
    tail: int | None,
    run_dir: str | None,
) -> None:
    """Print what the workers of a run have written, also after its cluster has gone.

    RUN is a run's name or `latest`. Lines of several workers have the process index in front. In a
    bucket the last seconds of a worker that lives are not there yet (see docs/runs.md).
    """
    from hotstart.launcher.log_view import LogView
    from hotstart.launcher.run_logs import open_logs

    record = _record(run, run_dir)
    view = LogView(record, open_logs(record.log_location), workers, attempt, tail, click.echo)
    if not follows:
        view.show()
        return
    bucket = record.store.url.startswith("gs://")
    stopped = threading.Event()
    view.follow(_FOLLOW_BUCKET_S if bucket else _FOLLOW_DIRECTORY_S, stopped.wait)


@click.command(epilog="\b\nExamples:\n  hotstart stop latest\n"
               "  hotstart stop bytelm-20261124-163001-3f2a --run-dir gs://bucket/runs "
               "--timeout 120\n\n\b\n"
               "Exit codes:\n  0  the run has ended\n"
               "  1  it has not within the timeout, or its driver does not answer\n"
               "  2  it has no driver: there is nobody to stop\n")  # fmt: skip
@click.argument("run", metavar="RUN")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="Wait so long for the end.",
)
@run_dir_option
@json_option
def stop(run: str, timeout_s: float, run_dir: str | None, as_json: bool) -> None:
    """Stop a run from any machine: its workers get SIGTERM, flush, and end.

    RUN is a run's name or `latest`. The driver finds the request within a second where the run
    directory is a directory, with its next beat (5 s) in a bucket. It can be restarted later.
    """
    from hotstart.launcher.identity import OwnerIdentity
    from hotstart.launcher.stopping import stop_run, stopped_json, stopped_line

    record = _record(run, run_dir)

    def asked(owner: OwnerIdentity | None) -> None:
        who = f"pid {owner.pid} on {owner.host}" if owner else "its driver"
        click.echo(f"asked {who} to stop {record.name}; waiting for its end", err=True)

    went = stop_run(record, OwnerIdentity.of_this_process(), timeout_s, asked=asked)
    argument = run_dir_argument(record.store.url)
    if as_json:
        click.echo(json.dumps(stopped_json(record.name, went), indent=2))
    else:
        click.echo(stopped_line(record.name, went, timeout_s, argument))
    sys.exit({"ended": 0, "over": 0, "unwatched": 0, "nobody": 2}.get(went.how, _NOT_STOPPED))


@click.command(epilog="\b\nExamples:\n  hotstart restart latest\n"
               "  hotstart restart latest restarts.failures=10 args='[--steps, 500]'\n"
               "  hotstart restart bytelm-20261124-163001-3f2a --run-dir gs://bucket/runs\n"
               "  hotstart restart latest --watch --address head:6379\n\n"
               + EXIT_CODES)  # fmt: skip
@click.argument("run", metavar="RUN")
@click.argument("overrides", nargs=-1, metavar="[a.b=c ...]")
@click.option(
    "--watch",
    "watches",
    is_flag=True,
    help="Stay, and restart whenever the driver or the cluster has gone, until the run is over.",
)
@click.option(
    "--wait-cluster",
    "cluster_s",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="With --watch: wait so long for a cluster that does not answer. [default: for ever]",
)
@run_dir_option
@address_option
@events_option
@click.pass_context
def restart(
    context: click.Context,
    run: str,
    overrides: tuple[str, ...],
    watches: bool,
    cluster_s: float | None,
    run_dir: str | None,
    address: str | None,
    as_json: bool,
) -> None:
    """Restart a run whose driver is gone, warm, from its last checkpoint.

    RUN is a run's name or `latest`. The working folder does not matter. Settings a.b=c change the
    job for this restart and all later ones.
    """
    from hotstart.launcher.errors import UsageError
    from hotstart.launcher.recorded_job import read_job

    if cluster_s is not None and not watches:
        raise UsageError("--wait-cluster is for --watch; without it nothing is waited for")
    location = runs_location(run_dir)
    with _record_that_answers(location):
        job = read_job(location, run, overrides)
    if watches:
        parent = context.find_root().params
        verbose = int(parent.get("verbose") or 0)
        sys.exit(_watch(job.record, location, overrides, address, cluster_s, as_json, verbose))
    from hotstart.launcher.launch import reopen_run

    check_cluster(address, job.config)

    def tell(text: str) -> None:
        click.echo(f"hotstart: {text}", err=True)

    with _record_that_answers(location):
        reopened = reopen_run(job, tell)
    follow(reopened, address, as_json)


@contextlib.contextmanager
def _record_that_answers(location: str) -> Iterator[None]:
    """A store that is out is no wrong usage: who watches the run tries again."""
    from hotstart.cache.errors import TransientError
    from hotstart.launcher.errors import RecordUnreachable

    try:
        yield
    except TransientError as error:
        raise RecordUnreachable(
            f"the runs in {location} can't be read: {error}; restart the run when they can"
        ) from error


@click.command(epilog="\b\nExamples:\n  hotstart report latest\n"
               "  hotstart report latest --json\n"
              "  hotstart report latest --html run.html")  # fmt: skip
@click.argument("run", metavar="RUN")
@click.option(
    "--html", "page", metavar="FILE", help="Write one page with figures, which needs no other file."
)
@run_dir_option
@json_option
def report(run: str, page: str | None, run_dir: str | None, as_json: bool) -> None:
    """Show what happened in each attempt of a run: phases, hits, compilations, reasons.

    RUN is a run's name or `latest`. The JSON is described in docs/report-schema.md.
    """
    record = _record(run, run_dir)
    if page is not None:
        from pathlib import Path

        from hotstart.launcher.misses import report_of
        from hotstart.launcher.report_page import write_page

        write_page(report_of(record), Path(page))
        click.echo(f"{page}: the report of {record.name}", err=as_json)
        if not as_json:
            return
    print_report(record, as_json)


def _follow_events(record: RunRecord) -> None:
    from hotstart.launcher.events import EventWriter
    from hotstart.launcher.identity import OwnerIdentity
    from hotstart.launcher.recorded_events import RecordedEvents

    def write(line: str) -> None:
        click.echo(line, nl=False)
        sys.stdout.flush()

    writer = EventWriter(record.name, write)
    bucket = record.store.url.startswith("gs://")
    events = RecordedEvents(record, writer, OwnerIdentity.of_this_process())
    events.follow(_FOLLOW_BUCKET_S if bucket else _FOLLOW_DIRECTORY_S, time.sleep)


def _record(run: str, run_dir: str | None) -> RunRecord:
    from hotstart.cache.keyring import load_keyring
    from hotstart.launcher.runs import open_runs, resolve_run

    return resolve_run(open_runs(runs_location(run_dir), load_keyring()), run)


def _watch(
    record: RunRecord,
    run_dir: str,
    overrides: tuple[str, ...],
    address: str | None,
    cluster_s: float | None,
    as_json: bool,
    verbose: int,
) -> int:
    from hotstart.launcher.watching import Watch, Watcher, driver_command

    command = driver_command(record.name, run_dir, address, as_json=as_json, verbose=verbose)

    def tell(text: str) -> None:
        click.echo(f"hotstart watch {record.name}: {text}", err=True)

    watcher = Watcher(record, Watch(command, overrides, address, cluster_s), tell)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: watcher.stop(number))
    return watcher.run()
