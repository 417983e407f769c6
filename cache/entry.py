"""The wire format of an entry.

    offset  size
         0     8  magic, b"hotstart"
         8     2  format version, 1
        10     4  header size H
        14     8  payload size P
        22     H  header, a JSON object in UTF-8: {"key": ..., "meta": {...}}
      22+H    32  SHA-256 of everything before it, then of the payload
      54+H     P  payload: the bytes that JAX gave to the cache
    54+H+P   103  where there is a signing key: the signature of the digest (signing.py)

All integers are big-endian. The digest covers the key, so a sound entry that was copied or
renamed to another key does not verify, and the sizes, so a truncated or padded one does not
either. Stock JAX checks none of this and loads another program's entry as a hit. The signature
stands outside of the digest: an entry is the same one whoever has signed it.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from hotstart.cache.errors import DigestMismatch, NotAnEntry, WrongKey
from hotstart.cache.signing import MARK, SIGNATURE_BYTES, UNSEALED, Seal

MAGIC = b"hotstart"
VERSION = 1
PENDING = "pending/"
HEAD_BYTES = 32768  # holds all but the payload: a key has some 100 bytes, the meta up to 20,300
_PREFIX = struct.Struct(">8sHIQ")
_DIGEST_BYTES = hashlib.sha256().digest_size
_JAX_KEY = re.compile(r"(?P<module>.+)-(?P<digest>[0-9a-f]{64})", re.DOTALL)


@dataclass(frozen=True)
class EntryMeta:
    """Where an entry comes from. Kept for people and reports; nothing is decided by it.

    `parts` is what the key was made of (description.py); older entries have none.
    """

    compile_s: float = 0.0
    jax: str = ""
    jaxlib: str = ""
    platform: str = ""
    writer: str = ""
    parts: str = ""


@dataclass(frozen=True)
class Entry:
    """A verified entry; `digest` tells stored entries of one key apart."""

    key: str
    payload: bytes | memoryview
    meta: EntryMeta
    digest: bytes = field(default=b"", compare=False)


def pending_name(key: str) -> str:
    """The name, in a node directory, of the mark of an entry that is still to be uploaded.

    Its bytes are the key. It is made before the entry is, and lasts until the entry is in the
    store: whoever dies in between, the next agent of the host goes on.
    """
    return PENDING + entry_name(key)


def entry_name(key: str) -> str:
    """The object name of a key: `entries/v1/<hash>-<module>`.

    The hash comes first because buckets shard by name; it is the key's own, so a name can be
    found from a JAX log line. Keys of another form are hashed whole. Each version of the format
    has names of its own, or jobs of two versions would take each other's entries for bad ones.
    """
    match = _JAX_KEY.fullmatch(key)
    module, digest = match.group("module", "digest") if match else ("", _hex(key))
    readable = re.sub(r"[^A-Za-z0-9_.]", "_", module)[:100]
    name = f"entries/v{VERSION}/{digest}"
    return f"{name}-{readable}" if readable else name


def module_of(key: str) -> str:
    """The module's name in a key of JAX's, `<module>-<hash>`."""
    return key.rpartition("-")[0] or key


def encode(key: str, payload: bytes | memoryview, meta: EntryMeta, seal: Seal = UNSEALED) -> bytes:
    """The entry's bytes. Hashes the payload (the GIL is released), so not for a hot thread."""
    described = {name: value for name, value in asdict(meta).items() if name != "parts" or value}
    header = json.dumps({"key": key, "meta": described}, separators=(",", ":")).encode()
    head = _PREFIX.pack(MAGIC, VERSION, len(header), len(payload)) + header
    digest = _digest(head, payload)
    return b"".join((head, digest, payload, seal.sign(entry_name(key), digest)))


def decode(key: str, data: bytes, seal: Seal = UNSEALED) -> Entry:
    """Verify `data` as the entry of `key`.

    Raises `NotAnEntry`, `WrongKey`, `DigestMismatch`, `Unsigned` or `BadSignature`; never anything
    else, whatever the bytes. Without a right signature nothing but the sizes is looked at.
    """
    what = f"entry of {key}"
    entry = _decode(what, entry_name(key), data, seal)
    if entry.key != key:
        raise WrongKey(f"{what}: holds the entry of {entry.key}")
    return entry


