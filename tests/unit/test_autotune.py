"""Autotune results between a host's directory and a store; and in JAX, with a stand-in for XLA."""

from __future__ import annotations

import errno
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hotstart.cache.autotune import Autotune, identity_of, pack, unpack
from hotstart.cache.directory import DirectoryStore
from hotstart.cache.errors import EntryError, TransientError
from hotstart.cache.signing import Key, Keyring, Seal
from tests.support.jax_lab import jax_lab
from tests.support.memory_store import MemoryStore

pytestmark = pytest.mark.unit

H100 = identity_of("0.10.2", "PJRT\ncuda 12090", ["NVIDIA H100"] * 8)
FILES = {"a.textproto": "version: 3 tile: 64", "B-_=+1.textproto": "version: 3 tile: 32"}


def opened(folder: Path, store: MemoryStore, seal: Seal | None = None, **more: bool) -> Autotune:
    return Autotune(folder, lambda: store, **({"seal": seal} if seal else {}), **more)


def tuned(autotune: Autotune, files: dict[str, str], identity: str = H100) -> None:
    """A compilation that adds files, as XLA does."""
    folder = autotune.begin(identity)
    assert folder is not None
    for name, text in files.items():
        (folder / name).write_text(text)
    autotune.ended(identity)
    assert autotune.flush(10)


def found(autotune: Autotune, identity: str = H100) -> dict[str, str]:
    folder = autotune.begin(identity)
    assert folder is not None
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_results_of_one_host_are_there_before_the_first_compilation_of_another(tmp_path) -> None:
    store = MemoryStore()
    tuned(opened(tmp_path / "a", store), FILES)
    assert found(opened(tmp_path / "b", store)) == FILES
    [stat] = store.list("")
    assert stat.name.startswith(f"autotune/v1/{H100}/")


def test_only_what_a_compilation_added_is_stored_once(tmp_path) -> None:
    store = MemoryStore()
    one = opened(tmp_path, store)
    tuned(one, {"a.textproto": "1"})
    tuned(one, {"b.textproto": "2"})
    tuned(one, {})
    tuned(opened(tmp_path, store), {})
    bundles = [unpack(H100, s.name, store.get(s.name) or b"") for s in store.list("")]
    assert sorted(map(sorted, bundles)) == [["a.textproto"], ["b.textproto"]]


@pytest.mark.parametrize(
    "other",
    [
        ("0.12.0", "PJRT cuda 12090", ["NVIDIA H100"]),
        ("0.10.2", "PJRT cuda 13000", ["NVIDIA H100"]),
        ("0.10.2", "PJRT cuda 12090", ["NVIDIA H200"]),
    ],
)
def test_results_of_other_versions_or_devices_are_not_taken(tmp_path, other) -> None:
    assert identity_of("0.10.2", "PJRT cuda 12090", ["NVIDIA H100"]) == H100
    store = MemoryStore()
    tuned(opened(tmp_path / "a", store), FILES)
    assert found(opened(tmp_path / "b", store), identity_of(*other)) == {}


def test_read_only_reads_and_stores_nothing(tmp_path) -> None:
    store = MemoryStore()
    tuned(opened(tmp_path / "a", store), FILES)
    reader = opened(tmp_path / "b", store, writable=False)
    tuned(reader, {"c.textproto": "3"})
    assert len(list(store.list(""))) == 1


def test_file_that_is_there_is_left_as_it_is(tmp_path) -> None:
    store = MemoryStore()
    tuned(opened(tmp_path / "a", store), FILES)
    (tmp_path / "b" / H100).mkdir(parents=True)
    (tmp_path / "b" / H100 / "a.textproto").write_text("own")
    assert found(opened(tmp_path / "b", store)) == {**FILES, "a.textproto": "own"}


@pytest.mark.parametrize("harm", ["flipped", "cut", "empty", "moved", "alien"])
def test_bad_bundle_is_left_out_and_the_others_are_taken(tmp_path, caplog, harm: str) -> None:
    store = MemoryStore()
    name, data = pack(H100, {"bad.textproto": "1"})
    other_name, other = pack(identity_of("1", "2", ["3"]), {"bad.textproto": "1"})
    harmed = {
        "flipped": data[:-1] + bytes([data[-1] ^ 1]),
        "cut": data[:-5],
        "empty": b"",
        "moved": other,
        "alien": b"version: 3",
    }[harm]
    store.create(name, harmed)
    store.create(*pack(H100, FILES))
    with caplog.at_level(logging.WARNING):
        assert found(opened(tmp_path, store)) == FILES
    assert len(caplog.records) == 1
    assert "is left out" in caplog.text


def test_file_that_xla_would_not_have_written_is_left_out() -> None:
    name, data = pack(H100, {**FILES, "../x.textproto": "", ".x.textproto": "", "x.so": ""})
    assert unpack(H100, name, data) == FILES


