"""The bare store, one object at a time, over a connection that is up already."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Callable
from dataclasses import replace

from tests.bench.results import Bound, Condition, Measure, Result, Sample
from tests.bench.rows import Row, paired
from tests.bench.stage import ROOT, Stage

_CLIENT = ROOT / "tests" / "bench" / "raw_client.py"
_ETILS = "etils path as stock JAX uses it (exists, then read or write)"
_URLLIB3 = "urllib3, the fastest HTTP client measured"


def _rivals(operation: str, rival: str, large: bool) -> Callable[[Stage], tuple[Measure, Measure]]:
    def prepare(stage: Stage) -> tuple[Measure, Measure]:
        size_bytes = stage.options.large_megabytes * 1_000_000 if large else 1000
        _upload(stage.proxy.url, "warm", 10)
        _upload(stage.proxy.url, "there", size_bytes)

        def measure(client: str) -> Sample:
            name = "there" if operation == "get" else uuid.uuid4().hex
            ended = subprocess.run(
                [sys.executable, str(_CLIENT), stage.proxy.url, client, operation]
                + [str(size_bytes), name],
                env={
                    **stage.environment(),
                    "PYTHONPATH": str(ROOT),
                    "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
                },
                capture_output=True,
                text=True,
                timeout=120,
            )
            if ended.returncode:
                raise RuntimeError(f"{client}: {ended.stderr[-2000:]}")
            answer = json.loads(ended.stdout)
            return Sample(answer["seconds"], answer["counts"])

        return lambda: measure("hotstart"), lambda: measure(rival)

    return prepare


def _one_request(result: Result) -> Result:
    requests = Condition("requests", float(result.beside["ours_requests"]), Bound("==", 1))
    return replace(result, conditions=(requests,))


def _upload(url: str, name: str, size_bytes: int) -> None:
    request = urllib.request.Request(
        f"{url}/upload/storage/v1/b/ours/o?uploadType=media&name=raw%2F{name}",
        data=bytes(size_bytes),
        method="POST",
    )
    with urllib.request.urlopen(request, timeout=60):
        pass


def _row(operation: str, *, large: bool) -> Row:
    rival, against = ("urllib3", _URLLIB3) if large else ("etils", _ETILS)
    size = "100 MB" if large else "1 KB"
    result = Result(
        f"{operation}_{'large' if large else 'small'}",
        f"raw store: one {operation} of {size} at 30 ms and 200 MB/s",
        against,
        "s",
        Bound("<=", 1.3 if large else 0.5),
    )
    prepare = _rivals(operation, rival, large)
    return paired(result, prepare, conditions=_one_request, limit_s=300)


ROWS: tuple[Row, ...] = tuple(
    _row(operation, large=large) for large in (False, True) for operation in ("get", "put")
)
