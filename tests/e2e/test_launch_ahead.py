"""What one launch asks for is known to the next one; a bucket is checked before a job starts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hotstart.cache.store import open_store
from hotstart.launcher.manifest import Manifest
from hotstart.launcher.manifest_store import ManifestStore
from tests.support.gcs_emulator import GcsEmulator
from tests.support.launch import Finished, Site, site

pytestmark = pytest.mark.e2e

SCRIPT = """
    import os
    import jax, jax.numpy as jnp
    from hotstart.launcher import context

    print("started", flush=True)
    jax.jit(lambda x: jnp.tanh(x) + 1)(jnp.zeros((4, 4))).block_until_ready()
    context.step(1)
    jax.jit(lambda x: jnp.sinh(x) + 2)(jnp.zeros((4, 4))).block_until_ready()
"""
JOB = """
    name: two
    script: train.py
    workers: 2
    resources_per_worker: {CPU: 0.5}
    cache: {location: cache}
"""


@pytest.fixture(scope="module")
def launched() -> Iterator[tuple[Site, list[Finished]]]:
    """Two launches of one job, the second one under another name."""
    with site() as here:
        here.write("train.py", SCRIPT)
        here.write("job.yaml", JOB)
        yield here, [here.launch("job.yaml", f"name={n}", "--json") for n in ("one", "two")]


def manifests(here: Site) -> list[str]:
    return sorted(str(p) for p in (here.folder / "cache" / "manifests").rglob("*") if p.is_file())


def recorded(here: Site, run: str) -> Manifest:
    """The largest manifest of a run's first attempt."""
    folder = here.runs / run / "attempts" / "00001" / "manifest"
    return Manifest.from_json(max(folder.iterdir()).read_bytes())


def test_launch_records_what_was_asked_for_and_reports_it(
    launched: tuple[Site, list[Finished]],
) -> None:
    here, (first, _) = launched
    assert first.exit_code == 0, first.shown
    manifest = recorded(here, first.report["run"])
    assert first.report["manifest"] == {
        "keys": len(manifest.entries),
        "size_bytes": manifest.size_bytes,
    }
    assert (manifest.platform, manifest.process_count) == ("cpu", 2)
    workers = first.report["attempts"][0]["workers"]
    assert len(manifest.entries) <= sum(w["cache"]["requests"] for w in workers)
    names = [entry.key.rpartition("-")[0] for entry in manifest.entries]
    assert names.count("jit__lambda") == 2


def test_launch_of_the_same_job_again_finds_it_and_keeps_one_manifest(
    launched: tuple[Site, list[Finished]],
) -> None:
    here, (first, second) = launched
    assert second.exit_code == 0, second.shown
    assert second.report["manifest"] == first.report["manifest"]
    before, after = (recorded(here, launch.report["run"]) for launch in (first, second))
    assert after.keys == before.keys
    folders = {path.rpartition("/")[0] for path in manifests(here)}
    assert len(folders) == 1
    fingerprint = folders.pop().rpartition("/")[2]
    kept = ManifestStore(open_store(str(here.folder / "cache"))).latest(fingerprint)
    assert kept is not None
    assert kept.keys == before.keys


def test_launch_on_a_bucket_that_is_not_there_starts_nothing(emulator: GcsEmulator) -> None:
    with site() as here:
        here.write("train.py", SCRIPT)
        here.write("job.yaml", JOB)
        env = {"STORAGE_EMULATOR_HOST": emulator.url}
        options = ("cache.location=gs://not-there/cache", "--json")
        finished = here.launch("job.yaml", *options, env=env)
        assert finished.exit_code == 2, finished.shown
        assert "started" not in finished.stderr
        assert finished.stderr.splitlines()[-1].startswith(
            "hotstart: command line: cache.location: "
        )
        [run] = here.run_names()
        assert not (here.runs / run / "attempts").exists()
        strict = here.launch("job.yaml", *options, "cache.strict=true", env=env)
        assert strict.exit_code == 4, strict.shown
        here.assert_clean(5.0)


def test_launch_on_a_bucket_keeps_its_manifest_there(
    emulator: GcsEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", emulator.url)
    url = emulator.create_bucket("ahead-of-time") + "/cache"
    with site() as here:
        here.write("train.py", SCRIPT)
        here.write("job.yaml", JOB)
        env = {"STORAGE_EMULATOR_HOST": emulator.url}
        finished = here.launch("job.yaml", f"cache.location={url}", "--json", env=env)
        assert finished.exit_code == 0, finished.shown
        store = open_store(url)
        # At the first step, and with what followed it.
        last = max(store.list("manifests/"), key=lambda stat: stat.modified_s)
        kept = Manifest.from_json(store.get(last.name) or b"")
        assert kept == recorded(here, finished.report["run"])
