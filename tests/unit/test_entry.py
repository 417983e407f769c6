"""The wire format: what was written is read back, and anything else is an EntryError."""

from __future__ import annotations

import hashlib
import json
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hotstart.cache.entry import EntryMeta, decode, encode, entry_name
from hotstart.cache.errors import DigestMismatch, EntryError, NotAnEntry, WrongKey
from hotstart.cache.store import check_name

pytestmark = pytest.mark.unit

KEY = "jit_step-" + "0123456789abcdef" * 4
META = EntryMeta(compile_s=1.5, jax="0.10.2", jaxlib="0.10.2", platform="cpu", writer="host/1")
metas = st.builds(
    EntryMeta,
    compile_s=st.floats(0, 1e6),
    jax=st.text(),
    jaxlib=st.text(),
    platform=st.text(),
    writer=st.text(),
)


def with_header(header: bytes, payload: bytes = b"payload") -> bytes:
    """An entry with any header and a right digest."""
    head = struct.pack(">8sHIQ", b"hotstart", 1, len(header), len(payload)) + header
    return head + hashlib.sha256(head + payload).digest() + payload


@given(key=st.text(min_size=1), payload=st.binary(), meta=metas)
def test_entry_round_trip_gives_key_payload_and_meta(key, payload, meta):
    entry = decode(key, encode(key, payload, meta))

    assert (entry.key, entry.payload, entry.meta) == (key, payload, meta)


def test_entry_layout_is_the_documented_one():
    header = json.dumps(
        {
            "key": "k",
            "meta": {"compile_s": 0.0, "jax": "", "jaxlib": "", "platform": "", "writer": ""},
        },
        separators=(",", ":"),
    ).encode()

    assert encode("k", b"payload", EntryMeta()) == with_header(header)


def test_entry_truncated_anywhere_is_not_an_entry():
    data = encode(KEY, b"payload", META)

    for size in range(len(data)):
        with pytest.raises(NotAnEntry):
            decode(KEY, data[:size])


def test_entry_padded_is_not_an_entry():
    with pytest.raises(NotAnEntry):
        decode(KEY, encode(KEY, b"payload", META) + b"\0")


def test_entry_with_any_bit_flipped_raises_an_entry_error():
    data = encode(KEY, b"payload", META)

    for bit in range(len(data) * 8):
        bad = bytearray(data)
        bad[bit // 8] ^= 1 << bit % 8
        with pytest.raises(EntryError):
            decode(KEY, bytes(bad))


def test_entry_with_a_bit_of_its_payload_flipped_is_a_digest_mismatch():
    data = bytearray(encode(KEY, b"payload", META))
    data[-1] ^= 1

    with pytest.raises(DigestMismatch, match=KEY):
        decode(KEY, bytes(data))


def test_entry_of_another_key_is_a_wrong_key_that_names_both():
    data = encode("jit_other-1", b"payload", META)

    with pytest.raises(WrongKey, match=f"{KEY}.*jit_other-1"):
        decode(KEY, data)


@pytest.mark.parametrize("data", [b"", b"hotstart", b"\x7fELF" * 20], ids=["empty", "short", "elf"])
def test_entry_without_a_header_is_not_an_entry(data):
    with pytest.raises(NotAnEntry):
        decode(KEY, data)


def test_entry_of_another_format_version_is_not_an_entry_that_names_both():
    data = bytearray(encode(KEY, b"payload", META))
    data[9] = 2

    with pytest.raises(NotAnEntry, match=r"format version 2, this hotstart reads 1"):
        decode(KEY, bytes(data))


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"\xff",
        b"{",
        b"null",
        b"[]",
        b"7" * 5000,
        b"[" * 100_000,
        b"{}",
        b'{"key": 1, "meta": {}}',
        b'{"key": "k"}',
        b'{"key": "k", "meta": []}',
        b'{"key": "k", "meta": {"compile_s": "1"}}',
        b'{"key": "k", "meta": {"compile_s": true}}',
        b'{"key": "k", "meta": {"compile_s": null}}',
        b'{"key": "k", "meta": {"compile_s": -1}}',
        b'{"key": "k", "meta": {"compile_s": NaN}}',
        b'{"key": "k", "meta": {"compile_s": Infinity}}',
        b'{"key": "k", "meta": {"compile_s": 1' + b"0" * 400 + b"}}",
        b'{"key": "k", "meta": {"jax": 1}}',
        b'{"key": "k", "meta": {"writer": null}}',
    ],
    ids=lambda header: header[:50].decode(errors="replace"),
)
def test_entry_with_a_right_digest_and_another_header_is_not_an_entry(header):
    with pytest.raises(NotAnEntry):
        decode("k", with_header(header))


def test_entry_of_a_later_minor_writer_with_more_meta_is_read():
    data = with_header(b'{"key": "k", "meta": {"jax": "1", "host": {"a": 1}}, "more": 2}')

    assert decode("k", data).meta == EntryMeta(jax="1")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@settings(max_examples=200)
@given(
    data=st.binary()
    | st.builds(with_header, st.binary())
    | st.builds(with_header, json_values.map(lambda value: json.dumps(value).encode()))
    | st.builds(
        lambda key, meta: with_header(json.dumps({"key": key, "meta": meta}).encode()),
        st.just("k") | json_values,
        st.dictionaries(st.sampled_from(["compile_s", "jax", "writer"]), json_values) | json_values,
    )
)
def test_entry_decode_of_any_bytes_returns_an_entry_or_raises_an_entry_error(data):
    try:
        entry = decode("k", data)
    except EntryError:
        return
    assert entry.key == "k"
    assert isinstance(entry.meta.compile_s, float)


def test_name_of_a_jax_key_is_its_hash_then_its_module():
    assert entry_name(KEY) == "entries/v1/" + "0123456789abcdef" * 4 + "-jit_step"


@pytest.mark.parametrize(
    ("module", "readable"),
    [
        ("jit__lambda_", "jit__lambda_"),
        ("jit_<lambda>", "jit__lambda_"),
        ("a/b/../c", "a_b_.._c"),
        ("a-b", "a_b"),
        ("größe\n\0", "gr__e__"),
        ("x" * 5000, "x" * 100),
    ],
)
def test_name_of_an_odd_module_keeps_its_readable_part(module, readable):
    digest = "f" * 64

    assert entry_name(f"{module}-{digest}") == f"entries/v1/{digest}-{readable}"


@given(st.text() | st.text().map(lambda module: f"{module}-{'0' * 64}"))
def test_name_of_any_key_is_a_valid_object_name_in_one_folder(key):
    name = check_name(entry_name(key))

    assert name.startswith("entries/")
    assert name.count("/") == 2
    assert len(name.encode()) <= 255


@given(st.text(), st.text())
def test_name_of_two_keys_of_another_form_differ_as_the_keys_do(one, other):
    assert (entry_name(one) == entry_name(other)) is (one == other)


def test_name_of_a_key_with_a_lone_surrogate_exists():
    assert entry_name("\ud800").startswith("entries/")
    assert decode("\ud800", encode("\ud800", b"", META)).key == "\ud800"
