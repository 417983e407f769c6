"""What the answers of Google Cloud Storage mean.

https://cloud.google.com/storage/docs/json_api/v1/status-codes
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any

from hotstart.cache.errors import AccessDenied, RejectedRequest, StoreError, TransientError
from hotstart.cache.store import ObjectStat

CREDENTIALS = "gcloud auth application-default login, or GOOGLE_APPLICATION_CREDENTIALS"


class NotFound(StoreError):
    """404: the object or its bucket is not there. Does not leave `hotstart.cache.gcs`."""


class PreconditionFailed(StoreError):
    """412: the object is of another generation. Does not leave `hotstart.cache.gcs`."""


class Taken(RejectedRequest):
    """409: a bucket of this name exists, ours or anybody's."""


class RangeNotThere(StoreError):
    """416: the object has no such bytes. Does not leave `hotstart.cache.gcs`."""


class HttpFailure(Exception):
    """An answer of 400 or more; `retry_after_s` are the seconds of its `Retry-After`."""

    def __init__(self, status: int, text: str, retry_after_s: float | None = None) -> None:
        super().__init__(f"HTTP {status}: {text}" if text else f"HTTP {status}")
        self.status = status
        self.retry_after_s = retry_after_s


def translate_status(failure: HttpFailure, action: str) -> StoreError:
    """The error that the failure of `action` is to the cache."""
    status = failure.status
    if status == 404:
        return NotFound(f"cannot {action}: {failure}")
    if status == 412:
        return PreconditionFailed(f"cannot {action}: {failure}")
    if status == 416:
        return RangeNotThere(f"cannot {action}: {failure}")
    if status in (401, 403):
        return AccessDenied(
            f"cannot {action}: {failure}; check the credentials ({CREDENTIALS}) and the roles "
            f"(readers need roles/storage.objectViewer, writers roles/storage.objectCreator too)"
        )
    if status in (408, 429) or status >= 500:
        wait_s = failure.retry_after_s
        asks = f" (it asks to be left alone for {wait_s:g} s)" if wait_s else ""
        return TransientError(f"cannot {action}: {failure}{asks}", retry_after_s=wait_s)
    kind = Taken if status == 409 else RejectedRequest
    return kind(
        f"cannot {action}: {failure}; sending it again does not help: check the location's "
        f"spelling and the bucket's settings"
    )


def error_text(body: bytes) -> str:
    """What the server says, for a person to read."""
    text = body.decode(errors="replace")
    with contextlib.suppress(ValueError, KeyError, TypeError):
        text = json.loads(text)["error"]["message"]
    return " ".join(str(text).split())[:300]


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """The seconds of a `Retry-After`; its date form is read by the server's own clock.

    https://www.rfc-editor.org/rfc/rfc9110#field.retry-after
    """
    said = headers.get("Retry-After", "").strip()
    if said.isascii() and said.isdigit():
        return float(said)
    try:
        ahead = parsedate_to_datetime(said) - parsedate_to_datetime(headers.get("Date", ""))
    except (TypeError, ValueError):
        return None
    return max(0.0, ahead.total_seconds())


def check_length(action: str, headers: Mapping[str, str], body: bytes) -> None:
    """Raise `TransientError` for a body that isn't as long as the object."""
    # The client notices a body shorter than Content-Length; GCS may send chunks without one.
    stored = headers.get("X-Goog-Stored-Content-Length")
    encoding = headers.get("X-Goog-Stored-Content-Encoding", "identity")
    if stored is not None and encoding == "identity" and int(stored) != len(body):
        raise TransientError(f"cannot {action}: {len(body)} of {stored} bytes came")


def parse(action: str, body: bytes) -> dict[str, Any]:
    """The JSON of an answer; raises `TransientError`."""
    try:
        return json.loads(body)
    except ValueError as error:
        raise TransientError(f"cannot {action}: the answer is not JSON: {body[:80]!r}") from error


def object_stat(name: str, item: Mapping[str, Any]) -> ObjectStat:
    """What a resource of the API says of an object."""
    return ObjectStat(
        name=name,
        size_bytes=int(item["size"]),
        generation=int(item["generation"]),
        modified_s=datetime.fromisoformat(item["updated"]).timestamp(),
    )
