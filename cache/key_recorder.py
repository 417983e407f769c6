"""Records what JAX makes a key of, while it makes it.

JAX hashes one component after the other with functions of its own. Each is given a hash object
that passes on and keeps what it is updated with: no component is made twice, none is guessed, and
what JAX leaves out is not there. On the thread that compiles nothing else is done than to keep
references; reading, hashing and parsing wait for a miss and happen on a thread beside XLA's work.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import sys
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

from hotstart.cache.description import COMPONENTS, Description, to_text
from hotstart.cache.keys import processor_identity
from hotstart.cache.program_text import ProgramText, read_program

logger = logging.getLogger(__name__)

_DIGEST_HEX = 32
_MAX_KEPT_BYTES = 64 << 20  # of a program; a larger one has large constants in it
_UNSET = ("", '""', "b''", "[]", "None", "False", "false", "0", "0.0")
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
_SOURCES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")


class Reader(Protocol):
    """What only JAX can tell; `JaxReader` in jaxlink.py. All but `settings` may take a while."""

    def module_text(self, bytecode: bytes) -> str: ...
    def options(self, serialized: bytes) -> Mapping[str, str]: ...
    def versions(self) -> Mapping[str, str]: ...
    def settings(self) -> Mapping[str, Any]: ...
    def device_count(self) -> int: ...


@dataclass
class Recorded:
    """One key as it was made. `chunks` are what its components were hashed from, in order.

    too_large: the hash of a computation that is not kept, for it would be held while it compiles,
    and parsed into a second one.
    """

    key: str = ""
    hashed: Any = None
    too_large: Any = None
    chunks: dict[str, list[bytes]] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)
    jaxlib: str = ""
    devices: Sequence[Any] = ()
    names: Callable[[], list[str]] = list
    environment: dict[str, list[str]] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)


class _Tee:
    """A hash object that keeps what it is updated with."""

    def __init__(self, hashed: Any, chunks: list[bytes]) -> None:
        self._hashed = hashed
        self._chunks = chunks

    def update(self, data: bytes) -> None:
        self._hashed.update(data)
        self._chunks.append(data)


class KeyRecorder:
    """Safe among threads, each of which makes keys of its own."""

    def __init__(
        self,
        reader: Reader,
        on_described: Callable[[str, str], None] = lambda key, text: None,
    ) -> None:
        """`on_described` gets a key and the text of its description, on a background thread."""
        self.on_described = on_described
        self._reader = reader
        self._making = threading.local()
        self._pid = os.getpid()
        self._one_by_one = threading.Lock()

    def recording(
        self, devices: Sequence[Any], jaxlib: str, names: Callable[[], list[str]]
    ) -> Recorded:
        """Begin to record the key that this thread makes next; `finish` must follow.

        `names` gives those of the program's arguments, and is called where it is compiled.
        """
        recorded = Recorded(jaxlib=jaxlib, devices=devices, names=names)
        self._making.recorded = recorded
        try:
            recorded.settings = self._reader.settings()
        except Exception:  # the key goes on without
            logger.debug("not all of a key is recorded", exc_info=True)
        recorded.environment = _flags_given()
        return recorded

    def finish(self, recorded: Recorded, key: str) -> None:
        """The key is made."""
        recorded.key = key
        recorded.hashed = self._making.recorded = None

    def around_component(
        self, name: str, stock: Callable[..., Any], hashed: Any, *rest: Any, **kwargs: Any
    ) -> Any:
        """JAX's function that hashes a component. With debug logs on it is called twice."""
        recorded: Recorded | None = getattr(self._making, "recorded", None)
        if recorded is None or name in recorded.chunks:
            return stock(hashed, *rest, **kwargs)
        recorded.hashed = recorded.hashed or hashed
        chunks = recorded.chunks[name] = []
        result = stock(_Tee(hashed, chunks), *rest, **kwargs)
        if name == COMPONENTS[0] and sum(map(len, chunks)) > _MAX_KEPT_BYTES:
            # JAX's own hash has taken in nothing else yet.
            recorded.too_large = _or_nothing(lambda: hashed.copy(), None)
            chunks.clear()
        return result

    def around_text(self, stock: Callable[..., Any], hashed: Any, text: str) -> Any:
        """JAX's function that hashes a text: two components have no other of their own."""
        recorded: Recorded | None = getattr(self._making, "recorded", None)
        if recorded is not None and hashed is recorded.hashed:
            recorded.texts.append(text)
        return stock(hashed, text)

    def describe(self, recorded: Recorded) -> Future[str] | None:
        """Begin to describe a key in the background; None where that can't be.

        The future never raises: what can't be described is "".
        """
        if os.getpid() != self._pid:  # a forked child has none of the parent's threads
            return None
        names: list[str] = _or_nothing(recorded.names, [])  # XLA may change the module meanwhile
        recorded.names = list
        described: Future[str] = Future()
        # Ends with its work, so it may be waited for; a daemon inside of MLIR, as Python ends,
        # would abort the process.
        thread = threading.Thread(
            target=self._describe, args=(recorded, names, described), name="hotstart-describe"
        )
        try:
            thread.start()
        except RuntimeError:  # the interpreter is ending, or a limit on threads
            return None
        return described

    def _describe(self, recorded: Recorded, names: Sequence[str], described: Future[str]) -> None:
        with self._one_by_one:
            described.set_result(self._text(recorded, names))

    def _text(self, recorded: Recorded, names: Sequence[str]) -> str:
        try:
            text = to_text(description_of(recorded, names, self._reader))
        except Exception:
            logger.debug("the key of %s is not described", recorded.key, exc_info=True)
            return ""
        try:
            self.on_described(recorded.key, text)
        except Exception:
            logger.debug("telling of the key %s failed", recorded.key, exc_info=True)
        return text


