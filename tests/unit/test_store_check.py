"""Whether a cache location can be written: by a create, which says what is wrong in one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hotstart.cache.config import CacheConfig
from hotstart.launcher.store_check import check_store

pytestmark = pytest.mark.unit


def test_check_store_of_a_directory_that_can_be_written_says_nothing(tmp_path: Path) -> None:
    config = CacheConfig(str(tmp_path / "cache"))
    assert [check_store(config, "default"), check_store(config, "default")] == [None, None]


def test_check_store_of_one_that_cannot_be_made_names_who_set_it() -> None:
    assert check_store(CacheConfig("/proc/none/cache"), "job.yaml:2") == (
        "job.yaml:2: cache.location: cannot create /proc/none/cache/hotstart-probe: No such "
        "file or directory; is another program removing /proc/none/cache?"
    )


def test_check_store_read_only_is_not_looked_at() -> None:
    assert check_store(CacheConfig("/proc/none/cache", mode="read-only"), "default") is None


def test_launch_module_leaves_gcsfs_and_ray_to_others() -> None:
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from hotstart.conf.load import LoadedJob\n"
        "from hotstart.conf.schema import CacheSection, JobConfig\n"
        "from hotstart.launcher.launch import check_writable\n"
        "config = JobConfig(cache=CacheSection(location='gs://not-there/cache'))\n"
        "check_writable(LoadedJob(config, Path('job.yaml'), {}))\n"
        "print(sorted({'gcsfs', 'fsspec', 'ray', 'jax'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
