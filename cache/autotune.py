"""XLA's autotune results on GPU: a directory of this host, kept in step with the store.

XLA tunes some fusions by measuring them, which takes a large part of a GPU compilation, and can
keep what it found, a small text file a fusion, in a directory (openxla.org, persisted autotuning).
Its file layer opens no `gs://`, so the directory is always one of the host. Before the first
compilation of a process it is filled from the store, and after each one what XLA has added goes
there in the background. A start that compiles nothing reads nothing.

    autotune/v1/<identity>/<sha256 of key>      an entry (entry.py) with the key
                                                `autotune/<identity>/<sha256 of payload>`
    payload: {"<file name>": "<text>", ...} as JSON, what one compilation has added

The identity is of jaxlib, the platform's runtime and the devices' kind: results of others are of
no use. All of it is untrusted until digest and signature verify, and a bundle that does not, or
that holds what XLA would not have written, is left out. Trouble of any kind costs tuning anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

from hotstart.cache.entry import EntryMeta, decode, encode
from hotstart.cache.errors import EntryError, StoreError
from hotstart.cache.folders import write_once
from hotstart.cache.signing import UNSEALED, Seal
from hotstart.cache.store import Store

logger = logging.getLogger(__name__)

AUTOTUNE = "autotune/v1/"
MAX_FILE_BYTES = 1 << 20
MAX_BUNDLE_BYTES = 64 << 20
MAX_BUNDLES = 512
_READS_AT_ONCE = 16
_FILE = re.compile(r"[A-Za-z0-9_+=-][A-Za-z0-9_.+=-]{0,200}\.textproto")


def identity_of(jaxlib: str, runtime: str, device_kinds: Sequence[str]) -> str:
    """32 hex digits for what results hold for."""
    parts = json.dumps([jaxlib, " ".join(runtime.split()), sorted(set(device_kinds))])
    return hashlib.sha256(parts.encode()).hexdigest()[:32]


class Autotune:
    """One process's use of the directory. `begin` blocks, once; all is safe among threads."""

    def __init__(
        self,
        folder: Path,
        open_store: Callable[[], Store],
        *,
        seal: Seal = UNSEALED,
        writable: bool = True,
    ) -> None:
        """`folder` is of this host and this location; each identity has one of its own in it."""
        self._folder = folder
        self._open_store = open_store
        self._seal = seal
        self._writable = writable
        self._lock = threading.Lock()
        self._store: Store | None = None
        self._ready: dict[str, Path | None] = {}
        self._known: set[str] = set()
        self._pool: ThreadPoolExecutor | None = None
        self._publishing: list[Future[None]] = []

    def begin(self, identity: str) -> Path | None:
        """The directory to compile with, filled; None where there can't be one.

        Blocks on the store the first time, for at most its deadline an operation.
        """
        with self._lock:
            if identity not in self._ready:
                self._ready[identity] = self._prepare(identity)
            return self._ready[identity]

    def ended(self, identity: str) -> None:
        """A compilation has ended: bring what it has added to the store. Does not block."""
        folder = self._ready.get(identity)
        if folder is None or not self._writable:
            return
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(1, thread_name_prefix="hotstart-autotune")
            self._publishing = [f for f in self._publishing if not f.done()]
            # While the interpreter shuts down, or once closed, a pool takes nothing more; this is
            # called as a compilation ends, which must not fail for it.
            with contextlib.suppress(RuntimeError):
                self._publishing.append(self._pool.submit(self._publish, identity, folder))

    def flush(self, timeout_s: float) -> bool:
        """Block until what was added is in the store; False at the timeout."""
        with self._lock:
            left = list(self._publishing)
        return not wait(left, timeout=timeout_s).not_done

    def close(self) -> None:
        """Publish nothing more that has not begun."""
        with self._lock:
            if self._pool is not None:
                self._pool.shutdown(wait=False, cancel_futures=True)

    def _prepare(self, identity: str) -> Path | None:
        folder = self._folder / identity
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            logger.warning("XLA keeps no autotune results in %s: %s", folder, error)
            return None
        try:
            self._fetch(identity, folder)
        except (StoreError, OSError) as error:
            logger.warning("no autotune results are read from the cache's location: %s", error)
        self._known = {path.name for path in _files(folder)}
        return folder

    def _fetch(self, identity: str, folder: Path) -> None:
        store, prefix = self._opened(), f"{AUTOTUNE}{identity}/"
        newest = sorted(store.list(prefix), key=lambda stat: stat.modified_s, reverse=True)
        names = [s.name for s in newest if s.size_bytes <= MAX_BUNDLE_BYTES][:MAX_BUNDLES]
        if not names:
            return
        with ThreadPoolExecutor(_READS_AT_ONCE, thread_name_prefix="hotstart-autotune") as pool:
            for name, data in zip(names, pool.map(store.get, names), strict=True):
                try:
                    files = unpack(identity, name, data or b"", self._seal)
                except EntryError as error:
                    logger.warning("%s/%s is left out: %s", store.url, name, error)
                    continue
                for file, text in files.items():
                    _create(folder / file, text)

    def _publish(self, identity: str, folder: Path) -> None:
        added = {}
        for path in _files(folder):
            if path.name not in self._known:
                self._known.add(path.name)
                with contextlib.suppress(OSError, ValueError):
                    if path.stat().st_size <= MAX_FILE_BYTES:
                        added[path.name] = path.read_text()
        if not added:
            return
        name, data = pack(identity, added, self._seal)
        try:
            self._opened().create(name, data)
        except StoreError as error:
            logger.warning("autotune results are not in the cache's location: %s", error)

    def _opened(self) -> Store:
        if self._store is None:
            self._store = self._open_store()
        return self._store


def pack(identity: str, files: Mapping[str, str], seal: Seal = UNSEALED) -> tuple[str, bytes]:
    """Name and bytes of a bundle."""
    payload = json.dumps(files, sort_keys=True, separators=(",", ":")).encode()
    key = f"autotune/{identity}/{hashlib.sha256(payload).hexdigest()}"
    return _name(identity, key), encode(key, payload, EntryMeta(), seal)


def unpack(identity: str, name: str, data: bytes, seal: Seal = UNSEALED) -> dict[str, str]:
    """The files of a bundle, those that XLA would not have written left out; `EntryError`."""
    key = _key_in(data)
    if not key.startswith(f"autotune/{identity}/") or _name(identity, key) != name:
        key = f"autotune/{identity}/"  # of another place: nothing verifies as this
    try:
        files = json.loads(bytes(decode(key, data, seal).payload))
    except (ValueError, RecursionError):
        return {}
    return {
        file: text
        for file, text in (files.items() if isinstance(files, dict) else ())
        if _FILE.fullmatch(file) and isinstance(text, str) and len(text) <= MAX_FILE_BYTES
    }


def _name(identity: str, key: str) -> str:
    return f"{AUTOTUNE}{identity}/{hashlib.sha256(key.encode()).hexdigest()}"


def _key_in(data: bytes) -> str:
    """What an entry says of its key, unverified; empty where it says nothing."""
    found = re.search(rb'"key":"(autotune/[0-9a-f/]{1,128})"', data[:4096])
    return found[1].decode() if found else ""


def _files(folder: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        return [path for path in folder.iterdir() if _FILE.fullmatch(path.name)]
    return []


def _create(path: Path, text: str) -> None:
    """Write a file whole, or leave the one that is there: XLA reads beside this."""
    if not path.exists():
        write_once(path, text.encode(), path.with_name(f".{path.name}.{os.getpid()}"))
