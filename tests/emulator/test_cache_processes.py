"""Processes with `hotstart.cache.enable("gs://...")` on the emulator, their requests counted."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from hotstart.cache.gcs import GcsStore
from tests.support.cache_gang import ONE_SIDED, RESULTS, run_cache_gang
from tests.support.gcs_proxy import GcsProxy, requests_of_entries

pytestmark = [pytest.mark.emulator, pytest.mark.internals]

PROGRAM = """
import sys
import jax, hotstart.cache
hotstart.cache.enable(sys.argv[1], node_dir=sys.argv[2], deadline_s=2.0)
def step(x): return x * 4
print(float(jax.jit(step)(1.0)), flush=True)
print(float(jax.jit(lambda x: x * 5)(1.0)), flush=True)
"""


def run_program(location: str, node_dir: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, location, str(node_dir)],
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_gang_reads_each_entry_once_a_process_and_never_what_its_node_has(
    proxy: GcsProxy, bucket: str, tmp_path: Path
) -> None:
    location = f"{bucket}/prefix"
    cold = run_cache_gang(location, node_dir=tmp_path / "node of the first start")
    writes = Counter(
        name for (method, name, status), n in requests_of_entries(proxy).items()
        for _ in range(n) if (method, status) == ("POST", 200)
    )  # fmt: skip
    proxy.reset()
    elsewhere = run_cache_gang(location, node_dir=tmp_path / "another node")
    reads = requests_of_entries(proxy)
    proxy.reset()
    again = run_cache_gang(location, node_dir=tmp_path / "another node")

    assert writes == {"jit_everywhere": 1, "jit_mine": 1, "jit_alone": 1}
    assert [member.compiled for member in elsewhere] == [[], []]
    # The processes share the node directory: who comes second may find a common program there.
    common = [reads.pop(("GET", name, 200)) for name in ("jit_everywhere", "jit_mine")]
    assert all(1 <= count <= 2 for count in common)
    assert reads == {("GET", "jit_alone", 200): 1}
    assert [member.compiled for member in again] == [[], []]
    assert proxy.requests() == []
    for gang in (cold, elsewhere, again):
        assert [member.results for member in gang] == [RESULTS, RESULTS | ONE_SIDED]
        assert [member.stats["errors"] for member in gang] == [0, 0]
    assert [member.stats["read_bytes"] for member in again] == [0, 0]


def test_end_of_a_program_flushes_to_a_host_given_by_name(
    proxy: GcsProxy, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.url.replace("127.0.0.1", "localhost"))

    done = run_program(bucket, tmp_path)

    assert (done.returncode, done.stdout, done.stderr) == (0, "4.0\n5.0\n", "")
    names = [found.name.partition("-")[2] for found in GcsStore(bucket).list("entries/")]
    assert sorted(names) == ["jit__lambda", "jit_step"]


def test_bucket_that_does_not_exist_is_one_warning_and_the_program_runs(
    proxy: GcsProxy, tmp_path: Path
) -> None:
    done = run_program("gs://bucket-that-is-not-there", tmp_path)

    assert (done.returncode, done.stdout) == (0, "4.0\n5.0\n")
    (line,) = done.stderr.splitlines()
    assert "in gs://bucket-that-is-not-there, going on without: cannot read " in line
    assert "there is no bucket gs://bucket-that-is-not-there; create it" in line
