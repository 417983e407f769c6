"""Files of stock JAX's cache, sound ones and others, without JAX."""

from __future__ import annotations

import errno
import os
import zlib
from pathlib import Path

import pytest
import zstandard

from hotstart.cache import stock
from hotstart.cache.errors import NotAnEntry
from hotstart.cache.stock import NotStock, StockEntry, parse_stock, read_stock, write_stock

pytestmark = pytest.mark.unit

KEY = "jit_step-" + "a" * 64
ELF = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x03\x00"
FOLDER = b"/data/cache/xla_gpu_per_fusion_autotune_cache_dir"


def executable(machine: int = 62, compile_s: int = 7, more: bytes = b"") -> bytes:
    return compile_s.to_bytes(4, "big") + b"head" * 9 + ELF + bytes([machine, 0]) + more


@pytest.mark.parametrize("compress", [zstandard.compress, zlib.compress])
@pytest.mark.parametrize(("machine", "platform"), [(62, "cpu"), (190, "gpu"), (77, "")])
def test_parse_stock_reads_seconds_and_platform_and_keeps_the_bytes(
    compress, machine: int, platform: str
) -> None:
    data = compress(executable(machine))
    found = parse_stock(KEY, data)
    assert (found.key, found.payload, found.autotune_folder) == (KEY, data, "")
    assert (found.meta.compile_s, found.meta.platform) == (7.0, platform)
    assert found.meta.writer == "stock JAX"


def test_parse_stock_finds_the_folder_across_pieces() -> None:
    for length in (b"j", b"/"):  # that goes before it
        more = b"x" * ((1 << 20) - len(executable()) - 10) + b"\n" + length + FOLDER + b"\0rest"
        found = parse_stock(KEY, zstandard.compress(executable(more=more)))
        assert found.autotune_folder == FOLDER.decode()


@pytest.mark.parametrize("compress", [zstandard.compress, zlib.compress])
def test_parse_stock_that_is_cut_short_is_refused(compress) -> None:
    data = compress(executable(more=bytes(range(256)) * 40))
    for length in (5, len(data) // 2, len(data) - 6):
        with pytest.raises(NotAnEntry):
            parse_stock(KEY, data[:length])


@pytest.mark.parametrize(
    "data", [b"", b"rubbish", zstandard.compress(b""), zlib.compress(b"1234"), b"\x28\xb5\x2f\xfd"]
)
def test_parse_stock_of_other_bytes_is_refused(data: bytes) -> None:
    with pytest.raises(NotAnEntry):
        parse_stock(KEY, data)


@pytest.mark.parametrize("compress", [zstandard.compress, zlib.compress])
def test_parse_stock_of_a_bomb_ends_at_the_limit(compress, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stock, "MAX_UNPACKED_BYTES", 3 << 20)
    with pytest.raises(NotAnEntry, match="unpacks to more than"):
        parse_stock(KEY, compress(bytes(64 << 20)))


def test_read_stock_takes_files_of_keys_alone(tmp_path: Path) -> None:
    (tmp_path / f"{KEY}-cache").write_bytes(zstandard.compress(executable()))
    (tmp_path / f"{KEY}-atime").write_bytes(bytes(8))
    (tmp_path / "notes-cache").write_bytes(b"x")
    (tmp_path / "xla_gpu_per_fusion_autotune_cache_dir").mkdir()
    (tmp_path / "xla_gpu_per_fusion_autotune_cache_dir" / f"{KEY}-cache").write_bytes(b"x")
    other = KEY.replace("step", "bad")
    (tmp_path / f"{other}-cache").write_bytes(b"x")
    found = list(read_stock(str(tmp_path)))
    assert [type(one) for one in found] == [NotStock, StockEntry, NotStock]
    assert {one.file for one in found if isinstance(one, NotStock)} == {
        "notes-cache",
        f"{other}-cache",
    }


def test_write_stock_creates_once_and_leaves_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    assert write_stock(str(folder), KEY, b"payload")
    assert not write_stock(str(folder), KEY, b"another")
    assert (folder / f"{KEY}-cache").read_bytes() == b"payload"
    assert sorted(path.name for path in folder.iterdir()) == [f"{KEY}-atime", f"{KEY}-cache"]
    assert len((folder / f"{KEY}-atime").read_bytes()) == 8


@pytest.mark.parametrize(
    "key", ["../x-" + "a" * 64, ".x-" + "a" * 64, "a/b-" + "a" * 64, "x", "\0-" + "a" * 64]
)
def test_write_stock_of_a_key_that_is_a_path_is_refused(key: str, tmp_path: Path) -> None:
    with pytest.raises(NotAnEntry):
        write_stock(str(tmp_path), key, b"payload")
    assert list(tmp_path.iterdir()) == []


def test_write_stock_without_hard_links_creates_once_and_leaves_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*paths: object) -> None:
        raise OSError(errno.EPERM, "not permitted")

    monkeypatch.setattr(os, "link", refuse)
    folder = tmp_path / "jax"
    assert write_stock(str(folder), KEY, b"payload")
    assert not write_stock(str(folder), KEY, b"another")
    assert len(list(folder.iterdir())) == 2
    assert (folder / f"{KEY}-cache").read_bytes() == b"payload"
