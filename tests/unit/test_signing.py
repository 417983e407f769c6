"""Signatures: what is read is what a holder of the key wrote, under this name and in this place."""

from __future__ import annotations

import hashlib
import hmac
import logging
import pickle
import struct

import pytest

from hotstart.cache.entry import EntryMeta, decode, encode, entry_digest, entry_name
from hotstart.cache.errors import (
    AccessDenied,
    BadSignature,
    DigestMismatch,
    EntryError,
    NotAnEntry,
    Unsigned,
)
from hotstart.cache.repair import discard_bad, entry_names, find_entry, make_room
from hotstart.cache.signing import (
    SIGNATURE_BYTES,
    UNSEALED,
    Key,
    Keyring,
    Seal,
    SealedStore,
    split,
)
from tests.support.memory_store import MemoryStore

pytestmark = pytest.mark.unit

PLACE = "gs://bucket/cache"
OLD, NEW, FOREIGN = (Key(bytes([n]) * 32) for n in (1, 2, 3))
SEAL = Seal(Keyring((NEW,)), PLACE)
KEY, OTHER_KEY = "jit_step-" + "ab" * 32, "jit_step-" + "cd" * 32
META = EntryMeta(compile_s=1.5, writer="host/1")
ENTRY = encode(KEY, b"payload", META, SEAL)
PLAIN = encode(KEY, b"payload", META)


def seal(*keys: Key, place: str = PLACE) -> Seal:
    return Seal(Keyring(keys), place)


# The line that signs.


def test_signature_is_the_documented_one():
    digest = hashlib.sha256(b"body").digest()
    message = b"hotstart signature 1\0" + struct.pack(">Q", len(PLACE)) + PLACE.encode()
    message += struct.pack(">Q", 1) + b"n" + digest
    mac = hmac.new(NEW.secret, message, "sha256").hexdigest()
    key_id = hmac.new(NEW.secret, b"hotstart key id", "sha256").hexdigest()[:16]

    line = SEAL.sign("n", digest)

    assert line == f"\n# hotstart-signed 1 {key_id} {mac}\n".encode()
    assert len(line) == SIGNATURE_BYTES


def test_key_and_its_ring_never_show_the_secret_and_are_not_pickled():
    shown = repr((NEW, SEAL.keyring, SEAL)) + str(NEW)

    assert NEW.secret.hex() not in shown
    assert repr(NEW.secret) not in shown
    for holder in (NEW, SEAL.keyring, SEAL):
        with pytest.raises(TypeError, match="not to be pickled"):
            pickle.dumps(holder)


def test_split_gives_back_body_and_line_and_a_cut_line_as_a_line():
    line = SEAL.sign("n", b"digest")

    assert split(b"body" + line) == (b"body", line)
    assert split(b"body" + line[:-1]) == (b"body", line[:-1])
    assert split(b"body") == (b"body", b"")
    assert split(b"") == (b"", b"")


# Entries.


def test_entry_is_the_unsigned_one_and_a_line_with_the_same_digest():
    assert ENTRY[:-SIGNATURE_BYTES] == PLAIN
    assert entry_digest(ENTRY) == entry_digest(PLAIN)


@pytest.mark.parametrize("reader", [UNSEALED, SEAL, seal(OLD, NEW), seal(NEW, OLD)])
def test_entry_that_is_signed_is_read_with_its_key_and_without_any(reader):
    entry = decode(KEY, ENTRY, reader)

    assert (bytes(entry.payload), entry.meta, entry.digest) == (
        b"payload",
        META,
        entry_digest(PLAIN),
    )


def test_entry_rotation_old_entries_are_read_until_the_old_key_goes():
    written_before = encode(KEY, b"payload", META, seal(OLD))

    assert bytes(decode(KEY, written_before, seal(NEW, OLD)).payload) == b"payload"
    with pytest.raises(BadSignature):
        decode(KEY, written_before, seal(NEW))
    # Hosts that sign with the new key already and those that only know it read each other.
    assert bytes(decode(KEY, ENTRY, seal(OLD, NEW)).payload) == b"payload"


REFUSED = {
    "unsigned": (KEY, PLAIN, SEAL, Unsigned),
    "stripped of its line": (KEY, ENTRY[:-SIGNATURE_BYTES], SEAL, Unsigned),
    "another key": (KEY, encode(KEY, b"payload", META, seal(FOREIGN)), SEAL, BadSignature),
    "under another name": (OTHER_KEY, ENTRY, SEAL, BadSignature),
    "from another place": (
        KEY,
        encode(KEY, b"payload", META, seal(NEW, place=f"{PLACE}2")),
        SEAL,
        BadSignature,
    ),
    "another entry's line": (
        KEY,
        encode(KEY, b"other", META) + ENTRY[-SIGNATURE_BYTES:],
        SEAL,
        BadSignature,
    ),
    "an unknown version": (
        KEY,
        ENTRY[:-SIGNATURE_BYTES] + ENTRY[-SIGNATURE_BYTES:].replace(b"signed 1", b"signed 2"),
        SEAL,
        NotAnEntry,
    ),
    "cut short": (KEY, ENTRY[:-1], SEAL, NotAnEntry),
    "padded": (KEY, ENTRY + b"\n", SEAL, NotAnEntry),
    "signed twice": (KEY, ENTRY + ENTRY[-SIGNATURE_BYTES:], SEAL, NotAnEntry),
    "a changed payload": (KEY, ENTRY.replace(b"payload", b"Payload"), SEAL, DigestMismatch),
    "a changed header": (KEY, ENTRY.replace(b"host/1", b"host/2"), SEAL, DigestMismatch),
}


