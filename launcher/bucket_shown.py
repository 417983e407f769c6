"""What `hotstart bucket` prints of what it found."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import TYPE_CHECKING, Any, NoReturn

import click

if TYPE_CHECKING:
    from hotstart.cache.bucket import BucketFacts, Finding, Wanted

_FINDINGS = 1


def show(
    facts: BucketFacts,
    wanted: Wanted,
    as_json: bool,
    *,
    said: str | None = None,
    created: bool | None = None,
    mended: list[Finding] | None = None,
    tried: bool = False,
) -> NoReturn:
    """Print all that was found, and exit with 1 where that is anything, else with 0.

    `said` comes before it, with `created` in JSON; `mended` is what was found before, and `tried`
    says that all was mended that can be.
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
        if created is not None:
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
        by_hand = " (not by --fix)" if tried or finding.patch is None else ""
        click.echo(f"  {finding.subject}: {finding.found}; should be {finding.wanted}")
        click.echo(f"    why: {finding.why}")
        click.echo(f"    mend{by_hand}: {finding.command}")
    for text in unknown:
        click.echo(f"  not looked at: {text}")
    if not tried and any(finding.patch for finding in findings):
        click.echo("--fix mends what can be mended in place")
    sys.exit(_FINDINGS if findings else 0)


def _as_json_of(finding: Finding) -> dict[str, Any]:
    facts = dataclasses.asdict(finding)
    patch = facts.pop("patch")
    return {**facts, "fixable": patch is not None}
