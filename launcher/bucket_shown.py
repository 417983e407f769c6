"""What `hotstart bucket` prints of what it found."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import click

if TYPE_CHECKING:
    from hotstart.cache.bucket import BucketFacts, Finding, Wanted

_FINDINGS = 1

Tried = Literal["own", "all"]  # `--fix`, `--fix-all`


def show(
    facts: BucketFacts,
    wanted: Wanted,
    as_json: bool,
    *,
    said: str | None = None,
    created: bool | None = None,
    mended: list[Finding] | None = None,
    tried: Tried | None = None,
) -> NoReturn:
    """Print all that was found, and exit with 1 where that is anything, else with 0.

    `said` comes before it, with `created` in JSON, which is None where that is not known; `mended`
    is what was found before, and `tried` what was to be mended.
    """
    from hotstart.cache.bucket import not_looked_at, role_of
    from hotstart.cache.bucket_check import check_bucket

    findings, unknown = check_bucket(facts, wanted), not_looked_at(facts, wanted)
    role = None if facts.permissions is None else role_of(facts.permissions) or "none"
    if as_json:
        shown: dict[str, Any] = {
            "bucket": f"gs://{facts.name}",
            "entries": wanted.layout.entries,
            "findings": [_as_json_of(finding) for finding in findings],
            "mended": [_as_json_of(finding) for finding in mended or ()],
            "not_looked_at": unknown,
            "role": role,
        }
        if said is not None:
            shown["created"] = created
        click.echo(json.dumps(shown, indent=2))
        sys.exit(_FINDINGS if findings else 0)
    if said is not None:
        click.echo(said)
    for finding in mended or ():
        click.echo(f"mended {finding.subject}: was {finding.found}; should be {finding.wanted}")
    count = f"{len(findings)} finding{'s' if len(findings) != 1 else ''}"
    click.echo(
        f"gs://{facts.name}, entries under {wanted.layout.entries}: "
        + (count if findings else "as it should be")
        + (f"; this identity is a {role}" if role not in (None, "none") else "")
    )
    for finding in findings:
        click.echo(f"  {finding.subject}: {finding.found}; should be {finding.wanted}")
        click.echo(f"    why: {finding.why}")
        if finding.others:
            click.echo(f"    for others who use the bucket: {finding.others}")
        click.echo(f"    mend{_by_hand(finding, tried)}: {finding.command}")
    for text in unknown:
        click.echo(f"  not looked at: {text}")
    if tried is None and any(finding.patch and not finding.others for finding in findings):
        click.echo("--fix mends what is about the cache's entries alone")
    if tried != "all" and any(finding.patch and finding.others for finding in findings):
        click.echo("--fix-all mends what changes the bucket for others too: see each of them above")
    sys.exit(_FINDINGS if findings else 0)


def _by_hand(finding: Finding, tried: Tried | None) -> str:
    if finding.patch is not None and finding.others and tried != "all":
        return "" if finding.command.endswith(" --fix-all") else ", or --fix-all"
    return " (not by --fix)" if tried or finding.patch is None else ""


def _as_json_of(finding: Finding) -> dict[str, Any]:
    facts = dataclasses.asdict(finding)
    patch = facts.pop("patch")
    return {**facts, "fixable": patch is not None}
