"""`hotstart bucket`: make a bucket for a cache, and look whether one is as it should be.

None of it needs Ray or JAX.
"""

from __future__ import annotations

import dataclasses
import os
import re
from typing import TYPE_CHECKING, Any

import click

from hotstart.launcher.bucket_shown import Tried, show
from hotstart.launcher.errors import UsageError
from hotstart.launcher.foreground import json_option

if TYPE_CHECKING:
    from hotstart.cache.bucket import BucketFacts, Finding, Wanted
    from hotstart.cache.gcs_bucket import GcsBucket
    from hotstart.cache.google_machine import GoogleMachine

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")
_DURATION = re.compile(r"(\d{1,6}(?:\.\d{1,3})?)(h|d|w)")
_UNITS_S = {"h": 3600, "d": 86_400, "w": 7 * 86_400}
_LONGEST_S = 3650 * 86_400
_EXIT_CODES = """\b
Exit codes:
  0  all is as it should be
  1  something is not
  2  usage, no such bucket, or its settings can't be read
"""


class _Duration(click.ParamType):
    """A length of time in hours, days or weeks; seconds as a float."""

    name = "duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        if isinstance(value, float):
            return value
        match = _DURATION.fullmatch(value.strip())
        seconds = float(match[1]) * _UNITS_S[match[2]] if match else 0.0
        if not 0 < seconds <= _LONGEST_S:
            raise _usage(
                param, f"{value!r} is no length of time up to 10 years; write 36h, 10d or 2w"
            )
        return seconds


class _SoftDelete(_Duration):
    """0, or 7 to 90 days."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        from hotstart.cache.bucket import LONGEST_SOFT_DELETE_S, SHORTEST_SOFT_DELETE_S

        if value in ("0", "off", 0.0):
            return 0.0
        seconds = super().convert(value, param, ctx)
        if not SHORTEST_SOFT_DELETE_S <= seconds <= LONGEST_SOFT_DELETE_S:
            raise _usage(param, f"{value!r}: soft delete lasts 7d to 90d, or is 0 for off")
        return seconds


def _usage(param: click.Parameter | None, text: str) -> UsageError:
    """In one line, as all usage is, where click would take four."""
    return UsageError(f"{param.opts[0]}: {text}" if param else text)


_location = click.option(
    "--location",
    metavar="REGION",
    help="Where the machines are [default: this machine's region, on Google Cloud].",
)
_project = click.option(
    "--project",
    metavar="ID",
    help="The machines' project [default: $GOOGLE_CLOUD_PROJECT, else this machine's].",
)
_prefix = click.option(
    "--prefix",
    metavar="PREFIX",
    help="Of the cache in the bucket, so cache.location is gs://NAME/PREFIX [default: cache].",
)
_soft_delete = click.option(
    "--soft-delete",
    type=_SoftDelete(),
    default="0",
    metavar="0|7d",
    help="How long deleted objects can be brought back, and are paid for [default: 0, off].",
)


@click.group()
def bucket() -> None:
    """Make a bucket for a cache, and check one, by JAX's guide."""


@bucket.command(epilog="\b\nExamples:\n  hotstart bucket create gs://NAME --run-length 10d\n"
                "  hotstart bucket create gs://NAME --run-length 36h --location us-central1 "
                "--project my-project\n\n" + _EXIT_CODES)  # fmt: skip
@click.argument("url", metavar="gs://NAME")
@click.option(
    "--run-length",
    type=_Duration(),
    required=True,
    metavar="10d",
    help="How long the longest run takes, all its restarts included: entries live as long.",
)
@_location
@_project
@_prefix
@_soft_delete
@json_option
def create(
    url: str,
    run_length: float,
    location: str | None,
    project: str | None,
    prefix: str | None,
    soft_delete: float,
    as_json: bool,
) -> None:
    """Make the bucket gs://NAME for a cache, and check it.

    One that is there already is left as it is, and checked.
    """
    from hotstart.cache.bucket import new_bucket
    from hotstart.cache.errors import AccessDenied
    from hotstart.cache.gcs_bucket import GcsBucket

    name, in_url = _parse(url)
    if in_url:
        raise UsageError(f"{url}: a bucket has no prefix; give gs://{name} --prefix {in_url}")
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{url}: a bucket's name has 3 to 63 small letters, digits, '-', '_' and '.', and "
            "begins and ends with a letter or digit"
        )
    machine = _machine()
    location = location or (machine.region if machine else None)
    project = project or _project_of(machine)
    if not location:
        raise UsageError("this is no Google Cloud machine, so give --location, the jobs' region")
    if not project:
        raise UsageError("this is no Google Cloud machine, so give --project, the jobs' project")
    wanted = _wanted(prefix, run_length, location, project, soft_delete, "writer")
    made = GcsBucket(name)
    created = made.create(new_bucket(name, location, wanted), project)
    try:
        facts = _facts(made, wanted, machine)
    except AccessDenied as error:
        if created is not False:
            raise
        raise UsageError(
            f"gs://{name} is somebody else's, or hidden from this identity: bucket names are one "
            "for all of Google Cloud; choose another name"
        ) from error
    said = {
        True: f"made gs://{name}",
        False: f"gs://{name} exists already, and is left as it is",
        None: f"gs://{name} is there; an answer was lost, so it is not known whether this made it",
    }[created]
    show(facts, wanted, as_json, said=said, created=created)


