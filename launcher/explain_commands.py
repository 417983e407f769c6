"""`hotstart cache explain`: why a program was compiled; `hotstart cache warm`: so that it is not.

Explaining needs neither Ray nor JAX.
"""

from __future__ import annotations

import json
from typing import Any

import click

from hotstart.launcher.amounts import DURATION
from hotstart.launcher.foreground import events_option, json_option, run_dir_option

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
@run_dir_option
@json_option
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

        explained = explain_run_named(run, attempt, run_dir)
    if as_json:
        click.echo(json.dumps(explained, indent=2))
        return
    for line in render(explained):
        click.echo(line)


_WARM_EXAMPLES = """\b
Examples:
  hotstart cache warm job.yaml
  hotstart cache warm job.yaml workers=4 cache.location=gs://bucket/cache
  hotstart cache warm job.yaml --fresh-only
"""


@click.command(epilog=_WARM_EXAMPLES)
@click.argument("job", metavar="JOB.yaml")
@click.argument("overrides", nargs=-1, metavar="[a.b=c ...]")
@click.option("--fresh-only", is_flag=True, help="Make no checkpoint and no second start from it.")
@click.option(
    "--save-within",
    type=DURATION,
    default="60s",
    show_default=True,
    metavar="AGE",
    help="How long to wait for a checkpoint after the first step.",
)
@click.option("--address", metavar="ADDRESS", help="Ray, as for `hotstart launch`.")
@events_option
def warm(
    job: str,
    overrides: tuple[str, ...],
    fresh_only: bool,
    save_within: float,
    address: str | None,
    as_json: bool,
) -> None:
    """Run the job that JOB.yaml describes to its first step, to fill its cache.

    All workers start and do one step; what they compiled is stored. Unless there is a checkpoint by
    then, they are asked to save one and to leave, as for a preemption. From the checkpoint the job
    is started once more, to its first step, for what a restored start asks for is often something
    else. The run is recorded as any other.
    """
    import dataclasses

    from hotstart.conf.load import load_job
    from hotstart.launcher.attempts import Warm
    from hotstart.launcher.errors import UsageError
    from hotstart.launcher.foreground import check_cluster, follow
    from hotstart.launcher.launch import new_run

    loaded = load_job(job, overrides)
    if loaded.config.cache.mode != "read-write":
        raise UsageError(
            f"cache.mode is {loaded.config.cache.mode}, so nothing would be stored; warm the "
            "cache with cache.mode=read-write"
        )
    config = dataclasses.replace(loaded.config, require_warm=False)
    check_cluster(address, config)
    only = Warm(restored=not fresh_only, save_s=save_within)
    follow(new_run(dataclasses.replace(loaded, config=config), warm=only), address, as_json)
