"""Entries as bytes, read without the product's decoder."""

from __future__ import annotations

import json


def key_in(data: bytes) -> str:
    """The key in an entry's header."""
    header_size = int.from_bytes(data[10:14], "big")
    key: str = json.loads(data[22 : 22 + header_size])["key"]
    return key
