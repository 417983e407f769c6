"""What a worker says of itself, gathered without importing anything."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from hotstart.cache.config import CacheConfig
from hotstart.cache.requests import Request
from hotstart.launcher import worker_facts
from hotstart.launcher.worker_facts import RequestFacts, decisive_flags, start_facts

pytestmark = pytest.mark.unit


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Folders that come first on the path, and versions looked up anew."""
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
    monkeypatch.setattr(sys, "path", [*map(str, folders), str(tmp_path / "none"), *sys.path])
    worker_facts.installed.cache_clear()
    yield folders
    worker_facts.installed.cache_clear()


def test_start_facts_name_versions_flags_and_settings(path):
    config = CacheConfig("/c", mode="read-only", min_compile_time_s=1.5)
    environ = {"XLA_FLAGS": "--b=2 --a=1", "LIBTPU_INIT_ARGS": "--c"}
    found = start_facts(config, environ)
    found = {k: v for k, v in found.items() if not k.startswith("jax-")}  # plugins of this machine
    assert found == {
        "Python": ".".join(map(str, sys.version_info[:3])),
        "hotstart": version("hotstart"),
        "jax": version("jax"),
        "jaxlib": version("jaxlib"),
        "compression": "zstandard",
        "XLA_FLAGS": "--a=1 --b=2",
        "LIBTPU_INIT_ARGS": "--c",
        "cache.mode": "read-only",
        "cache.compile": "once",
        "cache.min_compile_time_s": "1.5",
    }


def test_start_facts_of_a_job_without_a_cache_say_off(path):
    found = start_facts(None, {})
    assert (found["cache.mode"], found["XLA_FLAGS"]) == ("off", "")


def test_installed_plugins_and_the_first_of_two_versions_are_found(path):
    first, second = path
    (first / "jax_cuda12_plugin-0.10.2.dist-info").mkdir()
    (first / "libtpu-0.0.9+nightly.dist-info").mkdir()
    (first / "jaxtyping-0.3.dist-info").mkdir()
    (second / "jax_cuda12_plugin-0.10.1.dist-info").mkdir()
    (second / "jax_cuda12_pjrt-0.10.1.dist-info").mkdir()
    (second / "jaxlib-9.9.dist-info").mkdir()
    found = worker_facts.key_versions()
    assert found == {
        "jax": version("jax"),
        "jax-cuda12-pjrt": "0.10.1",
        "jax-cuda12-plugin": "0.10.2",
        "jaxlib": "9.9",
        "libtpu": "0.0.9+nightly",
        "compression": "zstandard",
    }


def test_flags_that_are_not_in_the_key_are_left_out_and_the_rest_is_in_order():
    flags = (
        "--xla_dump_to=/tmp/3 --z=1 --xla_force_host_platform_device_count=8 --a "
        "--xla_gpu_cuda_data_dir=/cuda --xla_dump_hlo_as_text"
    )
    assert decisive_flags(flags) == "--a --z=1"


@pytest.mark.internals
def test_flags_that_jax_leaves_out_of_its_key_are_those_left_out_here():
    from jax._src.cache_key import xla_flags_to_exclude_from_cache_key

    assert decisive_flags(" ".join(f"{f}=1" for f in xla_flags_to_exclude_from_cache_key)) == ""


def test_gathering_imports_neither_jax_nor_what_compresses():
    code = (
        "import os, sys\n"
        "from hotstart.launcher.worker_facts import start_facts\n"
        "start_facts(None, os.environ)\n"
        "print({'jax', 'jaxlib', 'zstandard', 'importlib.metadata'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def request(key: str, *device_ids: int) -> Request:
    return Request(key, "jit_f", "hit", None, 10, b"", device_ids, False, 0.1)


def test_devices_are_told_once_and_the_first_program_on_all_of_them():
    import jax

    sent: list[dict[str, Any]] = []
    tell = RequestFacts(sent.append)
    everywhere = [d.id for d in jax.devices()]
    tell(request("jit_local-" + "a" * 64, *everywhere, 999))
    tell(request("jit_step-" + "b" * 64, *everywhere))
    tell(request("jit_next-" + "c" * 64, *everywhere))
    tell.close()

    stages = {message["facts"]["stage"]: message["facts"]["values"] for message in sent}
    assert len(sent) == 2
    assert stages["program"] == {"first program": "jit_step-" + "b" * 16}
    devices = stages["devices"]
    assert (devices["platform"], devices["local devices"]) == ("cpu", str(len(everywhere)))
    assert sorted(devices) == [
        "device kind",
        "local devices",
        "platform",
        "processor",
        "runtime",
        "topology",
    ]
