"""The page of a real run, in a real browser."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import matplotlib.image
import pytest

from tests.support.browser import rendered, screenshot
from tests.support.launch import STEPS, RayNodes, wait_for_step

pytestmark = pytest.mark.e2e

JOB = """
    script: train.py
    workers: 2
    resources_per_worker: {CPU: 0.5}
    cost_per_worker_hour: 3.5
    cache: {location: cache}
    restarts: {failures: 1, backoff_s: 0}
"""


def test_page_of_a_killed_and_restarted_run_shows_both_attempts(
    nodes: RayNodes, tmp_path: Path
) -> None:
    with nodes.site() as here:
        here.write("train.py", STEPS)
        here.write("job.yaml", JOB)
        launched = here.start_launch("job.yaml")
        killed = wait_for_step(launched, 2, 2)[1].worker

        os.kill(killed, signal.SIGKILL)
        assert launched.wait().exit_code == 0, launched.output()
        page = tmp_path / "run.html"
        written = here.run("report", "latest", "--html", str(page))
        assert (written.exit_code, written.stderr) == (0, ""), written.shown
        report = here.report()
    shown = rendered(page)
    assert re.findall(r"<td>(failed|done)", shown) == ["failed", "done"]
    assert "was killed by SIGKILL" in shown
    assert "money saved / spent" in shown
    # Drawn, not only written: an SVG a figure, and a bar for each phase of each worker.
    assert shown.count('class="main-svg"') >= 4
    bars = sum(
        1 for a in report["attempts"] for w in a["workers"] for p in w["phases"].values() if p
    )
    assert shown.count('class="point"') >= bars
    image = tmp_path / "run.png"
    screenshot(page, image)
    pixels = matplotlib.image.imread(image)
    assert pixels.shape[:2] == (1700, 1200)
    below_the_cards = pixels[300:, :, :3]
    assert (below_the_cards.std(axis=2) > 0.1).mean() > 0.02  # colored bars