def description_of(recorded: Recorded, names: Sequence[str], reader: Reader) -> Description:
    """Read what was recorded of a key. Takes as long as parsing the program does."""
    texts = [*recorded.texts, "", ""][:2]
    components = {
        **{name: b"".join(chunks) for name, chunks in recorded.chunks.items()},
        "jaxlib version": recorded.jaxlib.encode(),
        "compression": texts[0].encode().strip(),
        "custom hook": texts[1].encode().strip(),
    }
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in components.items()}
    whole = hashlib.sha256()
    if recorded.too_large is not None:
        whole = recorded.too_large.copy()
        digests[COMPONENTS[0]] = whole.hexdigest()
    for name in COMPONENTS:
        whole.update(components.get(name, b""))
    flags, outside = _flags(recorded)
    backend = [_readable(chunk) for chunk in recorded.chunks.get("backend version", [])]
    return Description(
        complete=recorded.key.endswith(f"-{whole.hexdigest()}"),
        digests={name: digest[:_DIGEST_HEX] for name, digest in digests.items()},
        versions={
            **reader.versions(),
            "jaxlib": recorded.jaxlib,
            **dict(zip(("backend", "backend version"), backend, strict=False)),
        },
        flags=flags,
        outside=outside,
        options=_or_nothing(
            lambda: _options(
                reader.options(components.get("compile options", b"")), (backend or [""])[0]
            ),
            {},
        ),
        devices=_or_nothing(lambda: _devices(recorded.devices, reader.device_count()), {}),
        compression=texts[0],
        hook=texts[1],
        settings={name: _lasting(value) for name, value in sorted(recorded.settings.items())},
        program=_or_nothing(lambda: _program(components, names, reader), None),
        session=_session(),
    )


_PROCESS = uuid.uuid4().hex[:16]


def _session() -> str:
    """What tells keys that are made side by side: the attempt, or without a launcher the process.

    A process id would not: in containers it is the same one at each start.
    """
    run, attempt = os.environ.get("HOTSTART_RUN"), os.environ.get("HOTSTART_ATTEMPT")
    if run and attempt:
        return hashlib.sha256(f"{run}/{attempt}".encode()).hexdigest()[:16]
    return _PROCESS


def _program(
    components: Mapping[str, bytes], names: Sequence[str], reader: Reader
) -> ProgramText | None:
    bytecode = components.get("computation")
    return read_program(reader.module_text(bytecode), names) if bytecode else None


def _options(fields: Mapping[str, str], platform: str) -> dict[str, str]:
    """Those that are set; of another platform's, which are many, a digest.

    What overrides an option is set whatever it says, for the default may be another.
    """
    kept = {
        name: _lasting(value)
        for name, value in fields.items()
        if value not in _UNSET or name.startswith("override.")
    }
    if platform in ("gpu", "cuda", "rocm"):
        return kept
    others = {name: kept.pop(name) for name in sorted(kept) if name.startswith("debug.xla_gpu_")}
    digest = hashlib.sha256(repr(others).encode()).hexdigest()[:16]
    return {**kept, "debug.xla_gpu_...": f"SHA-256 {digest}"} if others else kept


def _or_nothing(read: Callable[[], Any], nothing: Any) -> Any:
    """One part that can't be read leaves the others."""
    try:
        return read()
    except Exception:
        logger.debug("a part of a key is not described", exc_info=True)
        return nothing


def _flags_given() -> dict[str, list[str]]:
    given = {name: os.environ.get(name, "").split() for name in _SOURCES}
    return {**given, "arguments": [a for a in sys.argv if a.startswith("-")]}


def _flags(recorded: Recorded) -> tuple[dict[str, list[str]], list[str]]:
    """Those in the key by where they come from, and those that are not in it."""
    left = Counter(_readable(chunk) for chunk in recorded.chunks.get("XLA flags", []))
    found: dict[str, list[str]] = {}
    outside: list[str] = []
    for source, flags in recorded.environment.items():
        for flag in flags:
            if left[flag] > 0:
                left[flag] -= 1
                found.setdefault(source, []).append(flag)
            elif flag.startswith("--xla"):
                outside.append(flag)
    if unknown := sorted(left.elements()):
        found["elsewhere"] = unknown
    return found, outside


def _devices(devices: Sequence[Any], all_count: int) -> dict[str, str]:
    kinds = Counter(str(device.device_kind) for device in devices)
    shares = Counter(device.process_index for device in devices)
    each = sorted(shares.values())
    facts = {
        "platform": str(devices[0].platform) if devices else "",
        "count": str(len(devices)),
        "kinds": ", ".join(f"{count} x {kind}" for kind, count in sorted(kinds.items())),
        "processes": str(len(shares)),
        "share": str(each[0]) if len(set(each)) == 1 else ", ".join(map(str, each[:64])),
        "all": str(all_count),
    }
    if facts["platform"] == "cpu":
        facts["processor"] = processor_identity().decode(errors="replace")
    places = [
        f"{getattr(d, 'coords', '')}/{getattr(d, 'slice_index', '')}"
        for d in devices
        if hasattr(d, "coords")
    ]
    if places:
        facts["places"] = " ".join(places) if len(places) <= 64 else (
            "SHA-256 " + hashlib.sha256(" ".join(places).encode()).hexdigest()[:16]
        )  # fmt: skip
    return facts


def _lasting(value: Any) -> str:
    """Without addresses, which are others in each process."""
    return _ADDRESS.sub("", str(value))


def _readable(chunk: bytes) -> str:
    return bytes(chunk).decode(errors="replace")
