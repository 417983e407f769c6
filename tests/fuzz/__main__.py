"""`python -m tests.fuzz TARGET`: coverage-guided, until the time is over or something is found."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.chaos.campaigns import Row, write_campaign

_RUN = """
import logging, sys
import atheris
with atheris.instrument_imports(include=["hotstart"]):
    import tests.fuzz.targets as targets
target = targets.TARGETS[sys.argv[1]]
logging.disable()  # what is refused is logged, and most is
atheris.Setup([sys.argv[0], *sys.argv[2:]], target.run)
atheris.Fuzz()
"""


def main() -> int:
    """Run targets one after the other; 1 where one failed."""
    from tests.fuzz.targets import TARGETS

    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--seconds", type=int, default=600, help="for each")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="put rows into build/chaos.json")
    options = parser.parse_args()
    unknown = set(options.targets) - TARGETS.keys()
    if unknown:
        parser.error(f"no target {', '.join(sorted(unknown))}; there are {', '.join(TARGETS)}")
    failed = False
    for name in options.targets or TARGETS:
        trials, crashed = fuzz(name, options.seconds, options.seed)
        print(f"fuzz {name}: {trials} inputs, {'FAILED, see above' if crashed else 'clean'}")
        failed |= crashed
        if options.write:
            write_campaign(Row(f"fuzz {name}", trials, options.seed, crashes=int(crashed)))
    return int(failed)


def fuzz(name: str, seconds: int, seed: int) -> tuple[int, bool]:
    """How many inputs a target was given, and whether one made it fail."""
    from tests.fuzz.targets import TARGETS

    target = TARGETS[name]
    with tempfile.TemporaryDirectory(prefix="hs-fuzz-") as folder:
        corpus = Path(folder, "corpus")
        corpus.mkdir()
        for number, data in enumerate(target.seeds):
            Path(corpus, f"seed-{number}").write_bytes(data)
        words = Path(folder, "words")
        words.write_text("".join(f'"{_escaped(word)}"\n' for word in target.words))
        ran = subprocess.run(
            [
                *(sys.executable, "-c", _RUN, name, str(corpus)),
                *([f"-dict={words}"] if target.words else []),
                *(f"-max_total_time={seconds}", f"-seed={seed}", "-max_len=8192"),
                *("-timeout=30", "-rss_limit_mb=4096", "-print_final_stats=1"),
                f"-artifact_prefix={folder}/",
            ],
            env={**os.environ, "TMPDIR": folder},  # it ends without cleaning up
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=seconds + 300,
        )
        trials = 0
        for line in ran.stdout.splitlines():
            if line.startswith("stat::number_of_executed_units:"):
                trials = int(line.split()[-1])
        if ran.returncode:
            print(ran.stdout[-6000:])
            for found in Path(folder).glob("crash-*"):
                print(f"input: {found.read_bytes()!r}")
        return trials, ran.returncode != 0


def _escaped(word: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word)


if __name__ == "__main__":
    sys.exit(main())