@pytest.mark.parametrize(("key", "data", "reader", "error"), REFUSED.values(), ids=REFUSED)
def test_entry_that_is_not_as_it_was_signed_is_refused(key, data, reader, error):
    with pytest.raises(EntryError) as raised:
        decode(key, data, reader)
    assert type(raised.value) is error


def test_entry_signed_with_any_bit_flipped_is_refused():
    for bit in range(len(ENTRY) * 8):
        bad = bytearray(ENTRY)
        bad[bit // 8] ^= 1 << bit % 8
        with pytest.raises(EntryError):
            decode(KEY, bytes(bad), SEAL)


def test_entry_without_a_right_signature_is_not_parsed(monkeypatch):
    parsed: list[bytes] = []
    monkeypatch.setattr("hotstart.cache.entry.json.loads", parsed.append)

    for data in (PLAIN, encode(KEY, b"payload", META, seal(FOREIGN))):
        with pytest.raises(EntryError):
            decode(KEY, data, SEAL)
    assert parsed == []


# Finding and replacing entries.


class KeepingStore(MemoryStore):
    """A store of a role that may create and not delete."""

    def delete(self, name: str, generation: int) -> bool:
        raise AccessDenied("HTTP 403")


def test_find_entry_of_a_sound_one_is_one_request_and_passes_over_what_is_refused():
    store = MemoryStore()
    names = entry_names(KEY)
    store.create(names[0], PLAIN)
    store.create(names[1], encode(KEY, b"payload", META, seal(FOREIGN)))
    store.create(names[2], ENTRY)

    look = find_entry(store, KEY, SEAL)

    assert look.entry is not None
    assert look.data == ENTRY
    assert [(name, type(error)) for name, error in look.bad] == [
        (names[0], Unsigned),
        (names[1], BadSignature),
    ]
    assert find_entry(store, KEY).data == PLAIN


def test_make_room_takes_an_unsigned_entry_away_and_leaves_a_signed_one():
    store = MemoryStore()
    store.create(entry_name(KEY), PLAIN)

    assert make_room(store, KEY, SEAL) == entry_name(KEY)
    assert store.create(entry_name(KEY), ENTRY) is True

    assert make_room(store, KEY, SEAL) == entry_name(KEY)
    assert store.get(entry_name(KEY)) == ENTRY


def test_make_room_of_a_role_that_may_not_delete_is_the_next_free_name():
    store = KeepingStore()
    names = entry_names(KEY)
    store.create(names[0], PLAIN)

    assert make_room(store, KEY, SEAL) == f"{entry_name(KEY)}~1"
    store.create(names[1], PLAIN)
    assert make_room(store, KEY, SEAL) == f"{entry_name(KEY)}~2"
    store.create(names[2], PLAIN)
    store.create(names[3], PLAIN)
    with pytest.raises(AccessDenied):
        make_room(store, KEY, SEAL)
    assert [store.get(name) for name in names] == [PLAIN] * 4


def test_discard_bad_keeps_what_verifies_and_removes_what_does_not():
    store = MemoryStore()
    store.create(entry_name(KEY), ENTRY)
    discard_bad(store, KEY, SEAL)
    assert store.get(entry_name(KEY)) == ENTRY

    discard_bad(store, KEY, seal(FOREIGN))
    assert store.get(entry_name(KEY)) is None


# Everything else.


def test_sealed_store_gives_back_what_it_created_and_a_keyless_one_reads_it_too():
    store = MemoryStore(PLACE)
    sealed = SealedStore(store, SEAL)

    assert sealed.create("run/job.yaml", b"name: lm\n") is True
    assert sealed.create("run/job.yaml", b"name: other\n") is False

    assert sealed.get("run/job.yaml") == b"name: lm\n"
    assert SealedStore(store, UNSEALED).get("run/job.yaml") == b"name: lm\n"
    assert sealed.get("run/other") is None
    assert store.get("run/job.yaml").startswith(b"name: lm\n\n# hotstart-signed 1 ")


def test_sealed_store_without_a_key_writes_what_it_is_given():
    store = MemoryStore(PLACE)

    SealedStore(store, UNSEALED).create("run/job.yaml", b"name: lm\n")

    assert store.get("run/job.yaml") == b"name: lm\n"


def test_sealed_store_object_is_not_there_under_another_name_or_in_another_place(caplog):
    store = MemoryStore(PLACE)
    refused: list[EntryError] = []
    sealed = SealedStore(store, SEAL, refused.append)
    sealed.create("run-1/job.yaml", b"name: lm\n")
    signed = store.get("run-1/job.yaml")
    store.create("run-2/job.yaml", signed)
    store.create("run-3/job.yaml", b"name: lm\n")
    store.create("run-4/job.yaml", signed[:-9])
    elsewhere = SealedStore(store, seal(NEW, place="gs://bucket/runs"), refused.append)

    with caplog.at_level(logging.WARNING):
        found = [sealed.get(f"run-{n}/job.yaml") for n in (2, 3, 4, 2)]
        assert elsewhere.get("run-1/job.yaml") is None

    assert found == [None] * 4
    assert [type(error) for error in refused] == [
        BadSignature,
        Unsigned,
        BadSignature,
        BadSignature,
        BadSignature,
    ]
    assert len(caplog.records) == 4  # each name once
    assert "run-3/job.yaml: it is not signed, and this host has a signing key" in caplog.text
    assert all(NEW.secret.hex() not in message for message in caplog.messages)


def test_sealed_store_refused_object_keeps_its_name_taken():
    store = MemoryStore(PLACE)
    store.create("run/owner/00000001/00000000", b"{}")

    assert SealedStore(store, SEAL).create("run/owner/00000001/00000000", b"{}") is False
