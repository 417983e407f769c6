"""`python -m tests.simulation`: many seeds, or one once more."""

from __future__ import annotations

import argparse
import os
import sys

from tests.chaos.campaigns import write_campaign
from tests.simulation.campaign import SCENARIOS, Campaign, Run, run_seed, scenario_of
from tests.simulation.points import POINTS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=200, help="how many to run")
    parser.add_argument("--from", type=int, default=0, dest="first", help="the first of them")
    parser.add_argument("--only", choices=sorted(SCENARIOS), help="leave the others out")
    parser.add_argument(
        "--kills", type=int, default=0, help="go on until each crash point has so many"
    )
    parser.add_argument("--most", type=int, default=20_000, help="seeds to go on for that")
    parser.add_argument("--write", action="store_true", help="put a row into build/chaos.json")
    parser.add_argument("--points", action="store_true", help="print all crash points")
    parser.add_argument("--seed", type=int, help="run this one again, and nothing else")
    parser.add_argument("--trace", action="store_true", help="print all that happens in it")
    options = parser.parse_args()
    if os.environ.get("PYTHONHASHSEED") != "0":  # the order of a set is no choice of the seed
        environ = {**os.environ, "PYTHONHASHSEED": "0"}
        os.execve(
            sys.executable, [sys.executable, "-m", "tests.simulation", *sys.argv[1:]], environ
        )
    if options.seed is not None:
        run = run_seed(options.seed, trace=options.trace)
        _tell(run, all_of_it=options.trace)
        return 1 if run.failure else 0
    campaign = Campaign(on_failure=lambda run: _tell(run, all_of_it=False))
    end = options.first + options.seeds
    seeds = range(options.first, end)
    campaign.run(s for s in seeds if options.only in (None, scenario_of(s)))
    if options.kills:
        campaign.run_aimed(end, options.kills, options.most)
    _tell_points(campaign, options.kills, everything=options.points)
    print(
        f"{campaign.seeds} seeds from {options.first}, {campaign.switches} steps, "
        f"{campaign.cpu_s:.1f} s; faults: {dict(campaign.faults.most_common())}; "
        f"{sum(campaign.killed_at.values())} kills at {len(campaign.killed_at)} of "
        f"{sum(map(len, POINTS.values()))} crash points; violations: {dict(campaign.failed)}"
    )
    if options.write:
        write_campaign(campaign.row(options.first))
    return 1 if campaign.failed or campaign.unknown_points() else 0


def _tell(run: Run, *, all_of_it: bool) -> None:
    for line in run.world.last if all_of_it or run.failure else ():
        print(line)
    verdict = f"violated: {run.failure!r}" if run.failure else "all invariants hold"
    print(f"seed {run.seed} ({run.scenario}), {run.world.what_fails}: {verdict}")
    if run.failure:
        print(f"again: python -m tests.simulation --seed {run.seed} --trace", flush=True)


def _tell_points(campaign: Campaign, kills: int, *, everything: bool) -> None:
    for point in campaign.unknown_points():
        print(f"a crash point that points.py does not have: {point}")
    for point in sorted(sum(POINTS.values(), ())):
        killed = campaign.killed_at[point]
        if everything or killed < kills:
            print(f"{killed:7} kills, reached {campaign.reached[point]:9} times: {point}")


if __name__ == "__main__":
    sys.exit(main())