def test_signed_results_are_taken_and_unsigned_ones_are_not(tmp_path) -> None:
    seal = Seal(Keyring((Key(b"k" * 32),)), "memory://store")
    store = MemoryStore()
    tuned(opened(tmp_path / "a", store, seal), FILES)
    assert found(opened(tmp_path / "b", store, seal)) == FILES
    store.create(*pack(H100, {"c.textproto": "unsigned"}))
    assert found(opened(tmp_path / "c", store, seal)) == FILES
    [signed] = [s.name for s in store.list("") if b"unsigned" not in (store.get(s.name) or b"")]
    with pytest.raises(EntryError):
        unpack(H100, signed, store.get(signed) or b"", Seal(seal.keyring, "memory://other"))


class OutStore(MemoryStore):
    def list(self, prefix: str):
        raise TransientError("503")

    def create(self, name: str, data: bytes) -> bool:
        raise TransientError("503")


def test_store_that_is_out_costs_two_warnings_and_the_directory_stays(tmp_path, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        tuned(opened(tmp_path, OutStore()), FILES)
    assert [record.getMessage() for record in caplog.records] == [
        "no autotune results are read from the cache's location: 503",
        "autotune results are not in the cache's location: 503",
    ]


def test_folder_that_cannot_be_made_compiles_without(tmp_path, caplog) -> None:
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING):
        assert opened(tmp_path / "file", MemoryStore()).begin(H100) is None
    assert "XLA keeps no autotune results" in caplog.text


IN_JAX = """
from pathlib import Path
from jax._src import compiler
from hotstart.cache import jaxlink

seen, real = [], compiler.backend_compile_and_load

def xla(backend, module, devices, options, callbacks):
    debug = options.executable_build_options.debug_options
    folder = debug.xla_gpu_per_fusion_autotune_cache_dir
    seen.append([folder, sorted(p.name for p in Path(folder).iterdir()) if folder else []])
    if folder:
        Path(folder, f"{len(seen)}.textproto").write_text("tuned")
        debug.xla_gpu_per_fusion_autotune_cache_dir = ""
    return real(backend, module, devices, options, callbacks)

made = jaxlink.JaxLink.__init__
def of_these(self, *args, **kwargs):
    made(self, *args, **kwargs, tuned_platforms=platforms)
jaxlink.JaxLink.__init__ = of_these
compiler.backend_compile_and_load = xla
try:
    cache.enable(location)
    call(step), call(other)
    result = {"seen": seen, "warned": list(warned)}
finally:
    cache.disable()
    jaxlink.JaxLink.__init__ = made
    compiler.backend_compile_and_load = real
"""


def stored(location: Path, prefix: str) -> list[str]:
    return [stat.name for stat in DirectoryStore(location).list(prefix)]


def test_compilation_on_gpu_has_the_directory_and_the_key_has_not(tmp_path: Path) -> None:
    gpu, cpu = tmp_path / "gpu", tmp_path / "cpu"
    with jax_lab(tmp_path / "home") as lab:
        tuned_run = lab.run(IN_JAX, location=gpu, platforms=["cpu"])
        plain_run = lab.run(IN_JAX, location=cpu, platforms=["gpu"])
        warm_run = lab.run(IN_JAX, location=gpu, platforms=["cpu"])
    folders = {folder for folder, _ in tuned_run["seen"]}
    assert len(folders) == 1
    assert Path(folders.pop()).is_relative_to(tmp_path / "home" / "autotune")
    assert tuned_run["seen"][0][1] == []
    assert tuned_run["warned"] == plain_run["warned"] == []
    assert {folder for folder, _ in plain_run["seen"]} == {""}
    assert stored(gpu, "entries/") == stored(cpu, "entries/")  # the same keys
    assert len(stored(gpu, "autotune/")) == len(tuned_run["seen"])
    assert stored(cpu, "autotune/") == []
    assert warm_run["seen"] == []
    with jax_lab(tmp_path / "other-host") as lab:
        lab.run("shutil = __import__('shutil'); shutil.rmtree(folder)", folder=gpu / "entries")
        other = lab.run(IN_JAX, location=gpu, platforms=["cpu"])
    names = [f"{number + 1}.textproto" for number in range(len(tuned_run["seen"]))]
    assert other["seen"][0][1] == names  # filled before its first compilation


def test_results_reach_a_directory_without_hard_links(tmp_path, monkeypatch) -> None:
    def refuse(*paths: object) -> None:
        raise OSError(errno.ENOTSUP, "not supported")

    store = MemoryStore()
    tuned(opened(tmp_path / "a", store), FILES)
    monkeypatch.setattr(os, "link", refuse)
    assert found(opened(tmp_path / "b", store)) == FILES


def test_compilation_that_ends_once_no_thread_may_start_is_left_alone(
    tmp_path, monkeypatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise RuntimeError("cannot schedule new futures after interpreter shutdown")

    autotune = opened(tmp_path, MemoryStore())
    folder = autotune.begin(H100)
    assert folder is not None
    (folder / "a.textproto").write_text("1")
    monkeypatch.setattr(ThreadPoolExecutor, "submit", refuse)
    autotune.ended(H100)
    assert autotune.flush(0)
