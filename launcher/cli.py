"""The command line. Imports stay inside the commands: `hotstart --help` must not wait for Ray."""

from __future__ import annotations

import importlib
import json
import logging
import signal
import sys
import threading
from typing import Any, NoReturn

import click

from hotstart.launcher.foreground import (
    EXIT_CODES,
    address_option,
    check_cluster,
    events_option,
    follow,
)

# By module, imported when one of its commands is called: a launch does not wait for the others.
_ELSEWHERE = {
    "bucket": "bucket_commands",
    "cache": "cache_commands",
    "doctor": "doctor_commands",
    "key": "key_commands",
    "submit": "submit_command",
    **dict.fromkeys(("logs", "report", "restart", "runs", "status", "stop"), "run_commands"),
}


class _Commands(click.Group):
    """A group whose commands turn errors and interruptions into one line and an exit code."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
        return super().main(*args, **kwargs)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *_ELSEWHERE})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _ELSEWHERE:
            return super().get_command(ctx, cmd_name)
        module = importlib.import_module(f"hotstart.launcher.{_ELSEWHERE[cmd_name]}")
        command: click.Command = getattr(module, cmd_name)
        return command

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


@click.group(cls=_Commands, epilog=EXIT_CODES, context_settings={"max_content_width": 100})
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
              "  hotstart launch job.yaml --dry-run\n"
              "  hotstart launch job.yaml --json\n\n" + EXIT_CODES)  # fmt: skip
@click.argument("job", metavar="JOB.yaml")
@click.argument("overrides", nargs=-1, metavar="[a.b=c ...]")
@click.option("--dry-run", is_flag=True, help="Print what would be run, and start nothing.")
@address_option
@events_option
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

    check_cluster(address, loaded.config)
    follow(new_run(loaded), address, as_json)


def _fail(message: str, exit_code: int) -> NoReturn:
    click.echo(f"hotstart: {message}", err=True)
    sys.exit(int(exit_code))


if __name__ == "__main__":
    main()
