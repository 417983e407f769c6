"""Stock JAX's own cache: what its files are, and which of them hotstart's programs will ask for.

    KEY-cache    compressed with zstd, or zlib where Python has no zstandard: 4 bytes of compile
                 seconds, big-endian, then the serialized executable
    KEY-atime    when it was last read, in ns, 8 bytes, little-endian; where the size is bounded

A hotstart entry's payload is the very contents of KEY-cache, so an entry is taken over by putting
a head before it and back by taking that off. What decides is whether both ask with one key:

- on GPU and TPU they do, as long as `XLA_FLAGS` are the same; on GPU hotstart adds
  `--xla_gpu_shard_autotuning=false` to compile once (not with `compile: every`), which is in
  the key;
- on CPU they do for a process alone. With several, stock's keys differ from process to process and
  hotstart's don't (keys.py), so none can be taken over;
- JAX 0.10 has XLA's autotune folder, which lies in the cache's directory, in the key, on CPU too,
  unless `jax_persistent_cache_enable_xla_caches` is `none`. hotstart sets no such folder. JAX
  0.12 leaves it out of the key.

Stock has no digest: damage that still unpacks can't be seen here, nor who has written it.
https://github.com/jax-ml/jax/blob/main/jax/_src/lru_cache.py
"""

from __future__ import annotations

import io
import re
import time
import uuid
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hotstart.cache.entry import EntryMeta
from hotstart.cache.errors import NotAnEntry, StoreError
from hotstart.cache.folders import write_once
from hotstart.cache.heads import in_order, read_whole
from hotstart.cache.store import ObjectStat, Store, open_store

MAX_UNPACKED_BYTES = 16 << 30
WRITER = "stock JAX"
_FILE = re.compile(r"([!-.0-~]{1,200}-[0-9a-f]{64})-cache")  # no slash
_FOLDER = re.compile(rb"(?:gs://|/)[ -~]{0,400}xla_gpu_per_fusion_autotune_cache_dir")
_ELF_MACHINES = {62: "cpu", 183: "cpu", 243: "cpu", 21: "cpu", 190: "gpu", 224: "gpu"}
_CHUNK_BYTES = 1 << 20
_OVERLAP = 512
_ZSTD = b"\x28\xb5\x2f\xfd"


@dataclass(frozen=True)
class StockEntry:
    """One file of stock's cache, unpacked once to look at it.

    autotune_folder: the one of XLA that it was compiled with, empty for none.
    """

    key: str
    payload: bytes
    meta: EntryMeta
    autotune_folder: str


@dataclass(frozen=True)
class NotStock:
    """A file that can't be taken over, and why."""

    file: str
    why: str


def read_stock(location: str) -> Iterator[StockEntry | NotStock]:
    """What stock JAX has in a directory or `gs://` prefix. Raises `StoreError`.

    One listing and one request a file.
    """
    store = open_store(location)

    def read(stat: ObjectStat) -> StockEntry | NotStock | None:
        match = _FILE.fullmatch(stat.name)
        if match is None:
            return NotStock(stat.name, "its name is not a JAX key's")
        data = read_whole(store, stat.name)
        try:
            return None if data is None else parse_stock(match[1], data)
        except NotAnEntry as error:
            return NotStock(stat.name, str(error))

    files = (s for s in _listed(store) if s.name.endswith("-cache"))
    yield from (one for one in in_order(read, files, threads=4) if one is not None)


def parse_stock(key: str, data: bytes) -> StockEntry:
    """What stock stored under a key; raises `NotAnEntry` where that does not unpack whole."""
    head, machine, folder, size = b"", None, b"", 0
    tail = b""
    for chunk in _unpack(data):
        head = (head + chunk)[:4]
        size += len(chunk)
        if size > MAX_UNPACKED_BYTES:
            raise NotAnEntry(f"it unpacks to more than {MAX_UNPACKED_BYTES} bytes")
        window = tail + chunk
        folder = folder or _found_folder(window)
        machine = machine or _elf_machine(window)
        tail = window[-_OVERLAP:]
    if size <= 4:
        raise NotAnEntry("there is no executable in it")
    compile_s = int.from_bytes(head, "big")
    if compile_s >= 10**9:
        raise NotAnEntry("it does not begin with compile seconds")
    platform = _ELF_MACHINES.get(machine or -1, "")
    meta = EntryMeta(compile_s=float(compile_s), platform=platform, writer=WRITER)
    return StockEntry(key, data, meta, folder.decode(errors="replace"))


def write_stock(location: str, key: str, payload: bytes | memoryview) -> bool:
    """Put an executable where stock JAX looks for it; False where it is there already.

    Atomic. Raises `NotAnEntry` where the key can't be a file's name, `StoreError`.
    """
    file = f"{key}-cache"
    if _FILE.fullmatch(file) is None or file.startswith("."):
        raise NotAnEntry(f"{key[:200]!r} can't be a file's name")
    # A cache whose size is bounded reads this of every entry, and JAX 0.10 fails without it.
    last_read = (f"{key}-atime", time.time_ns().to_bytes(8, "little"))
    if location.startswith("gs://"):
        store = open_store(location)
        store.create(*last_read)
        return store.create(file, bytes(payload))
    folder = Path(location)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _create(folder, *last_read)
        return _create(folder, file, payload)
    except OSError as error:
        raise StoreError(
            f"cannot write {folder / file}: {error.strerror}; check the directory"
        ) from error


def _create(folder: Path, name: str, data: bytes | memoryview) -> bool:
    return write_once(folder / name, data, folder / f".{uuid.uuid4().hex}")


def _listed(store: Store) -> Iterator[ObjectStat]:
    for stat in store.list(""):
        if "/" not in stat.name:
            yield stat


def _unpack(data: bytes) -> Iterator[bytes]:
    return _unpack_zstd(data) if data.startswith(_ZSTD) else _unpack_zlib(data)


def _unpack_zstd(data: bytes) -> Iterator[bytes]:
    import zstandard

    try:
        size = zstandard.frame_content_size(data)
        left = size
        with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data)) as reader:
            while chunk := reader.read(_CHUNK_BYTES):
                left -= len(chunk)
                yield chunk
    except zstandard.ZstdError as error:
        raise NotAnEntry(f"it does not unpack: {error}") from error
    if size >= 0 and left:
        raise NotAnEntry(f"it is cut short: {size - left} of {size} bytes unpack")


def _unpack_zlib(data: bytes) -> Iterator[bytes]:
    unpacker = zlib.decompressobj()
    left = data
    try:
        while not unpacker.eof:
            chunk = unpacker.decompress(left, _CHUNK_BYTES)
            left = unpacker.unconsumed_tail
            if not chunk and not left and not unpacker.eof:
                raise NotAnEntry("it is cut short")
            yield chunk
    except zlib.error as error:
        raise NotAnEntry(f"it is neither zstd nor zlib: {error}") from error


def _found_folder(window: bytes) -> bytes:
    match = _FOLDER.search(window)
    if match is None:
        return b""
    return match[0][1:] if match[0].startswith(b"//") else match[0]  # a length that is a slash


def _elf_machine(window: bytes) -> int | None:
    start = window.find(b"\x7fELF")
    header = window[start : start + 20] if start >= 0 else b""
    return int.from_bytes(header[18:20], "little") if len(header) == 20 else None
