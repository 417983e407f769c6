"""`python -m tests.explain`: see the package."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.explain.campaign import play
from tests.explain.plants import BY_NAME, Plant, trials


def main() -> int:
    """Play a campaign; 1 where an explanation was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.explain")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--controls", type=int, default=3)
    parser.add_argument("--only", nargs="+", metavar="PLANT[+PLANT]")
    options = parser.parse_args()
    chosen = trials(options.seed, options.pairs, options.controls)
    if options.only:
        chosen = [_named(name) for name in options.only]
    wrong = 0
    with tempfile.TemporaryDirectory(prefix="hotstart-explain-") as folder:
        for number, plants in enumerate(chosen):
            started = time.monotonic()
            played = play(plants, Path(folder, str(number)))
            wrong += bool(played.wrong)
            took = f"{time.monotonic() - started:.1f} s"
            print(f"{'WRONG' if played.wrong else 'right'}  {played.name} ({took})", flush=True)
            print(f"       {played.wrong or played.explanation}", flush=True)
            if played.wrong:
                print(f"       {played.explanation}", flush=True)
    print(f"{len(chosen)} trials with seed {options.seed}: {wrong} wrong")
    return 1 if wrong else 0


def _named(name: str) -> tuple[Plant, ...]:
    if name == "control":
        return ()
    return tuple(BY_NAME[part] for part in name.split("+"))


if __name__ == "__main__":
    sys.exit(main())
