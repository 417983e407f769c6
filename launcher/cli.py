"""The command line. Imports stay inside the commands: `hotstart --help` must not wait for Ray."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any, NoReturn

import click

from hotstart.launcher.cache_commands import cache
from hotstart.launcher.key_commands import key

if TYPE_CHECKING:
    from hotstart.conf.schema import JobConfig
    from hotstart.launcher.launch import Run

_STUCK_S = 8.0
_EXIT_CODES = """\b
Exit codes:
  0    done
  1    the job failed
  2    usage or configuration; nothing was started
  3    restart budget spent
  4    the cache is required and cannot be used, or a required warm start missed
  130  interrupted
"""

_run_dir = click.option(
    "--run-dir", metavar="DIR", help="Where runs are kept [default: $HOTSTART_HOME/runs]."
)
_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output.")
_address = click.option(
    "--address",
    metavar="ADDRESS",
    help="Ray: host:port, `auto`, or `local` to start it here "
    "[default: $RAY_ADDRESS, else a running cluster, else started here].",
)


class _Commands(click.Group):
    """A group whose commands turn errors and interruptions into one line and an exit code."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
        return super().main(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            from hotstart.cache.errors import CacheError
            from hotstart.conf.errors import ConfigError
            from hotstart.launcher.errors import ExitCode, LauncherError
        except KeyboardInterrupt:
            _fail("interrupted", 130)
        try:
            return super().invoke(ctx)
        except ConfigError as error:
            _fail(str(error), ExitCode.USAGE)
        except LauncherError as error:
            _fail(str(error), error.exit_code)
        except CacheError as error:
            _fail(str(error), ExitCode.USAGE)
        except KeyboardInterrupt:
            _fail("interrupted", ExitCode.INTERRUPTED)


@click.group(cls=_Commands, epilog=_EXIT_CODES, context_settings={"max_content_width": 100})
@click.version_option(package_name="hotstart", prog_name="hotstart")
@click.option("-v", "--verbose", count=True, help="Log more; twice for debugging.")
def main(verbose: int) -> None:
    """Start, and restart, multi-host JAX jobs on Ray, with the compilation cache in place."""
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("hotstart").setLevel(level)


@main.command(epilog="\b\nExamples:\n  hotstart launch job.yaml\n"
              "  hotstart launch job.yaml workers=4 cache.location=gs://bucket/cache\n"
              "  hotstart launch job.yaml workers=2..8   # as many as there is room for\n"
              "  hotstart launch job.yaml --dry-run\n\n" + _EXIT_CODES)  # fmt: skip
@click.argument("job", metavar="JOB.yaml")
@click.argument("overrides", nargs=-1, metavar="[a.b=c ...]")
@click.option("--dry-run", is_flag=True, help="Print what would be run, and start nothing.")
@_address
@_as_json
def launch(
    job: str, overrides: tuple[str, ...], dry_run: bool, address: str | None, as_json: bool
) -> None:
    """Launch the job that JOB.yaml describes and follow it to its end."""
    from hotstart.conf.load import load_job

    loaded = load_job(job, overrides)
    if dry_run:
        from hotstart.launcher.dry_run import plan_as_json, plan_as_lines

        shown = [json.dumps(plan_as_json(loaded), indent=2)] if as_json else plan_as_lines(loaded)
        for line in shown:
            click.echo(line)
        return
    from hotstart.launcher.launch import new_run

    _check_cluster(address, loaded.config)
    _follow(new_run(loaded), address, as_json)


@main.command(epilog="\b\nExamples:\n  hotstart restart latest\n"
              "  hotstart restart bytelm-20261124-163001-3f2a --run-dir gs://bucket/runs\n\n"
              + _EXIT_CODES)  # fmt: skip
@click.argument("run", metavar="RUN")
@_run_dir
@_address
@_as_json
def restart(run: str, run_dir: str | None, address: str | None, as_json: bool) -> None:
    """Restart a run whose driver is gone, warm, from its last checkpoint.

    RUN is a run's name or `latest`. The working folder does not matter.
    """
    from hotstart.launcher.launch import reopen_run
    from hotstart.launcher.recorded_job import read_job

    record, config, keyring = read_job(_runs_location(run_dir), run)
    _check_cluster(address, config)
    _follow(reopen_run(record, config, keyring), address, as_json)


@main.command(epilog="\b\nExamples:\n"
              "  hotstart submit job.yaml --bucket gs://bucket --address http://head:8265\n"
              "  hotstart submit job.yaml workers=4 --bucket gs://bucket/team --no-wait\n\n"
              + _EXIT_CODES)  # fmt: skip
@click.argument("job", metavar="JOB.yaml")
@click.argument("overrides", nargs=-1, metavar="[a.b=c ...]")
@click.option(
    "--bucket",
    required=True,
    metavar="gs://...",
    help="Sets cache.location to BUCKET/cache and run_dir to BUCKET/runs; a.b=c wins.",
)
@click.option(
    "--address",
    metavar="URL",
    help="Ray's dashboard [default: $RAY_API_SERVER_ADDRESS, $RAY_ADDRESS, else "
    "http://127.0.0.1:8265].",
)
@click.option("--no-wait", is_flag=True, help="Don't follow the job to its end.")
@_as_json
def submit(
    job: str,
    overrides: tuple[str, ...],
    bucket: str,
    address: str | None,
    no_wait: bool,
    as_json: bool,
) -> None:
    """Send the job that JOB.yaml describes to a Ray cluster and follow it to its end.

    The folder of JOB.yaml is sent with it, and so is hotstart; what it depends on, jax included,
    must be on the cluster. Ctrl-C stops following; the job goes on.
    """
    from hotstart.launcher.submit_command import run_submit

    sys.exit(run_submit(job, overrides, bucket, address, follow=not no_wait, as_json=as_json))


@main.command(epilog="\b\nExamples:\n  hotstart runs\n  hotstart runs --run-dir gs://bucket/runs")
@_run_dir
@_as_json
def runs(run_dir: str | None, as_json: bool) -> None:
    """List runs and their states."""
    import dataclasses
    import time

    from hotstart.cache.keyring import load_keyring
    from hotstart.launcher.runs import list_runs, open_runs

    location = _runs_location(run_dir)
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


@main.command(epilog="\b\nExamples:\n  hotstart report latest\n"
              "  hotstart report latest --json")  # fmt: skip
@click.argument("run", metavar="RUN")
@_run_dir
@_as_json
def report(run: str, run_dir: str | None, as_json: bool) -> None:
    """Show what happened in each attempt of a run: phases, hits, compilations, reasons.

    RUN is a run's name or `latest`. The JSON is described in docs/report-schema.md.
    """
    from hotstart.cache.keyring import load_keyring
    from hotstart.launcher.runs import open_runs, resolve_run

    runs_store = open_runs(_runs_location(run_dir), load_keyring())
    _print_report(resolve_run(runs_store, run), as_json)


main.add_command(key)
main.add_command(cache)


def _check_cluster(address: str | None, config: JobConfig) -> None:
    """Raise `UsageError` where the cluster is known not to do, before anything is recorded."""
    from hotstart.launcher.cluster import check_address, check_hosts
    from hotstart.launcher.placement import place

    check_address(address)
    shares, spread = place(config, config.least_workers), config.placement == "spread"
    check_hosts(address, shares, spread=spread, labels=config.labels)


def _follow(run: Run, address: str | None, as_json: bool) -> NoReturn:
    """Execute a run, show it, print its report, and exit with its code."""
    from hotstart.launcher.console import Console

    stream = sys.stderr if as_json else sys.stdout
    console = Console(run.name, run.config.workers, stream)

    def interrupt(number: int, frame: object) -> None:
        run.interrupt()
        _end_later(run.config.timeouts.stop_s + _STUCK_S)
        signal.signal(number, _end_now)
        _notice(b"hotstart stopping; press Ctrl-C again to stop at once\n")

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    console.say(f"run {run.name} in {run.record.store.url}")
    decision = run.execute(console, address, console.say)
    console.flush()
    _print_report(run.record, as_json)
    if decision.exit_code:
        console.say(f"{decision.reason} (exit code {int(decision.exit_code)})")
        if decision.exit_code in (1, 3, 130):
            console.say(f"restart it with: hotstart restart {run.name}{_run_dir_option(run)}")
    console.flush()
    sys.stdout.flush()
    if decision.exit_code == 130:  # Ray, broken off by a signal, may abort as Python ends
        os._exit(130)
    sys.exit(int(decision.exit_code))


def _notice(line: bytes) -> None:
    """Write to standard error from a signal handler: past all buffers, and never blocking."""
    with contextlib.suppress(OSError, ValueError):
        if select.select([], [2], [], 0)[1]:
            os.write(2, line)


def _end_later(delay_s: float) -> None:
    """End all the same if Ray should be stuck on processes that the signal has ended too."""
    timer = threading.Timer(delay_s, os._exit, (130,))
    timer.daemon = True
    timer.start()


def _end_now(number: int, frame: object) -> None:
    os._exit(130)  # agents and guards clean up when the driver ends


def _run_dir_option(run: Run) -> str:
    url = run.record.store.url
    return "" if url == _runs_location(None) else f" --run-dir {url}"


def _runs_location(run_dir: str | None) -> str:
    from hotstart.cache.config import hotstart_home
    from hotstart.cache.store import normalize_location

    return normalize_location(run_dir or str(hotstart_home() / "runs"))


def _print_report(record: Any, as_json: bool) -> None:
    from hotstart.launcher.report import build_report, render_text

    built = build_report(record.read())
    if as_json:
        click.echo(json.dumps(built, indent=2))
        return
    from rich.console import Console as RichConsole

    render_text(built, RichConsole())


def _fail(message: str, exit_code: int) -> NoReturn:
    click.echo(f"hotstart: {message}", err=True)
    sys.exit(int(exit_code))


if __name__ == "__main__":
    main()
