"""`hotstart submit`: send a job to a Ray cluster. What it does is in `submitting.py`."""

from __future__ import annotations

import json
import sys

import click

from hotstart.launcher.foreground import json_option

_EPILOG = """\b
Examples:
  hotstart submit job.yaml --bucket gs://bucket --address http://head:8265
  hotstart submit job.yaml workers=4 --bucket gs://bucket/team --no-wait
  hotstart submit job.yaml --bucket gs://bucket --dry-run
  hotstart submit job.yaml --bucket gs://bucket --run nightly-42
  hotstart submit --restart nightly-42 --bucket gs://bucket --address http://new-head:8265
  hotstart submit --restart nightly-42 restarts.failures=10 --bucket gs://bucket

\b
Exit codes:
  0    done, or sent with --no-wait
  1    the job failed, or the cluster was lost
  2    usage or configuration; nothing was started
  3    restart budget spent
  4    the cache is required and cannot be used, or a required warm start missed
  130  interrupted: the job was stopped, or no longer followed
"""


@click.command(epilog=_EPILOG)
@click.argument("job", metavar="[JOB.yaml]", required=False)
@click.argument("overrides", nargs=-1, metavar="[a.b=c ...]")
@click.option(
    "--bucket",
    metavar="gs://...",
    help="Sets cache.location to BUCKET/cache and run_dir to BUCKET/runs; a.b=c wins.",
)
@click.option(
    "--address",
    metavar="URL",
    help="Ray's dashboard [default: $RAY_API_SERVER_ADDRESS, $RAY_ADDRESS, else "
    "http://127.0.0.1:8265].",
)
@click.option(
    "--run",
    metavar="NAME",
    help="The run's name; while a run of this name lives there, it is attached to.",
)
@click.option(
    "--restart",
    "restarted",
    metavar="RUN",
    help="Send a run again from its record, to go on from its last checkpoint; no JOB.yaml. "
    "a.b=c change its job from then on.",
)
@click.option(
    "--run-dir", metavar="gs://...", help="With --restart: where runs are [default: BUCKET/runs]."
)
@click.option(
    "--env", "env", multiple=True, metavar="K=V", help="A variable of the workers; not for secrets."
)
@click.option(
    "--requirements", metavar="FILE", help="Packages that each host installs first, as pip does."
)
@click.option(
    "--hotstart",
    metavar="ship|cluster|WHEEL",
    help="Which hotstart runs there: this one, the cluster's, or a wheel's [default: ship; with "
    "--restart as before].",
)
@click.option(
    "--driver-resources",
    multiple=True,
    metavar="NAME=AMOUNT",
    help="What the driver's node must have [default: the head node].",
)
@click.option(
    "--driver-label", multiple=True, metavar="KEY=VALUE", help="A label that it must have."
)
@click.option("--no-wait", is_flag=True, help="Don't follow the job to its end.")
@click.option("--dry-run", is_flag=True, help="Show what would be sent, and send nothing.")
@json_option
def submit(
    job: str | None,
    overrides: tuple[str, ...],
    bucket: str | None,
    address: str | None,
    run: str | None,
    restarted: str | None,
    run_dir: str | None,
    env: tuple[str, ...],
    requirements: str | None,
    hotstart: str | None,
    driver_resources: tuple[str, ...],
    driver_label: tuple[str, ...],
    no_wait: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Send the job that JOB.yaml describes to a Ray cluster and follow it to its end.

    The folder of JOB.yaml is sent with it, less what .gitignore, .rayignore and .hotstartignore
    name, and so is hotstart; what it depends on, jax included, must be on the cluster. Ctrl-C
    stops following; the job goes on.
    """
    from hotstart.launcher.driver_place import parse_place
    from hotstart.launcher.errors import UsageError
    from hotstart.launcher.shipment import Options, check_bucket, prepare
    from hotstart.launcher.submitting import run_submit, show_plan

    place = parse_place(driver_resources, driver_label)
    options = Options(run, requirements, hotstart, place)
    if restarted is not None:
        if job is not None and "=" in job:
            overrides, job = (job, *overrides), None
        given = {"JOB.yaml": job, "--run": run}
        extra = [name for name, value in given.items() if value]
        if extra:
            raise UsageError(
                f"--restart takes the job from the run's record, and no {extra[0]}; leave it out, "
                "or submit the job anew"
            )
        if not (run_dir or bucket):
            raise UsageError("--restart: give --bucket gs://... or --run-dir gs://...")
        from hotstart.launcher.resubmission import prepare_again

        location = (
            check_bucket(run_dir, "--run-dir") if run_dir else f"{check_bucket(bucket or '')}/runs"
        )
        submission = prepare_again(location, restarted, options, (*overrides, *_variables(env)))
    else:
        if job is None or bucket is None or run_dir is not None:
            what = "JOB.yaml" if job is None else "--bucket gs://..."
            if run_dir is not None:
                raise UsageError("--run-dir is for --restart; else write run_dir=gs://...")
            raise UsageError(f"{what} is missing; see hotstart submit --help")
        submission = prepare(job, (*overrides, *_variables(env)), bucket, options)
    for origin, name in submission.exposed:
        click.echo(
            f"hotstart {origin}: env.{name}: it shows in Ray's dashboard and in the run's record; "
            f"if it is a secret, write secret_env.{name}=file:/path or env:VARIABLE of each host",
            err=True,
        )
    if dry_run:
        show_plan(submission, as_json)
        return
    sys.exit(
        run_submit(
            submission,
            address,
            follow=not no_wait,
            as_json=as_json,
            again=restarted is not None,
        )
    )


def _variables(given: tuple[str, ...]) -> list[str]:
    """`--env K=V` as overrides of the job's `env`; raises `UsageError`."""
    from hotstart.launcher.errors import UsageError

    found = []
    for text in given:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise UsageError(f"--env: expected NAME=VALUE, got {text!r}")
        quoted = json.dumps(value.replace("${", r"\${"), ensure_ascii=False)
        found.append(f"env.{name}={quoted}")
    return found
