"""`hotstart doctor`: what a launch would use here, where it came from, and what would stop it."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hotstart.launcher.foreground import json_option

if TYPE_CHECKING:
    from hotstart.conf.load import LoadedJob

_SICK = 1


@click.command(epilog="\b\nExamples:\n  hotstart doctor\n  hotstart doctor job.yaml\n"
               "  hotstart doctor job.yaml cache.location=gs://bucket/cache --json\n\n\b\n"
               "Exit codes:\n  0  nothing would stop a launch\n  1  something would\n"
               "  2  usage, or the job file is wrong\n")  # fmt: skip
@click.argument("job", metavar="[JOB.yaml]", required=False)
@click.argument("overrides", nargs=-1, metavar="[a.b=c ...]")
@click.option("--address", metavar="ADDRESS", help="Ray, as for launch.")
@json_option
def doctor(job: str | None, overrides: tuple[str, ...], address: str | None, as_json: bool) -> None:
    """Tell what a launch would use on this machine, where that came from, and what would stop it.

    Without JOB.yaml: what any job gets by default. Starts nothing and needs no Ray; of a bucket it
    reads, and makes the one empty object that a launch makes too.
    """
    from hotstart.conf.load import load_job
    from hotstart.launcher import doctor_host, doctor_places
    from hotstart.launcher.cluster import choose
    from hotstart.launcher.doctor import Asked, Probe, examine, render, to_json, would_launch

    if job is not None and "=" in job and not Path(job).exists():
        overrides, job = (job, *overrides), None
    loaded = _any_job(overrides) if job is None else load_job(job, overrides)
    starts_ray = choose(address).address == "local"
    asked = Asked(loaded, job is not None, address, starts_ray)
    lines = examine(
        asked,
        [
            Probe("versions", doctor_host.versions, 10),
            Probe("ray", doctor_places.ray, doctor_places.RAY_S),
            Probe("devices", doctor_host.devices, doctor_host.DEVICES_S),
            Probe("store", doctor_places.stores, doctor_places.STORES_S),
            Probe("secrets", doctor_places.secrets, 5),
            Probe("signing keys", doctor_places.signing_keys, 5),
            Probe("node directory", doctor_host.node_directory, 5),
            Probe("home", doctor_host.home, 5),
            Probe("ports", doctor_host.ports, 10),
            Probe("limits", doctor_host.limits, 5),
        ],
    )
    if as_json:
        click.echo(json.dumps(to_json(lines), indent=2))
    else:
        for line in render(lines):
            click.echo(line)
    sys.exit(0 if would_launch(lines) else _SICK)


def _any_job(overrides: tuple[str, ...]) -> LoadedJob:
    """A job that says nothing, so that only defaults and the environment speak."""
    from hotstart.conf.load import load_job

    with tempfile.TemporaryDirectory(prefix="hotstart-doctor-") as folder:
        path = Path(folder) / "job.yaml"
        path.write_text("script: job.py\n")
        path.with_suffix(".py").touch()
        return load_job(path, overrides)
