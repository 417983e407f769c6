"""One process, started again and again: what JAX asks, what is stored, what is compiled."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from hotstart.cache.entry import EntryMeta, decode, encode
from tests.support.entries import key_in
from tests.support.jax_lab import JaxLab, jax_lab

pytestmark = [pytest.mark.multiprocess, pytest.mark.internals]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JaxLab]:
    with jax_lab(tmp_path_factory.mktemp("home")) as running:
        yield running


@pytest.fixture
def location(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def entries(location: Path) -> dict[str, Path]:
    """The entries by the module in their name."""
    found = sorted((location / "entries" / "v1").glob("*"))
    return {path.name.partition("-")[2]: path for path in found}


def key_of(path: Path) -> str:
    return key_in(path.read_bytes())


def assert_sound(path: Path) -> None:
    decode(key_of(path), path.read_bytes())


def flip_last_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_second_start_hits_and_compiles_nothing(lab, location):
    cold = lab.start(location)
    (path,) = entries(location).values()
    size_bytes = path.stat().st_size
    warm = lab.start(location)

    assert (cold["value"], cold["compiled"], cold["warned"]) == (4.0, ["jit_step"], [])
    assert (warm["value"], warm["compiled"], warm["warned"]) == (4.0, [], [])
    assert warm["requested"] == cold["requested"] == ["jit_step"]
    counts = ("requests", "hits", "compiled", "errors", "read_bytes", "written_bytes")
    assert [cold["stats"][name] for name in counts] == [1, 0, 1, 0, 0, size_bytes]
    assert [warm["stats"][name] for name in counts] == [1, 1, 0, 0, size_bytes, 0]
    meta = decode(key_of(path), path.read_bytes()).meta
    assert warm["stats"]["saved_s"] == meta.compile_s
    assert (cold["stats"]["compile_s"] > 0, warm["stats"]["compile_s"]) == (True, 0)
    assert meta.platform == "cpu"


def test_second_start_from_a_directory_that_was_moved_hits(lab, location, tmp_path):
    lab.start(location)
    moved = location.rename(tmp_path / "moved")

    assert lab.start(moved)["compiled"] == []
    assert not location.exists()


def test_enable_in_many_threads_compiling_at_once_counts_each_program(lab, location):
    code = """
import threading
cache.enable(location)
programs = [step, other, lambda x: x * 2, lambda x: x + 3]
values = [None] * 4
def work(index):
    values[index] = float(jax.jit(programs[index])(1.0))
threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
cache.flush()
stats = cache.stats()
result = values, len(counter.compiled), stats.requests, stats.hits, stats.compiled
"""
    assert lab.run(code, location=location) == [[4.0, 5.0, 2.0, 4.0], 4, 4, 0, 4]
    assert lab.run(code, location=location) == [[4.0, 5.0, 2.0, 4.0], 0, 4, 4, 0]


@pytest.mark.parametrize("set_how", ["jax.config.update('jax_compilation_cache_dir', ", "set_dir("])
def test_cache_dir_set_later_by_a_script_is_one_warning_and_changes_no_key(
    lab, location, tmp_path, set_how
):
    lab.start(location)
    lab.start(location, program="other")
    plain = tmp_path / "plain"
    location.rename(plain)
    elsewhere = tmp_path / "elsewhere"
    code = f"""
from jax.experimental.compilation_cache.compilation_cache import set_cache_dir as set_dir
cache.enable(location)
{set_how}elsewhere)
call(step)
{set_how}elsewhere)
result = call(other)
"""
    cold = lab.run(code, location=location, elsewhere=elsewhere)
    warm = lab.run(code, location=location, elsewhere=elsewhere)

    assert cold["compiled"] == ["jit_step", "jit_other"]
    assert warm["compiled"] == []
    for start in (cold, warm):
        (warning,) = start["warned"]
        assert f"was set to {elsewhere} after" in warning
        assert f"in place at {location};" in warning
    names = {path.name for path in entries(location).values()}
    assert names == {path.name for path in entries(plain).values()}
    assert len(names) == 2
    assert not elsewhere.exists()


def test_reset_cache_by_a_script_keeps_ours_in_place(lab, location):
    code = """
