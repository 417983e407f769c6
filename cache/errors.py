"""Everything that the cache raises.

CacheError
 |- InvalidLocation        the location cannot be a store (ValueError too)
 |- UnsupportedJax         JAX's internals look unfamiliar; stock behavior stays
 |- CacheRequired          strict mode: what would be a warning ends the program
 |- EntryError             bytes that are not the entry they should be
 |   |- NotAnEntry         no header, another version, or truncated
 |   |- WrongKey           a sound entry, but of another key
 |   '- DigestMismatch     the bytes differ from the digest in the header
 '- StoreError             a store could not do what was asked
     |- AccessDenied       401 or 403, or a file permission: retrying does not help
     |- StoreMissing       the bucket or directory itself does not exist
     |- RejectedRequest    the store refuses the request as it stands (other 4xx)
     '- TransientError     worth a retry: 408, 429, 5xx, resets, stalls, short bodies
         '- DeadlineExceeded   the retries' deadline passed; the last cause is chained

A message says what failed, where, and what to do next. Nothing decides by message text.
"""

from __future__ import annotations


class CacheError(Exception):
    """Base of all errors of `hotstart.cache`."""


class InvalidLocation(CacheError, ValueError):
    """The location is neither a directory path nor a `gs://bucket/prefix` URL."""


class UnsupportedJax(CacheError):
    """JAX's internals do not look as expected; the caller keeps stock behavior."""


class EntryError(CacheError):
    """Bytes that do not verify as the entry they should be."""


class NotAnEntry(EntryError):
    """No entry header, a header of another version, or a truncated entry."""


class WrongKey(EntryError):
    """A sound entry of another key."""


class DigestMismatch(EntryError):
    """The bytes differ from the digest that the entry carries."""


class StoreError(CacheError):
    """A store could not do what was asked."""


class AccessDenied(StoreError):
    """The identity may not do this; retrying does not help."""


class StoreMissing(StoreError):
    """The bucket or the directory does not exist."""


class RejectedRequest(StoreError):
    """The store refuses the request as it stands; retrying does not help."""


class TransientError(StoreError):
    """The same request may succeed when sent again."""


class DeadlineExceeded(TransientError):
    """Retries went on until their deadline; `__cause__` is the last failure."""


class CacheRequired(CacheError):
    """Strict mode: the cache could not do its part, and the caller asked to know."""
