from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hotstart.cache.directory import DirectoryStore
from hotstart.cache.errors import InvalidLocation
from hotstart.cache.gcs import GcsStore
from hotstart.cache.store import check_name, normalize_location, open_store

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("name", ["a", "a/b", ".a/..b/c.", "ü/🚀", "x" * 1024, "a b#?%"])
def test_check_name_valid_returns_it(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name", ["", "/", "/a", "a/", "a//b", ".", "..", "a/./b", "a/../b", "x" * 1025, "ü" * 513]
)
def test_check_name_invalid_raises_value_error(name: str) -> None:
    with pytest.raises(ValueError, match="invalid object name"):
        check_name(name)


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("gs://bucket", "gs://bucket"),
        ("gs://bucket/", "gs://bucket"),
        (" gs://bucket//a///b/ ", "gs://bucket/a/b"),
        ("/a/b", "/a/b"),
        ("file:///a/b", "/a/b"),
        ("file://localhost/a/b", "/a/b"),
        ("file:////a/b", "/a/b"),
        ("file:///a#1/b?", "/a#1/b?"),
        ("relative", str(Path.cwd() / "relative")),
        ("~/cache", str(Path.home() / "cache")),
    ],
)
def test_normalize_location_valid_has_one_spelling(location: str, expected: str) -> None:
    assert normalize_location(location) == expected


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("", "empty"),
        ("  ", "empty"),
        ("s3://bucket/x", "unknown scheme s3://"),
        ("gs://", "no bucket name"),
        ("gs:///prefix", "no bucket name"),
        ("~nosuchuser/x", "home directory"),
        ("file://host/x", "another host"),
        ("file://relative", "another host"),
        ("file://[x/y", "another host"),
    ],
)
def test_normalize_location_invalid_says_what_is_wrong(location: str, words: str) -> None:
    with pytest.raises(InvalidLocation, match=words):
        normalize_location(location)


def test_open_store_directory_location_touches_nothing(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "new"), max_size_bytes=1000)

    assert type(store) is DirectoryStore
    assert store.url == str(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_open_store_bucket_location_keeps_its_url() -> None:
    store = open_store("gs://bucket/a/b/")

    assert type(store) is GcsStore
    assert store.url == "gs://bucket/a/b"


def test_open_store_bucket_location_does_not_import_gcsfs() -> None:
    code = (
        "import sys; from hotstart.cache.store import open_store; open_store('gs://bucket/a');"
        "print(sorted({'gcsfs', 'fsspec', 'aiohttp', 'google.auth'} & set(sys.modules)))"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "[]\n"