from jax.experimental.compilation_cache import compilation_cache
cache.enable(location)
compilation_cache.reset_cache()
call(step)
compilation_cache.reset_cache()
jax.clear_caches()
result = call(step)
"""
    start = lab.run(code, location=location)

    assert (start["requested"], start["compiled"]) == (["jit_step"] * 2, ["jit_step"])
    assert (start["stats"]["requests"], start["stats"]["hits"]) == (2, 1)
    assert list(entries(location)) == ["jit_step"]
    assert start["warned"] == []


def test_enable_without_a_location_adopts_what_the_script_set_in_jax_before(lab, location):
    code = """
jax.config.update("jax_compilation_cache_dir", location)
cache.enable()
result = call(step)
"""
    start = lab.run(code, location=location)

    assert (start["compiled"], start["warned"]) == (["jit_step"], [])
    assert list(entries(location)) == ["jit_step"]
    assert lab.start(location)["compiled"] == []


def test_key_of_devices_is_left_to_jax_but_for_cpus_of_several_processes(lab, location):
    code = """
import hashlib
from types import SimpleNamespace
from jax._src import cache_key
stock = cache_key._hash_accelerator_config
process_count = jax.process_count
def _hash_accelerator_config(hash_obj, accelerators):
    hash_obj.update(b"by jax")
cache_key._hash_accelerator_config = _hash_accelerator_config
try:
    cache.enable(location)
    def digest(platform):
        device = SimpleNamespace(platform=platform, device_kind="k", process_index=0)
        hash_obj = hashlib.sha256()
        cache_key._hash_accelerator_config(hash_obj, SimpleNamespace(flat=iter([device])))
        return hash_obj.hexdigest() == hashlib.sha256(b"by jax").hexdigest()
    result = {}
    for count in (1, 2):
        jax.process_count = lambda: count
        result[count] = [p for p in ("cpu", "gpu", "tpu") if digest(p)]
finally:
    jax.process_count = process_count
    cache.disable()
    cache_key._hash_accelerator_config = stock
"""
    assert lab.run(code, location=location) == {
        "1": ["cpu", "gpu", "tpu"],
        "2": ["gpu", "tpu"],
    }


def test_enable_twice_alike_is_silent_and_otherwise_one_warning_that_names_both(
    lab, location, tmp_path
):
    code = """
cache.enable(location)
cache.enable(location)
before = list(warned)
cache.enable(second)
result = before, call(step)
"""
    before, start = lab.run(code, location=location, second=tmp_path / "second")

    assert before == []
    assert start["warned"] == [
        f"the cache stays at {location}; hotstart.cache.enable({tmp_path / 'second'}) has no "
        "effect before hotstart.cache.disable()"
    ]
    assert list(entries(location)) == ["jit_step"]
    assert not (tmp_path / "second").exists()


def test_disable_leaves_stock_jax_as_it_was(lab, location, tmp_path):
    code = """
from jax._src import cache_key, compilation_cache, compiler
def state():
    return [
        compiler._cache_write, compiler.compile_or_get_cached, compiler.get_compile_options,
        compiler.backend_compile_and_load, cache_key._hash_accelerator_config,
        compilation_cache._cache, compilation_cache._cache_initialized,
        jax.config.jax_compilation_cache_dir,
        jax.config.jax_persistent_cache_min_compile_time_secs,
        jax.config.jax_raise_persistent_cache_errors,
    ]
jax.config.update("jax_compilation_cache_dir", stock)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
before = state()
cache.enable(location, strict=True, min_compile_time_s=0.0)
call(step)
differ = sum(a is not b for a, b in zip(before, state()))
cache.disable()
same = before == state()
result = differ > 5, same, call(other)["stats"]
"""
    stock = tmp_path / "stock"
    differ, same, stats = lab.run(code, location=location, stock=stock)

    assert (differ, same, stats["requests"]) == (True, True, 0)
    assert list(entries(location)) == ["jit_step"]
    assert [path.name[:9] for path in stock.glob("*-cache")] == ["jit_other"]


def test_enable_after_disable_counts_anew_and_hits(lab, location):
    code = """
