"""Signatures: what a store gives is used only where a holder of the key has written it.

A signed object ends in one line of 103 bytes, after its body of any kind:

    offset  size
         0    21  "\\n# hotstart-signed 1 "
        21    16  key id, hex: of the key's own HMAC, so it tells nothing of the key
        37     1  " "
        38    64  HMAC-SHA256 of what follows, hex
       102     1  "\\n"

    "hotstart signature 1\\0"
    size of namespace (8 bytes, big-endian), namespace: the store's location
    size of name (8 bytes, big-endian), name of the object in it: with a record's, its run
    SHA-256: of the body; of an entry the digest that it carries, which covers key and payload

So a signed object that was copied to another name, run or location does not verify, nor does one
whose line was taken away. As a comment the line leaves YAML as it was. Without a key the line is
not looked at: signed objects can be read, and what is written is unsigned.

Entries are signed and checked by `entry.py` (no byte of them is copied for it), everything else
by `SealedStore`. Keys come from `keyring.py`.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import logging
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NoReturn

from hotstart.cache.errors import BadSignature, EntryError, Unsigned
from hotstart.cache.store import ObjectStat, Store, open_store

logger = logging.getLogger(__name__)

MARK = b"\n# hotstart-signed 1 "
SIGNATURE_BYTES = 103
SECRET_BYTES = 32
_LINE = re.compile(re.escape(MARK) + rb"([0-9a-f]{16}) ([0-9a-f]{64})\n")
_CONTEXT = b"hotstart signature 1\0"


@dataclass(frozen=True)
class Key:
    """A secret of 32 bytes, and the id by which a signature names it."""

    secret: bytes = field(repr=False)

    @functools.cached_property
    def id(self) -> str:
        """16 hex digits; not secret."""
        return hmac.digest(self.secret, b"hotstart key id", "sha256").hex()[:16]

    def __reduce__(self) -> NoReturn:
        # What Ray sends lies in its object store and may be logged; no key ever goes that way.
        raise TypeError("a signing key is not to be pickled")


@dataclass(frozen=True)
class Keyring:
    """The keys of this host: the first one signs, all of them verify. Empty: nothing is signed."""

    keys: tuple[Key, ...] = ()

    @property
    def ids(self) -> tuple[str, ...]:
        """The keys' ids, the signing one first."""
        return tuple(key.id for key in self.keys)

    def __bool__(self) -> bool:
        return bool(self.keys)


@dataclass(frozen=True)
class Seal:
    """Signs and checks the objects of one location. `namespace` is its one spelling."""

    keyring: Keyring = Keyring()
    namespace: str = ""

    def sign(self, name: str, digest: bytes) -> bytes:
        """The line that follows the body of this SHA-256 under this name; empty without a key."""
        if not self.keyring:
            return b""
        key = self.keyring.keys[0]
        return b"%s%s %s\n" % (MARK, key.id.encode(), self._mac(key, name, digest))

    def check(self, name: str, digest: bytes, line: bytes) -> None:
        """Raise `Unsigned` or `BadSignature`, unless there is no key or `line` is one's for this.

        One HMAC over some 200 bytes.
        """
        if not self.keyring:
            return
        if not line:
            raise Unsigned("it is not signed, and this host has a signing key")
        match = _LINE.fullmatch(line)
        if match is None:
            raise BadSignature("its signature is not one of this version")
        key_id = match[1].decode()
        key = next((key for key in self.keyring.keys if key.id == key_id), None)
        if key is None:
            ours = ", ".join(self.keyring.ids)
            raise BadSignature(f"it is signed with the key {key_id}; this host has {ours}")
        if not hmac.compare_digest(match[2], self._mac(key, name, digest)):
            raise BadSignature(
                f"it is not what was signed with the key {key_id} for this name in {self.namespace}"
            )

    def _mac(self, key: Key, name: str, digest: bytes) -> bytes:
        message = b"".join((_CONTEXT, *map(_sized, (self.namespace, name)), digest))
        return hmac.digest(key.secret, message, "sha256").hex().encode()


UNSEALED = Seal()


def split(data: bytes) -> tuple[bytes, bytes]:
    """An object's body, and the line that signs it: empty where there is none.

    A line that was cut short is given as one, for it shows that there was one.
    """
    start = data.rfind(MARK, -SIGNATURE_BYTES)
    return (data, b"") if start < 0 else (data[:start], data[start:])


def key_id_in(line: bytes) -> str | None:
    """The id that a signature names; None where there is none, or it is not of this version."""
    match = _LINE.fullmatch(line)
    return None if match is None else match[1].decode()


def tally(error: EntryError) -> dict[str, int]:
    """The counter for something that did not verify, by its name, and 1."""
    if isinstance(error, Unsigned):
        return {"unsigned": 1}
    return {"bad_signature": 1} if isinstance(error, BadSignature) else {"errors": 1}


class SealedStore:
    """A store whose objects are signed as they are created and checked as they are read.

    What does not verify is not there for `get`: a warning, `on_refused`, None. `create` stays
    create-only: a refused object keeps its name taken. For small objects: bodies are copied.
    """

    def __init__(
        self, store: Store, seal: Seal, on_refused: Callable[[EntryError], None] = lambda e: None
    ) -> None:
        self._store = store
        self._seal = seal
        self._on_refused = on_refused
        self._warned: set[str] = set()

    @property
    def url(self) -> str:
        """See `Store`."""
        return self._store.url

    def get(self, name: str) -> bytes | None:
        """The body of an object that verifies, or None."""
        data = self._store.get(name)
        if data is None:
            return None
        body, line = split(data)
        try:
            self._seal.check(name, hashlib.sha256(body).digest(), line)
        except EntryError as error:
            self._on_refused(error)
            if name not in self._warned:
                self._warned.add(name)
                logger.warning("%s/%s: %s; it is left alone", self._store.url, name, error)
            return None
        return body

    def create(self, name: str, data: bytes) -> bool:
        """See `Store`; signed where there is a key."""
        return self._store.create(name, data + self._seal.sign(name, hashlib.sha256(data).digest()))

    def delete(self, name: str, generation: int) -> bool:
        """See `Store`."""
        return self._store.delete(name, generation)

    def list(self, prefix: str) -> Iterator[ObjectStat]:
        """See `Store`; sizes are with the signature, and nothing is checked."""
        return self._store.list(prefix)

    def stat(self, name: str) -> ObjectStat | None:
        """See `Store`; the size is with the signature, and nothing is checked."""
        return self._store.stat(name)


def open_sealed(
    location: str,
    keyring: Keyring,
    on_refused: Callable[[EntryError], None] = lambda e: None,
    *,
    deadline_s: float = 30.0,
) -> SealedStore:
    """The store at a location, as `open_store`, behind the keys of this host."""
    store = open_store(location, deadline_s=deadline_s)
    return SealedStore(store, Seal(keyring, store.url), on_refused)


def _sized(text: str) -> bytes:
    data = text.encode("utf-8", "surrogatepass")
    return struct.pack(">Q", len(data)) + data