def decode_named(name: str, data: bytes, seal: Seal = UNSEALED) -> Entry:
    """Verify `data` as the entry that belongs under `name`, whose key is in it; see `decode`."""
    entry = _decode(name, name, data, seal)
    if entry_name(entry.key) != name:
        raise WrongKey(f"{name}: holds the entry of {entry.key}")
    return entry


def _decode(what: str, name: str, data: bytes, seal: Seal) -> Entry:
    if len(data) < _PREFIX.size:
        raise NotAnEntry(f"{what}: {len(data)} bytes are too few for a header")
    magic, version, header_size, payload_size = _PREFIX.unpack_from(data)
    if magic != MAGIC:
        raise NotAnEntry(f"{what}: not written by hotstart")
    if version != VERSION:
        raise NotAnEntry(f"{what}: format version {version}, this hotstart reads {VERSION}")
    head_size = _PREFIX.size + header_size
    end = head_size + _DIGEST_BYTES + payload_size
    signature = bytes(data[end : end + SIGNATURE_BYTES + 1])
    is_signature = len(signature) == SIGNATURE_BYTES and signature.startswith(MARK)
    if len(data) < end or (signature and not is_signature):
        raise NotAnEntry(f"{what}: {len(data)} bytes, truncated or padded")
    view = memoryview(data)
    carried = bytes(view[head_size : head_size + _DIGEST_BYTES])
    seal.check(name, carried, signature)
    payload = view[head_size + _DIGEST_BYTES : end]
    digest = _digest(view[:head_size], payload)
    if digest != carried:
        raise DigestMismatch(f"{what}: the bytes differ from their digest")
    key, meta = _parse_header(what, bytes(view[_PREFIX.size : head_size]))
    return Entry(key, payload, meta, digest)


def entry_digest(head: bytes | memoryview) -> bytes:
    """The digest that an entry carries, unverified; the first `HEAD_BYTES` of it are enough.

    Raises `NotAnEntry`.
    """
    if len(head) < _PREFIX.size:
        raise NotAnEntry(f"{len(head)} bytes are too few for a header")
    magic, version, header_size, _ = _PREFIX.unpack_from(head)
    end = _PREFIX.size + header_size + _DIGEST_BYTES
    if magic != MAGIC or version != VERSION or len(head) < end:
        raise NotAnEntry("not an entry of this version, or truncated")
    return bytes(head[end - _DIGEST_BYTES : end])


@dataclass(frozen=True)
class Head:
    """What an entry says of itself before its payload; none of it is verified."""

    key: str
    meta: EntryMeta
    payload_bytes: int
    digest: bytes


def decode_head(what: str, head: bytes) -> Head:
    """Read the first `HEAD_BYTES` of an entry, or all of it. Raises `NotAnEntry`, nothing else.

    `what` names the entry in messages.
    """
    digest = entry_digest(head)
    _, _, header_size, payload_size = _PREFIX.unpack_from(head)
    key, meta = _parse_header(what, head[_PREFIX.size : _PREFIX.size + header_size])
    return Head(key, meta, payload_size, digest)


def _parse_header(what: str, header: bytes) -> tuple[str, EntryMeta]:
    # A right digest shows that the bytes are as written, not that hotstart wrote them.
    try:
        content = json.loads(header)
    except (ValueError, RecursionError) as error:
        raise NotAnEntry(f"{what}: the header is not JSON") from error
    match content:
        case {"key": str(written_key), "meta": dict(meta)}:
            return written_key, _meta(what, meta)
    raise NotAnEntry(f"{what}: the header has no key or no meta")


def _meta(what: str, meta: dict[str, Any]) -> EntryMeta:
    compile_s = meta.get("compile_s", 0.0)
    texts = {f.name: meta.get(f.name, "") for f in fields(EntryMeta) if f.name != "compile_s"}
    if not _is_duration(compile_s) or not all(isinstance(text, str) for text in texts.values()):
        raise NotAnEntry(f"{what}: the meta in its header is not what hotstart writes")
    return EntryMeta(float(compile_s), **texts)


def _is_duration(value: object) -> bool:
    # The bounds keep NaN, infinities and what is too large for a float out of the counters.
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e9


def _digest(head: bytes | memoryview, payload: bytes | memoryview) -> bytes:
    digest = hashlib.sha256(head)
    digest.update(payload)
    return digest.digest()


def _hex(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