cache.enable(location)
call(step)
cache.disable()
jax.clear_caches()
counter.clear()
cache.enable(location)
result = call(step)
"""
    start = lab.run(code, location=location)

    assert start["compiled"] == []
    assert (start["stats"]["requests"], start["stats"]["hits"]) == (1, 1)


def test_min_compile_time_above_that_of_the_program_stores_nothing(lab, location):
    first = lab.start(location, min_compile_time_s=1000.0)
    second = lab.start(location, min_compile_time_s=1000.0)

    assert first["compiled"] == second["compiled"] == ["jit_step"]
    assert entries(location) == {}


def test_read_only_start_compiles_and_stores_nothing_and_hits_what_is_there(lab, location):
    assert lab.start(location, mode="read-only")["compiled"] == ["jit_step"]
    assert not location.exists()
    lab.start(location)

    assert lab.start(location, mode="read-only")["compiled"] == []


# Bad entries


@pytest.mark.parametrize("spoil", ["bit", "truncated", "empty"])
def test_entry_that_does_not_verify_is_a_counted_miss_and_replaced(lab, location, spoil):
    lab.start(location)
    (path,) = entries(location).values()
    sound = path.read_bytes()
    if spoil == "bit":
        flip_last_bit(path)
    else:
        path.write_bytes(sound[: len(sound) // 2] if spoil == "truncated" else b"")

    start = lab.start(location)

    assert (start["value"], start["compiled"]) == (4.0, ["jit_step"])
    stats = start["stats"]
    assert (stats["requests"], stats["hits"], stats["errors"]) == (1, 0, 1)
    (warning,) = start["warned"]
    assert f"{path.relative_to(location)} in {location}: " in warning
    assert_sound(path)
    assert lab.start(location)["compiled"] == []


def test_entry_of_another_program_under_this_name_is_a_miss_and_replaced(lab, location):
    lab.start(location)
    lab.start(location, program="other")
    found = entries(location)
    shutil.copyfile(found["jit_other"], found["jit_step"])

    start = lab.start(location)

    assert (start["value"], start["compiled"], start["stats"]["errors"]) == (4.0, ["jit_step"], 1)
    assert key_of(found["jit_step"]).startswith("jit_step-")
    assert_sound(found["jit_step"])
    assert lab.start(location)["compiled"] == []


def test_entry_that_verifies_but_does_not_load_is_a_miss_and_replaced(lab, location):
    lab.start(location)
    (path,) = entries(location).values()
    key = key_of(path)
    path.write_bytes(encode(key, b"no executable", EntryMeta(compile_s=9.0)))

    start = lab.start(location)

    assert (start["value"], start["compiled"]) == (4.0, ["jit_step"])
    assert (start["stats"]["hits"], start["stats"]["saved_s"]) == (0, 0)
    assert decode(key, path.read_bytes()).payload != b"no executable"
    assert lab.start(location)["compiled"] == []


# Trouble


def test_store_that_cannot_be_read_in_strict_mode_ends_the_call(lab, location):
    code = """
from hotstart.cache import directory, errors
cache.enable(location, strict=True)
stock = directory.DirectoryStore.get
def get(self, name):
    raise errors.AccessDenied(f"cannot read {name}")
directory.DirectoryStore.get = get
try:
    call(step)
except errors.CacheRequired as error:
    result = str(error)
finally:
    directory.DirectoryStore.get = stock
"""
    assert lab.run(code, location=location).startswith(
        "the cache is required and cannot be used: cannot read entries/"
    )


UNFAMILIAR = {
    "a renamed parameter": """
def _cache_write(renamed, compile_time_secs, module_name, backend, executable, *rest):
    stock(renamed, compile_time_secs, module_name, backend, executable, *rest)
