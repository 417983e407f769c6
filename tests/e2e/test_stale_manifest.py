"""A manifest that does not fit the job any more costs reads at most: never a result."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from hotstart.cache.store import Store, open_store
from hotstart.launcher.manifest import Manifest
from tests.support.gcs_proxy import GcsProxy
from tests.support.hosts import (
    NAMES,
    Hosts,
    compiled,
    expected_total,
    gets,
    totals,
    write_programs,
)
from tests.support.launch import Finished, Site

pytestmark = pytest.mark.e2e

ONCE = {name: 1 for name in sorted(NAMES)}


@pytest.fixture
def here(two: Hosts, proxy: GcsProxy, bucket: str) -> Iterator[Site]:
    """A site whose job has run once; the hosts have forgotten what it compiled."""
    two.empty()
    with two.site() as made:
        finished = launch(made, two, bucket)
        assert compiled(finished.stderr) == ONCE, finished.shown
        two.empty()
        proxy.reset()
        yield made
        made.assert_clean(5.0)


def launch(here: Site, two: Hosts, bucket: str, *more: str) -> Finished:
    options = (f"cache.location={bucket}/cache", "workers=2", "workers_per_host=1", "--json", *more)
    finished = here.launch("job.yaml", *options, env=two.environ)
    assert finished.exit_code == 0, finished.shown
    assert len(finished.report["attempts"]) == 1, finished.shown
    return finished


def assert_totals(finished: Finished, processes: int = 2, **settings: int) -> None:
    expected = pytest.approx(expected_total(processes, **settings), abs=0.02)
    assert totals(finished.stderr) == [expected] * processes, finished.shown


def kept_manifest(store: Store) -> tuple[str, Manifest]:
    """The latest manifest in a cache's location, and its name."""
    name = max(store.list("manifests/"), key=lambda stat: stat.modified_s).name
    return name, Manifest.from_json(store.get(name) or b"")


def put_in_place(store: Store, data: bytes) -> None:
    """Let the job's manifests all be these bytes."""
    for stat in list(store.list("manifests/")):
        store.delete(stat.name, stat.generation)
        assert store.create(stat.name, data)


def test_changed_code_compiles_what_changed_and_nothing_else(
    two: Hosts, here: Site, bucket: str
) -> None:
    write_programs(here, factors={"last": 3})
    finished = launch(here, two, bucket)
    assert compiled(finished.stderr) == {"last_1": 1}, finished.shown
    assert_totals(finished, last_factor=3)


@pytest.mark.parametrize("setting", ["size", "devices"])
def test_other_shapes_or_devices_compile_each_program_once(
    two: Hosts, here: Site, bucket: str, setting: str
) -> None:
    new = {"size": 12} if setting == "size" else {"devices": 2}
    write_programs(here, **new)
    finished = launch(here, two, bucket)
    assert compiled(finished.stderr) == ONCE, finished.shown
    assert_totals(finished, **new)
    write_programs(here)
    back = launch(here, two, bucket)
    assert compiled(back.stderr) == {}, back.shown
    assert_totals(back)


def test_other_number_of_workers_with_the_manifest_of_two_compiles_each_program_once(
    two: Hosts, here: Site, proxy: GcsProxy, bucket: str
) -> None:
    store = open_store(f"{bucket}/cache")
    _, of_two = kept_manifest(store)
    finished = launch(here, two, bucket, "workers=4", "workers_per_host=2")
    again = [name for name in NAMES if name != "local_1"]  # has the same key for all
    expected = {name: 1 for name in sorted(again)}
    assert compiled(finished.stderr) == expected, finished.shown
    put_in_place(store, of_two.to_json())
    for host_home in two.homes:
        assert host_home.exists()
    two.empty()
    warm = launch(here, two, bucket, "workers=4", "workers_per_host=2")
    assert compiled(warm.stderr) == {}, warm.shown
    assert_totals(warm, processes=4)


def test_manifest_of_another_jax_is_not_read_ahead_by(
    two: Hosts, here: Site, proxy: GcsProxy, bucket: str
) -> None:
    store = open_store(f"{bucket}/cache")
    _, manifest = kept_manifest(store)
    put_in_place(store, replace(manifest, jax="0.4.1").to_json())
    proxy.reset()
    finished = launch(here, two, bucket)
    assert compiled(finished.stderr) == {}, finished.shown
    assert_totals(finished)
    assert set(gets(proxy).values()) == {1}
    read = finished.report["attempts"][0]["hosts"]
    # Claimed one by one, as by a job that is new: only the second host asks for `upper_1`.
    assert sum(host["from_peers"] for host in read) == len(NAMES) - 1


@pytest.mark.parametrize("data", [b"", b"\x00\xff garbage", b"{}", b'{"schema": 1, "entries": 7}'])
def test_damaged_manifest_is_passed_over(
    two: Hosts, here: Site, proxy: GcsProxy, bucket: str, data: bytes
) -> None:
    put_in_place(open_store(f"{bucket}/cache"), data)
    finished = launch(here, two, bucket)
    assert compiled(finished.stderr) == {}, finished.shown
    assert_totals(finished)
    assert set(gets(proxy).values()) == {1}


def test_manifest_that_confuses_programs_gives_right_results(
    two: Hosts, here: Site, bucket: str
) -> None:
    """Each key has the compile options, devices and processes of another program."""
    store = open_store(f"{bucket}/cache")
    _, manifest = kept_manifest(store)
    entries = manifest.entries
    turned = (*entries[1:], entries[0])
    wrong = tuple(
        replace(
            entry,
            options=other.options,
            devices=other.devices,
            processes=other.processes,
            digest_hex=other.digest_hex,
            load_ahead=True,
        )
        for entry, other in zip(entries, turned, strict=True)
    )
    missing = replace(entries[0], key=entries[0].key[:-4] + "0000")
    put_in_place(store, replace(manifest, entries=(*wrong, missing)).to_json())
    finished = launch(here, two, bucket)
    assert compiled(finished.stderr) == {}, finished.shown
    assert_totals(finished)
