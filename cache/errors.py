"""Everything that the cache raises.

CacheError
 |- InvalidLocation        the location cannot be a store (ValueError too)
 |- UnsupportedJax         JAX's internals look unfamiliar; stock behavior stays
 |- CacheRequired          strict mode: what would be a warning ends the program
 |   '- WarmRequired       a program was to be in the cache, and is not
 |- SigningKeyError        the signing key that is set can't be used
 |- BundleError            a file that is no bundle, or that ends early
 |- EntryError             bytes that are not the entry they should be
 |   |- NotAnEntry         no header, another version, or truncated
 |   |- WrongKey           a sound entry, but of another key
 |   |- DigestMismatch     the bytes differ from the digest in the header
 |   |- Unsigned           no signature, where a signing key is set
 |   '- BadSignature       not what a holder of a key has signed for this name and place
 '- StoreError             a store could not do what was asked
     |- AccessDenied       401 or 403, or a file permission: retrying does not help
     |- StoreMissing       the bucket or directory itself does not exist
     |- RejectedRequest    the store refuses the request as it stands (other 4xx)
     '- TransientError     worth a retry: 408, 429, 5xx, resets, stalls, short bodies
         |- DeadlineExceeded   the retries' deadline passed; the last cause is chained
         '- StoreOut           not even tried: the store has been out until just now

A message says what failed, where, and what to do next. Nothing decides by message text.
"""

from __future__ import annotations

from typing import ClassVar


class CacheError(Exception):
    """Base of all errors of `hotstart.cache`."""


class InvalidLocation(CacheError, ValueError):
    """The location is neither a directory path nor a `gs://bucket/prefix` URL."""


class UnsupportedJax(CacheError):
    """JAX's internals do not look as expected; the caller keeps stock behavior."""


class BundleError(CacheError):
    """A file that is no bundle of entries, or not a whole one."""


class EntryError(CacheError):
    """Bytes that do not verify as the entry they should be."""


class NotAnEntry(EntryError):
    """No entry header, a header of another version, or a truncated entry."""


class WrongKey(EntryError):
    """A sound entry of another key."""


class DigestMismatch(EntryError):
    """The bytes differ from the digest that the entry carries."""


class Unsigned(EntryError):
    """An object without a signature, where a signing key is set."""


class BadSignature(EntryError):
    """Another key, a changed object, or one that was signed for another name or location."""


class StoreError(CacheError):
    """A store could not do what was asked."""


class AccessDenied(StoreError):
    """The identity may not do this; retrying does not help."""


class StoreMissing(StoreError):
    """The bucket or the directory does not exist."""


class RejectedRequest(StoreError):
    """The store refuses the request as it stands; retrying does not help."""


class TransientError(StoreError):
    """The same request may succeed when sent again, after `retry_after_s` seconds if it says so."""

    def __init__(self, text: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(text)
        self.retry_after_s = retry_after_s


class StoreOut(TransientError):
    """Not tried: operations before it failed by an outage, and it may not be over yet."""


class DeadlineExceeded(TransientError):
    """Retries went on until their deadline; `__cause__` is the last failure."""


class CacheRequired(CacheError):
    """Strict mode: the cache could not do its part, and the caller asked to know."""

    rule: ClassVar[str] = "strict mode"


class WarmRequired(CacheRequired):
    """A program was to be found in the cache, is not there, and must not be compiled."""

    rule: ClassVar[str] = "require_warm"


class SigningKeyError(CacheError):
    """The signing key that is set can't be used; nothing is read or written without it."""
