"""What Prometheus gets of a run, from Ray's own endpoint."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.request

import pytest

from tests.support.launch import STEPS, await_true, site, wait_for_step
from tests.support.ray_head import ray_head

pytestmark = pytest.mark.e2e

JOB = """
    script: train.py
    workers: 2
    resources_per_worker: {CPU: 0.5}
    cache: {location: cache}
"""
_PORTS = """
import json, ray
ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
print(json.dumps([node["MetricsExportPort"] for node in ray.nodes()]))
"""


def samples(ports: list[int]) -> dict[str, float]:
    """hotstart's metrics by name, summed over their tags."""
    found: dict[str, float] = {}
    for port in ports:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        for name, value in re.findall(r"^(ray_hotstart_\w+)\{[^}]*\} (\S+)$", text, re.MULTILINE):
            found[name] = found.get(name, 0.0) + float(value)
    return found


def test_metrics_of_a_running_job_are_at_rays_endpoint() -> None:
    with (
        ray_head({"RAY_metrics_report_interval_ms": "500"}) as head,
        site(head.address) as here,
    ):
        here.write("train.py", STEPS)
        here.write("job.yaml", JOB)
        environ = {**head.environ, "RAY_ADDRESS": head.address}
        launched = here.start_launch("job.yaml", env=environ)
        wait_for_step(launched, 2, 2)  # where it stays
        asked = subprocess.run(
            [sys.executable, "-c", _PORTS],
            env=here.environment(environ),
            capture_output=True,
            text=True,
            timeout=60,
        )
        ports = json.loads(asked.stdout.splitlines()[-1])
        await_true(lambda: "ray_hotstart_last_step" in samples(ports), 60, lambda: asked.stderr)
        seen = samples(ports)
        launched.popen.terminate()
        launched.wait()
    assert seen["ray_hotstart_last_step"] == 2
    assert seen["ray_hotstart_cache_compiled_total"] > 0
    asked_for = seen["ray_hotstart_cache_requests_total"]
    hits = seen.get("ray_hotstart_cache_hits_total", 0.0)
    assert asked_for == hits + seen["ray_hotstart_cache_compiled_total"]
    assert seen["ray_hotstart_seconds_to_first_step"] > 0
