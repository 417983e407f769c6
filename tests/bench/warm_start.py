"""The second start from a bucket: hotstart against stock JAX in plain processes.

    python tests/bench/warm_start.py [--rounds 3] [--layers 12]

One GCS emulator behind a proxy with a 30 ms round trip and 200 MB/s. Each side first fills a
bucket of its own with one cold start, then both take turns: command to the first step of the
slowest of two processes, and the requests that reached the bucket. Stock is JAX's own cache on
`gs://` with its compile-time threshold at 0, so that it may store everything. hotstart is
`hotstart launch` on a running Ray cluster (`launch_warm`) and with Ray started by the command
(`launch_warm_embedded`), with an empty node directory each time. Writes `build/bench.json`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.support.gcs_emulator import gcs_emulator  # noqa: E402
from tests.support.gcs_proxy import GcsProxy, gcs_proxy  # noqa: E402
from tests.support.plain_gang import run_plain_gang  # noqa: E402
from tests.support.ray_head import ray_head  # noqa: E402

SCRIPT = ROOT / "examples" / "bytelm" / "train.py"
TARGET = 0.5
_FIRST_STEP = re.compile(r"\[\d+\] step 1 loss")


def main() -> None:
    """Run the bench and print one line a row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--rtt-ms", type=float, default=30)
    parser.add_argument("--megabytes-per-s", type=float, default=200)
    options = parser.parse_args()
    program = ["--steps", "1", "--layers", str(options.layers), "--checkpoint-every", "1000"]
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hotstart-bench-")))
        emulator = stack.enter_context(gcs_emulator())
        emulator.create_bucket("stock")
        emulator.create_bucket("ours")
        proxy = stack.enter_context(
            gcs_proxy(emulator.url, rtt_ms=options.rtt_ms, bandwidth_mb_s=options.megabytes_per_s)
        )
        cluster = {"STORAGE_EMULATOR_HOST": proxy.url, "HOME": str(folder / "home")}
        head = stack.enter_context(ray_head(cluster))
        sides = {
            "stock": lambda: stock(program, proxy, folder),
            "launch_warm": lambda: ours(program, proxy, folder, {**head.environ}, head.address),
            "launch_warm_embedded": lambda: ours(program, proxy, folder, {}, "local"),
        }
        for name in ("stock", "launch_warm"):
            print(f"cold  {name:<22}{sides[name]()[0]:7.2f} s", flush=True)
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        requests: dict[str, int] = {}
        for _ in range(options.rounds):
            for name, run in sides.items():
                taken, requests[name] = run()
                seconds[name].append(taken)
                print(f"warm  {name:<22}{taken:7.2f} s  {requests[name]} requests", flush=True)
    theirs = statistics.median(seconds["stock"])
    rows = []
    for name in ("launch_warm", "launch_warm_embedded"):
        mine = statistics.median(seconds[name])
        rows.append(
            {
                "slug": name,
                "what": "second start of bytelm, 2 processes, bucket at 30 ms: command to step 1",
                "ours": round(mine, 2),
                "theirs": round(theirs, 2),
                "unit": "s",
                "ratio": round(mine / theirs, 2),
                "target": TARGET,
                "met": mine / theirs <= TARGET,
            }
        )
        print(f"{name}: {mine:.2f} s, stock {theirs:.2f} s, ratio {mine / theirs:.2f}")
    output = ROOT / "build" / "bench.json"
    output.parent.mkdir(exist_ok=True)
    output.write_text(json.dumps(rows, indent=2) + "\n")


def stock(program: list[str], proxy: GcsProxy, folder: Path) -> tuple[float, int]:
    """Plain processes with JAX's own cache: seconds to the slowest first step, and requests."""
    proxy.reset()
    environ = {
        "JAX_PLATFORMS": "cpu",
        "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
        "JAX_COMPILATION_CACHE_DIR": "gs://stock/cache",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "STORAGE_EMULATOR_HOST": proxy.url,
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
    }
    with fresh_folder(folder) as checkpoints:
        ended = run_plain_gang(
            SCRIPT,
            [*program, "--checkpoint-dir", str(checkpoints)],
            count=2,
            environment=environ,
        )
    if any(process.exit_code for process in ended):
        raise SystemExit("\n".join(process.output for process in ended))
    # Only process 0 prints its steps; a step is a collective, so it is the gang's.
    return max(process.first_step_s or 0.0 for process in ended), len(proxy.requests())


def ours(
    program: list[str],
    proxy: GcsProxy,
    folder: Path,
    environ: Mapping[str, str],
    address: str,
) -> tuple[float, int]:
    """`hotstart launch`: seconds from the command to process 0's first step, and requests."""
    proxy.reset()
    with fresh_folder(folder) as home:
        job = home / "job.yaml"
        node_dir = home / "node"
        job.write_text(
            f"name: bench\nscript: {SCRIPT}\nworkers: 2\nargs: {json.dumps(program)}\n"
            f"cache: {{location: gs://ours/cache, node_dir: {node_dir}}}\n"
        )
        command = [str(Path(sys.executable).with_name("hotstart")), "launch", str(job)]
        started = time.monotonic()
        launcher = subprocess.Popen(
            [*command, "--address", address],
            env=os.environ
            | {"HOTSTART_HOME": str(home), "STORAGE_EMULATOR_HOST": proxy.url}
            | dict(environ),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        taken, lines = None, []
        for line in launcher.stdout or ():
            lines.append(line)
            if taken is None and _FIRST_STEP.match(line):
                taken = time.monotonic() - started
        if launcher.wait() or taken is None:
            raise SystemExit("".join(lines))
    return taken, len(proxy.requests())


@contextlib.contextmanager
def fresh_folder(parent: Path) -> Iterator[Path]:
    """An empty folder that is gone afterwards."""
    folder = Path(tempfile.mkdtemp(dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