""",
    "a missing parameter": """
def _cache_write(cache_key, compile_time_secs, module_name, *rest):
    stock(cache_key, compile_time_secs, module_name, *rest)
""",
    "a new parameter": """
def _cache_write(cache_key, compile_time_secs, module_name, backend, executable,
                 host_callbacks=(), new=None):
    rest = (host_callbacks,) if "host_callbacks" in inspect.signature(stock).parameters else ()
    stock(cache_key, compile_time_secs, module_name, backend, executable, *rest)
""",
}
UNFAMILIAR_CODE = """
import inspect
from jax._src import compiler
from hotstart.cache import errors
stock = compiler._cache_write
{change}
compiler._cache_write = _cache_write
jax.config.update("jax_compilation_cache_dir", stock_dir)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
raised = None
try:
    cache.enable(location, strict=strict)
except errors.CacheRequired as error:
    raised = str(error)
try:
    result = raised, call(step)
finally:
    compiler._cache_write = stock
"""


@pytest.mark.parametrize("change", UNFAMILIAR.values(), ids=UNFAMILIAR.keys())
def test_unfamiliar_internals_are_one_warning_and_stock_behavior(lab, location, tmp_path, change):
    stock_dir = tmp_path / "stock"

    raised, start = lab.run(
        UNFAMILIAR_CODE.format(change=change),
        location=location,
        stock_dir=stock_dir,
        strict=False,
    )

    assert (raised, start["value"]) == (None, 4.0)
    (warning,) = start["warned"]
    assert "is not one that this hotstart knows: compiler._cache_write" in warning
    assert start["stats"]["requests"] == 0
    assert not location.exists()
    assert [path.name[:8] for path in stock_dir.glob("*-cache")] == ["jit_step"]


def test_unfamiliar_internals_in_strict_mode_raise(lab, location, tmp_path):
    raised, start = lab.run(
        UNFAMILIAR_CODE.format(change=UNFAMILIAR["a renamed parameter"]),
        location=location,
        stock_dir=tmp_path / "stock",
        strict=True,
    )

    assert "is not one that this hotstart knows" in raised
    assert (start["value"], start["warned"]) == (4.0, [])


def test_internals_that_vanish_half_way_leave_nothing_changed(lab, location):
    code = """
from jax._src import cache_key, compiler, compilation_cache_interface as interface
import sys
before = compiler._cache_write, compiler.compile_or_get_cached, cache_key._hash_accelerator_config
backend = interface.CacheInterface
del interface.CacheInterface
try:
    cache.enable(location)
finally:
    interface.CacheInterface = backend
after = compiler._cache_write, compiler.compile_or_get_cached, cache_key._hash_accelerator_config
result = before == after, call(step)
"""
    unchanged, start = lab.run(code, location=location)

    assert (unchanged, start["value"], start["stats"]["requests"]) == (True, 4.0, 0)
    (warning,) = start["warned"]
    assert "CacheInterface" in warning


def test_canary_jax_internals_look_as_jaxlink_expects(lab, location):
    code = """
import inspect
from jax._src import cache_key, compilation_cache, compiler, xla_bridge
from hotstart.cache import jaxlink
jaxlink._check(compiler=compiler, cache_key=cache_key, compilation_cache=compilation_cache)
call(step)
backends = list(xla_bridge._backends.values())
result = {
    "names of live executables": all(isinstance(n, str) for n in jaxlink._alive_executables()),
    "backends": len(backends),
    "callers go through the module": [
        name for name in ("compile_or_get_cached", "get_compile_options")
        if "compiler." + name in inspect.getsource(jax._src.interpreters.pxla)
    ],
    "no directory, no cache": compilation_cache._cache is None,
}
"""
    assert lab.run(code, location=location) == {
        "names of live executables": True,
        "backends": 1,
        "callers go through the module": ["compile_or_get_cached", "get_compile_options"],
        "no directory, no cache": True,
    }