@bucket.command(epilog="\b\nExamples:\n  hotstart bucket check gs://NAME --run-length 10d\n"
                "  hotstart bucket check gs://NAME/team/cache --run-length 10d --fix\n\n"
                + _EXIT_CODES)  # fmt: skip
@click.argument("url", metavar="gs://NAME[/PREFIX]")
@click.option(
    "--run-length",
    type=_Duration(),
    metavar="10d",
    help="How long the longest run takes, all its restarts included.",
)
@_location
@_project
@_prefix
@_soft_delete
@click.option(
    "--role",
    type=click.Choice(["reader", "writer", "repairer"]),
    default="writer",
    show_default=True,
    help="What this identity should be: repairers also delete bad entries and ended leases.",
)
@click.option(
    "--fix", is_flag=True, help="Mend what is about the cache's entries alone, and look again."
)
@click.option(
    "--fix-all",
    is_flag=True,
    help="Mend what changes the bucket for others who use it too, such as access and soft delete.",
)
@json_option
def check(
    url: str,
    run_length: float | None,
    location: str | None,
    project: str | None,
    prefix: str | None,
    soft_delete: float,
    role: str,
    fix: bool,
    fix_all: bool,
    as_json: bool,
) -> None:
    """Tell what is not as it should be with the bucket of a cache, why, and what mends it."""
    from hotstart.cache.bucket import patch_of
    from hotstart.cache.bucket_check import check_bucket
    from hotstart.cache.gcs_bucket import GcsBucket

    name, in_url = _parse(url)
    if in_url and prefix is not None and prefix.strip("/") != in_url:
        raise UsageError(f"{url} and --prefix {prefix} name two prefixes; give one")
    machine = _machine()
    location = location or (machine.region if machine else None) or None
    project = project or _project_of(machine)
    wanted = _wanted(in_url or prefix, run_length, location, project, soft_delete, role)
    looked_at = GcsBucket(name)
    facts = _facts(looked_at, wanted, machine)
    mended: list[Finding] = []
    if fix or fix_all:
        before = check_bucket(facts, wanted)
        if patch := patch_of(before, whole_bucket=fix_all):
            looked_at.patch(patch, facts.metageneration)
            facts = _facts(looked_at, wanted, machine)
            after = check_bucket(facts, wanted)
            mended = [finding for finding in before if finding not in after]
    tried: Tried | None = "all" if fix_all else "own" if fix else None
    show(facts, wanted, as_json, mended=mended, tried=tried)


def _parse(url: str) -> tuple[str, str]:
    """The bucket's name and the prefix in a `gs://` URL."""
    from hotstart.cache.store import normalize_location

    if not url.strip().startswith("gs://"):
        raise UsageError(f"{url}: expected a bucket, as in gs://NAME")
    name, _, prefix = normalize_location(url).removeprefix("gs://").partition("/")
    return name, prefix


def _machine() -> GoogleMachine | None:
    from hotstart.cache.google_machine import stop_looking, this_machine

    machine = this_machine()
    if machine is None:
        stop_looking()
    return machine


def _project_of(machine: GoogleMachine | None) -> str | None:
    named = os.environ.get("GOOGLE_CLOUD_PROJECT")
    return named or (machine.project if machine else None) or None


def _wanted(
    prefix: str | None,
    run_length_s: float | None,
    location: str | None,
    project: str | None,
    soft_delete_s: float,
    role: str,
) -> Wanted:
    from hotstart.cache.bucket import Wanted

    # As `hotstart submit --bucket` has it, so that both need no prefix.
    folder = "cache" if prefix is None else "/".join(p for p in prefix.split("/") if p)
    return Wanted(
        prefix=folder,
        run_length_s=run_length_s,
        location=location,
        project=project,
        soft_delete_s=int(soft_delete_s),
        role=role,
    )


def _facts(bucket: GcsBucket, wanted: Wanted, machine: GoogleMachine | None) -> BucketFacts:
    """What is to be known of a bucket, in two or three requests. Raises `StoreError`."""
    from hotstart.cache.bucket import facts_from, role_of
    from hotstart.cache.errors import AccessDenied

    try:
        resource = bucket.read()
    except AccessDenied as error:
        role = role_of(bucket.permissions() or ())
        if role is None:
            raise
        raise AccessDenied(
            f"{error}; this identity is a {role} there, which is enough for jobs"
        ) from error
    number = str(resource.get("projectNumber", ""))
    in_project: bool | None = None
    if machine is not None and wanted.project == machine.project:
        in_project = number == machine.project_number
    elif wanted.project is not None and wanted.project.isdigit():
        in_project = number == wanted.project
    elif wanted.project is not None:
        in_project = bucket.in_project(wanted.project)
    facts = facts_from(resource)
    return dataclasses.replace(facts, permissions=bucket.permissions(), in_project=in_project)
